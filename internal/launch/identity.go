package launch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Identity distinguishes a process from every other, also from a later one with
// the same PID and from one of another boot of this host.
type Identity struct {
	PID int
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64
	BootID    string
}

// identify returns the identity of the process that has the PID now.
func identify(pid int) (Identity, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Identity{}, err
	}
	start, err := startTime(stat)
	if err != nil {
		return Identity{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, StartTime: start, BootID: strings.TrimSpace(string(boot))}, nil
}

// startTime returns field 22 of a stat line. Field 2, the name, may contain blanks
// and parentheses: the fields are counted after the last one. See proc_pid_stat(5).
func startTime(stat []byte) (uint64, error) {
	_, rest, found := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(") "))
	fields := strings.Fields(string(rest)) // the first is field 3
	if !found || len(fields) < 20 {
		return 0, errors.New("not a stat line")
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// pollable makes a file of a pidfd for the runtime's poller, so that waiting takes
// no thread. It owns fd, also if it fails.
func pollable(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd) // the first error is the one that counts
		return nil, fmt.Errorf("pidfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// awaitExit returns when the process of the pidfd has exited: a pidfd is
// readable from then on, see pidfd_open(2).
func awaitExit(pidfd *os.File) {
	conn, err := pidfd.SyscallConn()
	if err == nil {
		err = conn.Read(func(fd uintptr) bool { return readable(int(fd)) })
	}
	if err != nil { // the poller cannot: wait with a thread
		_ = withFD(pidfd, func(fd int) error {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			return err
		})
	}
}

func hasExited(pidfd *os.File) bool {
	exited := true
	_ = withFD(pidfd, func(fd int) error { // closed is exited
		exited = readable(fd)
		return nil
	})
	return exited
}

func readable(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// withFD calls fn with the file's descriptor. The descriptor stays open during the
// call, and its mode does not change.
func withFD(f *os.File, fn func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := conn.Control(func(fd uintptr) { result = fn(int(fd)) }); err != nil {
		return err
	}
	return result
}
