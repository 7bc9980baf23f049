// Package volume stores volumes: directories of users that sandboxes mount, and that
// outlive them.
//
// A volume is an ext4 file system in a sparse file. So its size is its quota, its
// journal keeps it whole when the host crashes, and one volume's files can never be
// reached from another's. It is mounted on no directory of the host: a detached mount
// (fsmount(2)) has a file descriptor alone, and ends with the process, so that no
// crash leaves one. Guests reach it by package nfs.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/loop"
	"wrenn.dev/internal/volume/tree"
)

const (
	imageName = "volume.ext4"
	// stage begins the names of volumes that are being made or removed.
	stage = ".stage-"
)

// Store is a directory of volumes. One process at a time may use it. It is safe for
// concurrent use.
type Store struct {
	dir string

	mu      sync.Mutex // guards mounted, and the making and removing of volumes
	mounted map[wrenn.VolumeID]*mount
}

// mount is a mounted volume.
type mount struct {
	root  *os.File
	users int
}

// Open returns the store in dir, which it creates if necessary, and removes what a
// crash left of volumes that were being made or removed.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), stage) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return &Store{dir: dir, mounted: make(map[wrenn.VolumeID]*mount)}, nil
}

func (s *Store) path(id wrenn.VolumeID) string { return filepath.Join(s.dir, string(id)) }

// Create makes an empty volume whose root directory every user may write to. A volume
// that exists stays as it is.
func (s *Store) Create(ctx context.Context, id wrenn.VolumeID, sizeMiB int64) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exists(id) {
		return nil
	}
	staged, err := os.MkdirTemp(s.dir, stage)
	if err != nil {
		return fmt.Errorf("create volume: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create volume: %w", err), os.RemoveAll(staged))
		}
	}()
	if err := format(ctx, filepath.Join(staged, imageName), sizeMiB); err != nil {
		return err
	}
	return durable.Publish(staged, s.path(id))
}

func (s *Store) exists(id wrenn.VolumeID) bool {
	_, err := os.Lstat(s.path(id))
	return err == nil
}

// format makes a file with an empty file system.
func format(ctx context.Context, path string, sizeMiB int64) error {
	image, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer image.Close()
	if err := image.Truncate(sizeMiB << 20); err != nil {
		return err
	}
	// No blocks are reserved for root: programs in guests may be root. The inode tables are
	// written when they are used; a journal of the usual size would take a gigabyte.
	args := []string{"-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"}
	if sizeMiB > 1<<10 {
		args = append(args, "-J", "size=32")
	}
	out, err := exec.CommandContext(ctx, "mke2fs", append(args, path)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs: %w: %.300s", err, out)
	}
	root, err := attach(image)
	if err != nil {
		return err
	}
	defer root.Close()
	// e2fsck, the only user of lost+found, makes it again when it needs it.
	if err := unix.Unlinkat(int(root.Fd()), "lost+found", unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("new volume: %w", err)
	}
	if err := root.Chmod(0o777); err != nil {
		return err
	}
	return root.Sync()
}

// attach mounts the file system in a file on no directory, and returns its root. The
// mount ends when the root is closed and nothing in it is open.
func attach(image *os.File) (*os.File, error) {
	device, err := loop.Attach(image)
	if err != nil {
		return nil, err
	}
	defer device.Close() // it stays attached while it is mounted
	context, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer func() { _ = unix.Close(context) }() // holds no data
	if err := unix.FsconfigSetString(context, "source", device.Name()); err != nil {
		return nil, fmt.Errorf("fsconfig: %w", err)
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, fmt.Errorf("mount volume: %w", err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // the root holds the mount
	root, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	return os.NewFile(uintptr(root), "volume"), nil
}

// Mount returns the root directory of a volume, which the caller must not close, and
// a function that gives it back; twice is allowed. NotFound if it does not exist.
func (s *Store) Mount(id wrenn.VolumeID) (root *os.File, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.mounted[id]
	if m == nil {
		if m, err = s.mount(id); err != nil {
			return nil, nil, err
		}
		s.mounted[id] = m
	}
	m.users++
	return m.root, sync.OnceFunc(func() { s.release(id, m) }), nil
}

func (s *Store) mount(id wrenn.VolumeID) (*mount, error) {
	image, err := os.OpenFile(filepath.Join(s.path(id), imageName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no volume %s on this host", id)
	}
	if err != nil {
		return nil, fmt.Errorf("mount volume: %w", err)
	}
	defer image.Close()
	root, err := attach(image)
	if err != nil {
		return nil, err
	}
	return &mount{root: root}, nil
}

// release ends a use of a volume, and its mount with the last one.
func (s *Store) release(id wrenn.VolumeID, m *mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.users--; m.users == 0 {
		delete(s.mounted, id)
		_ = m.root.Close() // a directory has no data that could be lost
	}
}

// Delete removes a volume. FailedPrecondition while it is mounted; a volume that does
// not exist is no error.
func (s *Store) Delete(id wrenn.VolumeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted[id] != nil {
		return wrenn.Errorf(wrenn.FailedPrecondition, "volume %s is in use by a sandbox or a transfer of files: delete the sandbox first", id)
	}
	if !s.exists(id) {
		return nil
	}
	gone := filepath.Join(s.dir, stage+string(id))
	if err := os.Rename(s.path(id), gone); err != nil {
		return fmt.Errorf("delete volume: %w", err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("delete volume: %w", err)
	}
	return nil
}

// List returns the ids of all volumes, in no order.
func (s *Store) List() ([]wrenn.VolumeID, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var ids []wrenn.VolumeID
	for _, entry := range entries {
		if id, err := wrenn.ParseVolumeID(entry.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Files returns the files of a volume, and a function that gives them back, which the
// caller calls when nothing of them is used any more. NotFound if it does not exist.
func (s *Store) Files(id wrenn.VolumeID) (files *tree.Tree, release func(), err error) {
	root, unmount, err := s.Mount(id)
	if err != nil {
		return nil, nil, err
	}
	if files, err = tree.Open(root); err != nil {
		unmount()
		return nil, nil, err
	}
	return files, func() {
		_ = files.Close() // a directory has no data that could be lost
		unmount()
	}, nil
}
