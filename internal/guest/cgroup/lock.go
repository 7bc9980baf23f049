package cgroup

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockCode keeps the pages of this program's file in memory once they were used.
// They were first used before the program moved to its group, so the group does not
// protect them, and without them it does not answer when memory is short.
func lockCode() error {
	path, err := os.Executable()
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		begin, end, ok := mappingOf(line, path)
		if !ok {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK2, begin, end-begin, unix.MLOCK_ONFAULT); errno != 0 {
			return fmt.Errorf("mlock2: %w", errno)
		}
	}
	return nil
}

// mappingOf returns the addresses of a line of proc_pid_maps(5) if it maps the file at path.
func mappingOf(line, path string) (begin, end uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || strings.Join(fields[5:], " ") != path {
		return 0, 0, false
	}
	first, second, _ := strings.Cut(fields[0], "-")
	b, errBegin := strconv.ParseUint(first, 16, 64)
	e, errEnd := strconv.ParseUint(second, 16, 64)
	return uintptr(b), uintptr(e), errBegin == nil && errEnd == nil && b < e
}
