package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// inode identifies a namespace, see namespaces(7).
type inode struct{ dev, ino uint64 }

// Processes returns, by path, the processes whose main thread is in one of the
// network namespaces. Paths without a namespace or without processes are absent.
// A process that starts during the call may be missed. It needs the right to
// inspect other users' processes.
func Processes(paths []string) (map[string][]int, error) {
	wanted := map[inode]string{}
	for _, path := range paths {
		at, err := inodeOf(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect network namespace: %w", err)
		}
		wanted[at] = path
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	found := map[string][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		at, err := inodeOf("/proc/" + e.Name() + "/ns/net")
		if err != nil {
			continue // it has ended: a zombie has no namespaces
		}
		if path, ok := wanted[at]; ok {
			found[path] = append(found[path], pid)
		}
	}
	return found, nil
}

func inodeOf(path string) (inode, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return inode{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return inode{stat.Dev, stat.Ino}, nil
}
