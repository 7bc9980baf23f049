package qemu

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"wrenn.dev/internal/vm"
)

// fileID identifies a memory file and the version of its content. Manifests contain
// it, so it has no device number: that may differ after each mount.
type fileID struct {
	Path  string `json:"path"`
	Inode uint64 `json:"inode"`
	Mtime int64  `json:"mtime"` // ns
}

func idOf(f *os.File) (fileID, error) {
	info, err := f.Stat()
	if err != nil {
		return fileID{}, err
	}
	return fileID{Path: f.Name(), Inode: info.Sys().(*syscall.Stat_t).Ino, Mtime: info.ModTime().UnixNano()}, nil
}

// open returns the file, unless it no longer exists or has changed. The caller
// closes it.
func (id fileID) open(size int64) (*os.File, error) {
	f, err := vm.OpenSized(id.Path, size)
	if err != nil {
		return nil, err
	}
	now, err := idOf(f)
	if err == nil && now != id {
		err = errors.New("the file has changed")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", id.Path, err)
	}
	return f, nil
}

// fileKey identifies a file for as long as a process has it open.
type fileKey struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

func keyOf(f *os.File) (fileKey, error) {
	info, err := f.Stat()
	if err != nil {
		return fileKey{}, err
	}
	return keyOfStat(info.Sys().(*syscall.Stat_t)), nil
}

func keyOfStat(stat *syscall.Stat_t) fileKey {
	return fileKey{Device: stat.Dev, Inode: stat.Ino}
}
