package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn"
)

// Store is a directory for images, disks and snapshots in which clones are
// cheap if this machine allows it.
type Store struct {
	// Dir is where the files go.
	Dir string
	// Note says how Dir came to be and what that means for speed, for people.
	Note string

	mounted bool
}

// The names in the state directory.
const (
	imageName = "store.xfs" // the file system of our own, where the host's cannot reflink
	mountName = "store"
)

// imageSize is preallocated: a sparse file would turn a full host into I/O
// errors inside the store.
const imageSize = 6 << 30

// leaveFree is what the store's image must leave to the host.
const leaveFree = 2 << 30

// Open returns the store of the state directory dir, which it makes. If the
// host's file system cannot reflink, the store is an XFS file system of its own
// in an image there, mounted until Close; if that cannot be had either, clones
// are copies, and Note says so. An image that is there but cannot be mounted is
// an error. One process at a time may have it open.
func Open(ctx context.Context, dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if canReflink(dir) {
		return &Store{Dir: dir, Note: "reflink clones on " + dir}, nil
	}
	s, err := openImage(ctx, dir)
	if err != nil {
		// What is in an image that was made before is not in dir: to go on there
		// would be to lose it.
		if _, missing := os.Stat(filepath.Join(dir, imageName)); missing == nil {
			return nil, fmt.Errorf("open the store in %s: %w", dir, err)
		}
		return &Store{Dir: dir, Note: fmt.Sprintf("copies: %s cannot reflink, and %v", dir, err)}, nil
	}
	return s, nil
}

// Close unmounts what Open mounted. Machines that still run keep their files.
func (s *Store) Close() error {
	if !s.mounted {
		return nil
	}
	s.mounted = false
	if err := unix.Unmount(s.Dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", s.Dir, err)
	}
	return nil
}

// canReflink tries it.
func canReflink(dir string) bool {
	probe, err := os.MkdirTemp(dir, ".reflink-*")
	if err != nil {
		return false
	}
	defer func() { _ = os.RemoveAll(probe) }() // an empty directory at worst
	src, dst := filepath.Join(probe, "src"), filepath.Join(probe, "dst")
	if err := os.WriteFile(src, make([]byte, 4096), 0o600); err != nil {
		return false
	}
	method, err := Clone(context.Background(), dst, src, 0o600)
	return err == nil && method == Reflink
}

func openImage(ctx context.Context, dir string) (*Store, error) {
	image, mount := filepath.Join(dir, imageName), filepath.Join(dir, mountName)
	if err := os.MkdirAll(mount, 0o711); err != nil {
		return nil, err
	}
	s := &Store{Dir: mount, Note: "reflink clones in " + image, mounted: true}
	if mounted(mount) { // an agent was killed, or machines of it still run
		return s, nil
	}
	if err := makeImage(ctx, image); err != nil {
		return nil, err
	}
	if err := mountLoop(image, mount); err != nil {
		return nil, err
	}
	return s, nil
}

// mounted says whether something other than dir's parent is mounted there.
func mounted(dir string) bool {
	var here, above unix.Stat_t
	return unix.Stat(dir, &here) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

// makeImage makes the file system image unless it is there; it appears under
// its name when it is whole.
func makeImage(ctx context.Context, image string) error {
	if _, err := os.Stat(image); err == nil {
		return nil
	}
	mkfs, err := exec.LookPath("mkfs.xfs")
	if err != nil {
		return wrenn.Errorf(wrenn.FailedPrecondition, "mkfs.xfs is missing (apt-get install xfsprogs)")
	}
	staged := image + ".new"
	defer func() { _ = os.Remove(staged) }() // gone already when all went well
	if err := preallocate(staged, imageSize); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, mkfs, "-q", "-f", "-m", "reflink=1", staged).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.xfs: %w: %.300s", err, out)
	}
	return os.Rename(staged, image)
}

func preallocate(path string, size int64) error {
	var free unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &free); err != nil {
		return err
	}
	if have := int64(free.Bavail) * free.Bsize; have < size+leaveFree {
		return wrenn.Errorf(wrenn.Exhausted, "a store of %d GiB does not fit: %d GiB are free", size>>30, have>>30)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close())
}

// mountLoop mounts the image at dir. The loop device goes away with the mount.
func mountLoop(image, dir string) error {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer backing.Close()
	loop, err := attachedLoop(backing)
	if loop == nil && err == nil {
		loop, err = attachLoop(backing)
	}
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	defer loop.Close() // autoclear: it stays while it is mounted
	if err := unix.Mount(loop.Name(), dir, "xfs", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", image, err)
	}
	return nil
}

// attachedLoop returns the loop device that has the file already, nil if none
// does. The file system is still mounted then, in the mount namespace of some
// process that is older than our unmounting; a second device would show it the same
// blocks behind its back, which XFS refuses.
func attachedLoop(backing *os.File) (*os.File, error) {
	var file unix.Stat_t
	if err := unix.Fstat(int(backing.Fd()), &file); err != nil {
		return nil, err
	}
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file") // those in use
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		name := filepath.Base(filepath.Dir(filepath.Dir(device)))
		loop, err := os.OpenFile(filepath.Join("/dev", name), os.O_RDWR, 0)
		if err != nil {
			continue // detached meanwhile
		}
		// An open device is not detached, so what it says stays true.
		info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
		if err == nil && info.Device == file.Dev && info.Inode == file.Ino {
			return loop, nil
		}
		loop.Close()
	}
	return nil, nil
}

// attachLoop finds a free loop device and gives it the file, see loop(4).
func attachLoop(backing *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, syscall.EBUSY) { // somebody took it between the two calls
			return nil, err
		}
	}
}
