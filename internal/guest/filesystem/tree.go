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

	"wrenn"
	"wrenn/internal/guest/account"
	"wrenn/internal/rollback"
	pb "wrenn/proto/gen/envd/filesystem"
)

// maxEntries bounds a listing: an answer is held in memory as a whole, and
// 50,000 entries are some 15 MB of JSON.
const maxEntries = 50_000

// Stat describes what is at a path; a link that leads nowhere is there.
func (s *Service) Stat(ctx context.Context, req *pb.StatRequest) (*pb.StatResponse, error) {
	_, path, err := s.rpcPath(ctx, req.GetPath())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	e, err := s.entry(path)
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	return &pb.StatResponse{Entry: e}, nil
}

// ListDir lists a tree to the depth asked for, each directory before what is
// in it, in lexical order. Links are listed, not followed, but for the first.
func (s *Service) ListDir(ctx context.Context, req *pb.ListDirRequest) (*pb.ListDirResponse, error) {
	_, path, err := s.rpcPath(ctx, req.GetPath())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	if err := mustBeDir(path); err != nil {
		return nil, s.rpcError(ctx, err)
	}
	l := lister{ctx: ctx, names: s.accounts.Names(), room: maxEntries}
	if err := l.list(path, max(req.GetDepth(), 1)); err != nil {
		return nil, s.rpcError(ctx, failure("list", path, err))
	}
	return &pb.ListDirResponse{Entries: l.entries}, nil
}

// MakeDir makes a directory and its parents, all of them the caller's.
func (s *Service) MakeDir(ctx context.Context, req *pb.MakeDirRequest) (*pb.MakeDirResponse, error) {
	user, path, err := s.rpcPath(ctx, req.GetPath())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return nil, s.rpcError(ctx, wrenn.Errorf(wrenn.AlreadyExists, "directory '%s' already exists", printable(path)))
	case err == nil:
		return nil, s.rpcError(ctx, wrenn.Errorf(wrenn.Invalid, "path '%s' exists and is not a directory", printable(path)))
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	if err := makeDirs(path, user, &undo); err != nil {
		return nil, s.rpcError(ctx, failure("make directory", path, err))
	}
	undo.Keep()
	e, err := s.entry(path)
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	return &pb.MakeDirResponse{Entry: e}, nil
}

// Move renames, over a file that is there, and makes the missing parents of
// the destination. A link is moved, not what it leads to.
func (s *Service) Move(ctx context.Context, req *pb.MoveRequest) (*pb.MoveResponse, error) {
	user, source, err := s.changeablePath(ctx, req.GetSource())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	_, destination, err := s.changeablePath(ctx, req.GetDestination())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	if err := move(ctx, source, destination, user); err != nil {
		return nil, s.rpcError(ctx, err)
	}
	e, err := s.entry(destination)
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	return &pb.MoveResponse{Entry: e}, nil
}

// Remove deletes what is at a path, a whole tree too. Nothing there is fine.
func (s *Service) Remove(ctx context.Context, req *pb.RemoveRequest) (*pb.RemoveResponse, error) {
	_, path, err := s.changeablePath(ctx, req.GetPath())
	if err != nil {
		return nil, s.rpcError(ctx, err)
	}
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, syscall.ENOTDIR) { // below a file is nothing
		return nil, s.rpcError(ctx, failure("remove", path, err))
	}
	return &pb.RemoveResponse{}, nil
}

// rpcPath is the caller of an RPC and the path that it names.
func (s *Service) rpcPath(ctx context.Context, requested string) (caller, string, error) {
	user, err := s.rpcCaller(ctx)
	if err != nil {
		return caller{}, "", err
	}
	path, err := user.path(requested)
	return user, path, err
}

// changeablePath is rpcPath for what moves or removes: a path that was left
// out must not become the home directory there.
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

func (s *Service) entry(path string) (*pb.EntryInfo, error) {
	e, err := entry(path, s.accounts.Names())
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

// makeDirs makes the directory and its missing parents with mode 0755, owned
// by the user. What it made is removed again by undo, where still empty.
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
			return nil // made by somebody else just now
		}
		return err
	}
	undo.AddFunc(func() { _ = os.Remove(path) }) // fails when somebody has put something in: theirs now
	// Lchown: whoever replaced the directory by a link must not get its target.
	return os.Lchown(path, int(user.UID), int(user.GID))
}

// lister collects the entries of a tree.
type lister struct {
	ctx     context.Context
	names   *account.Names
	room    int // how many more entries it may read; also those not yet visited are held
	entries []*pb.EntryInfo
}

// list adds what is in dir and, if depth allows, below.
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
			continue // since its name was read
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

// openDir opens a directory and nothing else: a pipe that took its place would
// make the caller wait for a writer.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY, 0)
}

// gone reports whether err says that there is nothing, or no directory, where
// there just was.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }
