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

	"wrenn"
	"wrenn/internal/durable"
	"wrenn/internal/filelock"
)

// What is kept of each kind beyond the newest goes: a guest is made of its base
// in seconds, a base in a minute.
const (
	keepGuests = 4
	keepBases  = 2
)

// baseSpace is what making a base takes at its peak: the tree, the image, the
// packages, the kernel and its modules.
const baseSpace = 1800 << 20

const (
	imagesDir   = "images" // in the state directory
	stagePrefix = ".stage-"
)

// store is the directory of images.
type store struct {
	dir string
	out io.Writer
}

func openStore(stateDir string, out io.Writer) (*store, error) {
	dir, err := filepath.Abs(filepath.Join(stateDir, imagesDir))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, &wrenn.Error{Code: wrenn.PermissionDenied, Message: "the state directory belongs to root: run this as root", Err: err}
		}
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return &store{dir: dir, out: out}, nil
}

func (s *store) path(name, file string) string { return filepath.Join(s.dir, name, file) }

// has says whether something whole of that name is there.
func (s *store) has(name string) bool {
	info, err := os.Stat(filepath.Join(s.dir, name))
	return err == nil && info.IsDir()
}

// touch marks what was used, for prune.
func (s *store) touch(names ...string) {
	now := time.Now()
	for _, name := range names {
		_ = os.Chtimes(filepath.Join(s.dir, name), now, now) // at worst it is made again
	}
}

// lock keeps other writers out, of other processes too, until the file is
// closed by all that have it: it goes with the process, however that ends, and
// with the children that got it.
func (s *store) lock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := filelock.Lock(ctx, f, func() { fmt.Fprintln(s.out, "waiting for another process that makes images") }); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// build publishes under a name what fill puts into the empty directory that it
// gets. The lock must be held.
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

// stage is a directory of something half-made. Whoever made it has it until
// discard; the lock of the images may be another's meanwhile.
type stage struct {
	dir  string   // "" after it was published
	held *os.File // with a lock of its own, which goes with the process
}

// stage makes an empty one. The lock must be held. What interrupted builds left
// goes first.
func (s *store) stage() (*stage, error) {
	if err := s.sweep(); err != nil {
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

// discard removes the stage unless it was published. What stays, the next one sweeps.
func (st *stage) discard() {
	_ = os.RemoveAll(st.dir) // "" is allowed
	_ = st.held.Close()      // nil is allowed
}

// publish makes the stage appear under a name, whole. The lock must be held.
func (s *store) publish(st *stage, name string) error {
	// Closed until now: a half-made tree has programs that run as root.
	if err := os.Chmod(st.dir, 0o755); err != nil {
		return err
	}
	if err := durable.Publish(st.dir, filepath.Join(s.dir, name)); err != nil {
		return noSpace(err)
	}
	st.dir = "" // another may have that name now
	return nil
}

// sweep removes the stages that nobody has: of builds that were killed. The lock must be held.
func (s *store) sweep() error {
	left, err := filepath.Glob(filepath.Join(s.dir, stagePrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if heldStage(dir) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what an interrupted build left: %w", err)
		}
	}
	return nil
}

// heldStage says whether somebody has a stage; a link, which redirect makes under
// the lock, is nobody's.
func heldStage(dir string) bool {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(filelock.TryLock(f), filelock.ErrLocked)
}

// prune removes bases and guests that were not used for longest, and images
// that no name leads to, because a build was killed just before it got its name.
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

// needSpace says early that a build will not fit.
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

// noSpace gives a full disk its own sentence.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &wrenn.Error{Code: wrenn.Exhausted, Message: "no space left for the image in the state directory", Err: err}
	}
	return err
}
