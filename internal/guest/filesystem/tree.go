package filesystem

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"wrenn.dev"
	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/rollback"
	pb "wrenn.dev/proto/gen/envd/filesystem"
)

// maxEntries bounds a listing: an answer is held in memory as a whole, and
// 50,000 entries are some 15 MB of JSON.
const maxEntries = 50_000

// Stat describes the file at a path, a link that leads nowhere included.
func (s *Service) Stat(ctx context.Context, req *pb.StatRequest) (*pb.StatResponse, error) {
	user, path, err := s.rpcPath(ctx, req.GetPath())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	e, err := s.entry(user, path)
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	return &pb.StatResponse{Entry: e}, nil
}

// ListDir lists a tree to the requested depth in lexical order, each directory
// before its entries. It follows a link at the path itself and lists other links.
func (s *Service) ListDir(ctx context.Context, req *pb.ListDirRequest) (*pb.ListDirResponse, error) {
	user, path, err := s.rpcPath(ctx, req.GetPath())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	l := lister{ctx: ctx, names: s.accounts.Names(), room: maxEntries}
	err = user.Do(func() error {
		if err := mustBeDir(path); err != nil {
			return err
		}
		return l.list(path, max(req.GetDepth(), 1))
	})
	if err != nil {
		return nil, s.rpcError(ctx, failure("list", path, err))
	}
	return &pb.ListDirResponse{Entries: l.entries}, nil
}

// MakeDir makes a directory and its missing parents, owned by the caller.
func (s *Service) MakeDir(ctx context.Context, req *pb.MakeDirRequest) (*pb.MakeDirResponse, error) {
	user, path, err := s.rpcPath(ctx, req.GetPath())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	if err := user.Do(func() error { return makeNewDir(ctx, path, user) }); err != nil {
		return nil, s.rpcError(ctx, failure("make directory", path, err))
	}
	e, err := s.entry(user, path)
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	return &pb.MakeDirResponse{Entry: e}, nil
}

func makeNewDir(ctx context.Context, path string, user caller) error {
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return wrenn.Errorf(wrenn.AlreadyExists, "directory '%s' already exists", printable(path))
	case err == nil:
		return wrenn.Errorf(wrenn.Invalid, "path '%s' exists and is not a directory", printable(path))
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	if err := makeDirs(path, user, &undo); err != nil {
		return err
	}
	undo.Keep()
	return nil
}

// Move renames, over an existing file, and makes the destination's missing
// parents. It moves a link itself, not the file that it leads to.
func (s *Service) Move(ctx context.Context, req *pb.MoveRequest) (*pb.MoveResponse, error) {
	user, source, err := s.changeablePath(ctx, req.GetSource())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	_, destination, err := s.changeablePath(ctx, req.GetDestination())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	if err := user.Do(func() error { return move(ctx, source, destination, user) }); err != nil {
		return nil, s.rpcError(ctx, err)
	}
	e, err := s.entry(user, destination)
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	return &pb.MoveResponse{Entry: e}, nil
}

// Remove removes a file or a whole tree. A path that does not exist is no error.
func (s *Service) Remove(ctx context.Context, req *pb.RemoveRequest) (*pb.RemoveResponse, error) {
	user, path, err := s.changeablePath(ctx, req.GetPath())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	if err := user.Do(func() error { return os.RemoveAll(path) }); err != nil && !errors.Is(err, syscall.ENOTDIR) { // nothing exists below a file
		return nil, s.rpcError(ctx, failure("remove", path, err))
	}
	return &pb.RemoveResponse{}, nil
}

// rpcPath returns the caller of an RPC and the path that it names, absolute.
func (s *Service) rpcPath(ctx context.Context, requested string) (caller, string, error) {
	user, err := s.rpcCaller(ctx)
	if err != nil {
		return caller{}, "", err
	}
	path, err := user.path(requested)
	return user, path, err
}

// changeablePath is rpcPath for calls that move or remove: a path that was left
// out must not become the home directory.
func (s *Service) changeablePath(ctx context.Context, requested string) (caller, string, error) {
	if requested == "" {
		return caller{}, "", wrenn.Errorf(wrenn.Invalid, "a path is needed")
	}
	user, path, err := s.rpcPath(ctx, requested)
	if err == nil && path == "/" {
		err = wrenn.Errorf(wrenn.Invalid, "the root directory cannot be moved or removed")
	}
	return user, path, err
}

// entry describes the file at a path with the caller's credentials.
func (s *Service) entry(user caller, path string) (*pb.EntryInfo, error) {
	names := s.accounts.Names()
	e, err := as(user, func() (*pb.EntryInfo, error) { return entry(path, names) })
	return e, failure("look at", path, err)
}

func mustBeDir(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return failure("look at", path, err)
	}
	if !info.IsDir() {
		return wrenn.Errorf(wrenn.Invalid, "path '%s' is not a directory", printable(path))
	}
	return nil
}

// makeDirs makes the directory and its missing parents with mode 0755, owned by
// the user. undo removes those that it made and that are still empty.
func makeDirs(path string, user caller, undo *rollback.Stack) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil, errors.Is(err, syscall.ENOTDIR):
		return wrenn.Errorf(wrenn.Invalid, "'%s' cannot be a directory: a file is in the way", printable(path))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := makeDirs(filepath.Dir(path), user, undo); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		if info, statErr := os.Stat(path); statErr == nil && info.IsDir() {
			return nil // another process has just made it
		}
		return err
	}
	undo.AddFunc(func() { _ = os.Remove(path) }) // fails when it is not empty any more: then it stays
	// Lchown: a program may have replaced the directory by a link.
	return os.Lchown(path, int(user.UID), int(user.GID))
}

// lister collects the entries of a tree.
type lister struct {
	ctx     context.Context
	names   *account.Names
	room    int // how many more entries it may read; those that were not visited yet are in memory, too
	entries []*pb.EntryInfo
}

// list adds the entries of dir and, if depth allows, those below.
func (l *lister) list(dir string, depth uint32) error {
	children, err := l.children(dir)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(dir, child.Name())
		e, err := entry(path, l.names)
		if gone(err) {
			continue // it was removed since its name was read
		}
		if err != nil {
			return err
		}
		l.entries = append(l.entries, e)
		if !child.IsDir() || depth == 1 {
			continue
		}
		if err := l.list(path, depth-1); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// children reads a directory in lexical order.
func (l *lister) children(dir string) ([]fs.DirEntry, error) {
	f, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	children, err := f.ReadDir(l.room + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(children) > l.room {
		return nil, wrenn.Errorf(wrenn.Exhausted, "more than %d entries: list a directory further down, or with less depth", maxEntries)
	}
	l.room -= len(children)
	slices.SortFunc(children, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return children, nil
}

// openDir opens a directory and fails for anything else: opening a pipe would wait
// for a writer.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY, 0)
}

// gone reports whether err says that a file, or a directory among its parents, does
// not exist.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }
