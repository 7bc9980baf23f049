// Package storage keeps the disks of sandboxes.
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

	"wrenn"
	"wrenn/internal/cmutex"
)

// Store is a directory for images, disks and snapshots in which clones are
// cheap if this machine allows it. It is safe for concurrent use. A Store that
// has nothing but a Dir is a plain directory.
type Store struct {
	// Dir is where the files go.
	Dir string
	// Note says how Dir came to be and what that means for speed, for people.
	Note string

	image   string // the file with the store's own file system; "" for a plain directory
	sizes   sizes
	growing cmutex.Mutex // guards the size of the image

	mu   sync.Mutex     // guards uses
	uses map[string]int // of images, by digest: see Import
}

// sizes say how an image grows.
type sizes struct {
	start   int64 // of a new one
	group   int64 // its size is a multiple of this: an allocation group of XFS
	step    int64 // the least that it grows by, if the host has it
	mark    int64 // what Tend keeps free in it
	reserve int64 // what it leaves to the host
}

// The image is preallocated, all of it: a sparse file would turn a full host
// into I/O errors inside the store. So it starts small. Guests have written
// what lies between two looks of Tend before anybody can grow it: see mark.
var defaultSizes = sizes{start: 4 << 30, group: 1 << 30, step: 2 << 30, mark: 2 << 30, reserve: 2 << 30}

// The names in the state directory.
const (
	imageName = "store.xfs" // the file system of our own, where the host's cannot reflink
	mountName = "store"
)

// Open returns the store of the state directory dir, which it makes. If the
// host's file system cannot reflink, the store is an XFS file system of its own
// in an image there, mounted until Close, that grows on demand; if that cannot
// be had either, clones are copies, and Note says so. An image that is there but
// cannot be used is an error that says what to do: FailedPrecondition. It is never repaired
// here. One process at a time may have it open.
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
	if _, err := os.Stat(image); err == nil { // what is in it is not in dir: to go on there would be to lose it
		s, err := openImage(ctx, dir, sizes)
		if err != nil {
			return nil, &wrenn.Error{Code: wrenn.FailedPrecondition, Message: unusable, Err: fmt.Errorf("%s: %w", image, err)}
		}
		return s, nil
	}
	if method, err := tryClone(dir); err == nil && method == Reflink {
		return &Store{Dir: dir, Note: "reflink clones on " + dir}, nil
	}
	if inUse(dir) { // a store of its own would begin without what is here
		return &Store{Dir: dir, Note: fmt.Sprintf("copies, slow and large: %s cannot reflink, and sandboxes or snapshots are in it already, from a time when a store of its own could not be made. "+
			"To have one, destroy them, stop the agent, and remove %s, %s and %s there", dir, usedBy[0], usedBy[1], usedBy[2])}, nil
	}
	err := makeImage(ctx, image, sizes)
	if err == nil {
		var s *Store
		if s, err = openImage(ctx, dir, sizes); err == nil {
			return s, nil
		}
		err = errors.Join(err, os.Remove(image)) // nothing is in it yet
	}
	return &Store{Dir: dir, Note: fmt.Sprintf("copies, slow and large: %s cannot reflink, and %v", dir, err)}, nil
}

// usedBy are the directories that hosts have in a store.
var usedBy = [...]string{"sandboxes", "snapshots", importedDir}

// inUse says whether dir itself is a store with something in it. One that cannot be read may be.
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
	"Stop what still uses it, look at it by `xfs_repair -n` (which changes nothing), copy it before a repair by `xfs_repair`; " +
	"or move it away to begin anew"

// Close unmounts what Open mounted. Machines that still run keep their files.
func (s *Store) Close() error {
	if s.image == "" || !mounted(s.Dir) {
		return nil
	}
	if err := unix.Unmount(s.Dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", s.Dir, err)
	}
	return nil
}

// tryClone writes and clones a file in dir, and says how that was done.
func tryClone(dir string) (Method, error) {
	probe, err := os.MkdirTemp(dir, ".reflink-*")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(probe) }() // an empty directory at worst
	src, dst := filepath.Join(probe, "src"), filepath.Join(probe, "dst")
	if err := os.WriteFile(src, make([]byte, 4096), 0o600); err != nil {
		return "", err
	}
	return Clone(context.Background(), dst, src, 0o600)
}

// openImage mounts the image, unless an agent was killed or machines of it
// still run: then it is mounted.
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

// check finds a file system that has shut itself down after an error, or that
// is not what it was. One that is full is none of these.
func (s *Store) check(ctx context.Context) error {
	method, err := tryClone(s.Dir)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return nil
	case err != nil:
		return err
	case method != Reflink:
		return errors.New("it cannot reflink")
	}
	return s.refill(ctx)
}

// mounted says whether something other than dir's parent is mounted there.
func mounted(dir string) bool {
	var here, above unix.Stat_t
	return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

// makeImage makes the file system image; it appears under its name when it is whole.
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
	defer func() { _ = os.Remove(staged) }() // gone already when all went well
	f, err := os.OpenFile(staged, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(allocate(ctx, f, 0, sizes.start), f.Close()); err != nil {
		return err
	}
	// The groups of the beginning are those of the end: a store that grew a
	// hundredfold has a hundred of a size that serves, and not thousands.
	args := []string{"-q", "-f", "-m", "reflink=1", "-d", "agsize=" + strconv.FormatInt(sizes.group, 10), staged}
	if out, err := exec.CommandContext(ctx, mkfs, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.xfs: %w: %.300s", err, out)
	}
	return os.Rename(staged, image)
}
