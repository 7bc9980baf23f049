package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/filelock"
)

// prune keeps this many of each kind, those that were used last: a guest is made
// of its base in seconds, a base in a minute.
const (
	keepGuests = 4
	keepBases  = 2
)

// baseSpace is the disk space that making a base takes at its peak: for the tree,
// the image, the packages, the kernel and its modules.
const baseSpace = 1800 << 20

const (
	imagesDir   = "images" // in the state directory
	lockName    = ".lock"  // in the directory of images
	stagePrefix = ".stage-"
)

// store is the directory of images.
type store struct {
	dir string
	out io.Writer
}

func openStore(dir string, out io.Writer) (*store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := makePrivate(dir); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, &wrenn.Error{Code: wrenn.PermissionDenied, Message: "the state directory is root's: run this as root", Err: err}
		}
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return &store{dir: dir, out: out}, nil
}

// makePrivate makes a directory that its owner alone can enter: images of tenants are in
// it. Older versions let everybody in.
func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	err := os.Chmod(dir, 0o700)
	if errors.Is(err, os.ErrPermission) {
		return nil // not the owner: what this user may do with it shows later
	}
	return err
}

func (s *store) path(name, file string) string { return filepath.Join(s.dir, name, file) }

// has reports whether the store has a complete entry of that name.
func (s *store) has(name string) bool {
	info, err := os.Stat(filepath.Join(s.dir, name))
	return err == nil && info.IsDir()
}

// touch records the use of entries, for prune.
func (s *store) touch(names ...string) {
	now := time.Now()
	for _, name := range names {
		_ = os.Chtimes(filepath.Join(s.dir, name), now, now) // at worst the entry is pruned and made again
	}
}

// lock locks the store against other writers, also in other processes, until all
// descriptors of the file are closed: at the latest when this process, and the
// child processes that got one, have ended.
func (s *store) lock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := filelock.Lock(ctx, f, func() { fmt.Fprintln(s.out, "waiting for another process that makes images") }); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// build makes the entry of that name: fill writes it into an empty directory. The
// caller must hold the lock.
func (s *store) build(name string, fill func(dir string) error) error {
	st, err := s.stage()
	if err != nil {
		return err
	}
	defer st.discard()
	if err := fill(st.dir); err != nil {
		return noSpace(err)
	}
	return s.publish(st, name)
}

// stage is a directory for an incomplete entry. Its owner may work in it without
// the store's lock, until discard.
type stage struct {
	dir  string   // "" after it was published
	held *os.File // the directory, locked; a process that ends unlocks it
}

// stage makes an empty stage. The caller must hold the lock. It first removes the
// stages of interrupted builds.
func (s *store) stage() (*stage, error) {
	if err := s.removeAbandoned(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.dir, stagePrefix+"*")
	if err != nil {
		return nil, err
	}
	held, err := os.Open(dir)
	if err == nil {
		err = filelock.TryLock(held)
	}
	st := &stage{dir: dir, held: held}
	if err != nil {
		st.discard()
		return nil, fmt.Errorf("make a directory for an image: %w", err)
	}
	return st, nil
}

// discard removes the stage unless it was published. If that fails the next stage
// call removes it.
func (st *stage) discard() {
	_ = os.RemoveAll(st.dir) // "" is allowed
	_ = st.held.Close()      // nil is allowed
}

// publish makes the stage appear under a name. The caller must hold the lock.
func (s *store) publish(st *stage, name string) error {
	// Until now only root could enter it: an unpacked tree has set-user-ID programs.
	if err := os.Chmod(st.dir, 0o755); err != nil {
		return err
	}
	if err := durable.Publish(st.dir, filepath.Join(s.dir, name)); err != nil {
		return noSpace(err)
	}
	st.dir = "" // nothing to discard
	return nil
}

// removeAbandoned removes the stages of builds that were killed. The caller must
// hold the lock.
func (s *store) removeAbandoned() error {
	left, err := filepath.Glob(filepath.Join(s.dir, stagePrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if inUse(dir) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove an interrupted build: %w", err)
		}
	}
	return nil
}

// inUse reports whether a stage has an owner. A link, which redirect makes under
// the store's lock, has none.
func inUse(dir string) bool {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(filelock.TryLock(f), filelock.ErrLocked)
}

// prune removes the bases and guests that were not used for the longest time, and
// images without a name, whose build was killed just before it made the link.
func (s *store) prune() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for prefix, keep := range map[string]int{guestPrefix: keepGuests, basePrefix: keepBases} {
		if err := s.pruneKind(entries, prefix, keep); err != nil {
			return err
		}
	}
	return s.pruneUnnamed(entries)
}

func (s *store) pruneUnnamed(entries []os.DirEntry) error {
	named := map[string]bool{}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(s.dir, e.Name())); err == nil {
			named[target] = true
		}
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), imagePrefix) || named[e.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
			return fmt.Errorf("remove the unused image %s: %w", e.Name(), err)
		}
	}
	return nil
}

func (s *store) pruneKind(entries []os.DirEntry, prefix string, keep int) error {
	type aged struct {
		name string
		used time.Time
	}
	var list []aged
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		if info, err := e.Info(); err == nil {
			list = append(list, aged{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(list, func(a, b aged) int { return cmp.Or(b.used.Compare(a.used), strings.Compare(a.name, b.name)) })
	for _, old := range list[min(keep, len(list)):] {
		if err := os.RemoveAll(filepath.Join(s.dir, old.name)); err != nil {
			return fmt.Errorf("remove the unused image %s: %w", old.name, err)
		}
	}
	return nil
}

// needSpace returns an Exhausted error if a build will not fit on the disk.
func needSpace(dir string, bytes uint64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < bytes {
		return wrenn.Errorf(wrenn.Exhausted, "making an image needs %d MiB in the state directory, %d MiB are free", bytes>>20, free>>20)
	}
	return nil
}

// noSpace explains the error of a full disk.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &wrenn.Error{Code: wrenn.Exhausted, Message: "no space left for the image in the state directory", Err: err}
	}
	return err
}
