// Package storage stores the disks of sandboxes, on a file system that can make
// copy-on-write clones of them if the machine allows it.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/cmutex"
)

// Store is a directory for images, disks and snapshots in which clones are
// cheap if this machine allows it. It is safe for concurrent use. A Store with
// only a Dir is a plain directory.
type Store struct {
	// Dir is the directory for the files.
	Dir string
	// Note describes for people how clones are made, and what that costs.
	Note string

	image   string // the file with the store's own file system; "" for a plain directory
	sizes   sizes
	growing cmutex.Mutex // guards the image's size

	mu   sync.Mutex     // guards uses
	uses map[string]int // of images, by digest: see Import
}

// sizes are the parameters of an image's growth, in bytes.
type sizes struct {
	start   int64 // the size of a new image
	group   int64 // its size is a multiple of this: an allocation group of XFS
	step    int64 // the least that it grows by, if the host has the space
	mark    int64 // the space that Tend keeps free in it, for writes of guests between two calls
	reserve int64 // the space that it leaves free on the host's disk
}

// The image is fully preallocated: in a sparse file a full host would cause I/O
// errors inside the store. So it starts small.
var defaultSizes = sizes{start: 4 << 30, group: 1 << 30, step: 2 << 30, mark: 2 << 30, reserve: 2 << 30}

// The names in the state directory.
const (
	imageName = "store.xfs" // the store's own file system, where the host's cannot reflink
	mountName = "store"
)

// Open returns the store of the state directory dir, which it creates if
// necessary. If the host's file system cannot reflink, the store is an XFS file
// system in an image there, mounted until Close, that grows on demand; if that
// cannot be made either, clones are copies, and Note explains why. If an image
// exists but cannot be used, the error is FailedPrecondition and says what to do;
// Open never repairs it. One process at a time may have the store open.
func Open(ctx context.Context, dir string) (*Store, error) { return open(ctx, dir, defaultSizes) }

func open(ctx context.Context, dir string, sizes sizes) (*Store, error) {
	s, err := find(ctx, dir, sizes)
	if err != nil {
		return nil, err
	}
	if err := s.dropStaged(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// find finds the store of the state directory, or makes one.
func find(ctx context.Context, dir string, sizes sizes) (*Store, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	image := filepath.Join(dir, imageName)
	if _, err := os.Stat(image); err == nil { // a store in dir itself would lose the image's content
		s, err := openImage(ctx, dir, sizes)
		if err != nil {
			return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: unusable, Err: fmt.Errorf("%s: %w", image, err)}
		}
		return s, nil
	}
	if method, err := tryClone(dir); err == nil && method == Reflink {
		return &Store{Dir: dir, Note: "reflink clones on " + dir}, nil
	}
	if inUse(dir) { // a new image would not have the content of dir
		return &Store{Dir: dir, Note: fmt.Sprintf("copies, slow and large: %s cannot reflink, and it already has sandboxes or snapshots, from before an XFS store could be made. "+
			"To get an XFS store, destroy them, stop the agent, and remove %s, %s and %s there", dir, usedBy[0], usedBy[1], usedBy[2])}, nil
	}
	err := makeImage(ctx, image, sizes)
	if err == nil {
		var s *Store
		if s, err = openImage(ctx, dir, sizes); err == nil {
			return s, nil
		}
		err = errors.Join(err, os.Remove(image)) // it is empty
	}
	return &Store{Dir: dir, Note: fmt.Sprintf("copies, slow and large: %s cannot reflink, and %v", dir, err)}, nil
}

// usedBy are the directories that a host makes in a store.
var usedBy = [...]string{"sandboxes", "snapshots", importedDir}

// inUse reports whether dir itself is a store that is not empty, or may be one
// because it cannot be read.
func inUse(dir string) bool {
	for _, name := range usedBy {
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

const unusable = "the store of this host cannot be used; it is left as it is, with the sandboxes and snapshots in it. " +
	"Stop the processes that still use it, check it with `xfs_repair -n` (which changes nothing), and copy it before a repair with `xfs_repair`; " +
	"or move it away to begin with an empty store"

// Close unmounts the store that Open mounted. Running machines keep their files.
func (s *Store) Close() error {
	if s.image == "" || !mounted(s.Dir) {
		return nil
	}
	if err := unix.Unmount(s.Dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", s.Dir, err)
	}
	return nil
}

// tryClone writes and clones a file in dir, and returns how Clone did it.
func tryClone(dir string) (Method, error) {
	probe, err := os.MkdirTemp(dir, ".reflink-*")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(probe) }() // at worst it leaves a small directory
	src, dst := filepath.Join(probe, "src"), filepath.Join(probe, "dst")
	if err := os.WriteFile(src, make([]byte, 4096), 0o600); err != nil {
		return "", err
	}
	return Clone(context.Background(), dst, src, 0o600)
}

// openImage mounts the image, unless it is still mounted: after an agent was
// killed, or because machines of it run.
func openImage(ctx context.Context, dir string, sizes sizes) (*Store, error) {
	s := &Store{
		Dir: filepath.Join(dir, mountName), image: filepath.Join(dir, imageName), sizes: sizes,
	}
	s.Note = "reflink clones in " + s.image
	if err := os.MkdirAll(s.Dir, 0o711); err != nil {
		return nil, err
	}
	was := mounted(s.Dir)
	if !was {
		if err := mountLoop(s.image, s.Dir); err != nil {
			return nil, err
		}
	}
	if err := s.check(ctx); err != nil {
		if !was {
			err = errors.Join(err, s.Close())
		}
		return nil, err
	}
	return s, nil
}

// check returns an error if the file system has shut itself down after an error,
// or cannot reflink. A full one is not an error.
func (s *Store) check(ctx context.Context) error {
	method, err := tryClone(s.Dir)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return nil
	case err != nil:
		return err
	case method != Reflink:
		return errors.New("the file system cannot reflink")
	}
	return s.refill(ctx)
}

// mounted reports whether a file system other than that of dir's parent is
// mounted at dir.
func mounted(dir string) bool {
	var here, above unix.Stat_t
	return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

// makeImage makes the file system image, which gets its name when it is complete.
func makeImage(ctx context.Context, image string, sizes sizes) error {
	mkfs, err := exec.LookPath("mkfs.xfs")
	if err != nil {
		return wrenn.Errorf(wrenn.FailedPrecondition, "mkfs.xfs is missing (apt-get install xfsprogs)")
	}
	free, err := freeBytes(filepath.Dir(image))
	if err != nil {
		return err
	}
	if free < sizes.start+sizes.reserve {
		return wrenn.Errorf(wrenn.Exhausted, "a store of %d MiB does not fit: %d MiB are free", sizes.start>>20, free>>20)
	}
	staged := image + ".new"
	defer func() { _ = os.Remove(staged) }() // it was renamed unless there was an error
	f, err := os.OpenFile(staged, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(allocate(ctx, f, 0, sizes.start), f.Close()); err != nil {
		return err
	}
	// The size of allocation groups is fixed here: with this one a store that grew
	// a hundredfold has hundreds of groups, not thousands.
	args := []string{"-q", "-f", "-m", "reflink=1", "-d", "agsize=" + strconv.FormatInt(sizes.group, 10), staged}
	if out, err := exec.CommandContext(ctx, mkfs, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.xfs: %w: %.300s", err, out)
	}
	return os.Rename(staged, image)
}
