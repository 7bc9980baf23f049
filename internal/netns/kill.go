package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// killPasses bounds how often Kill looks again for processes that its victims
// have started since.
const killPasses = 10

// Kill ends every process in the network namespace at path with SIGKILL, waits
// until they are gone, and returns how many there were. It spares the caller's
// own process. It is for namespaces that belong to one machine each: a process
// that runs there and is in no journal is one that a killed agent started last.
func Kill(ctx context.Context, path string) (int, error) {
	target, err := Open(path)
	if err != nil {
		return 0, err
	}
	defer target.Close()
	killed := 0
	for range killPasses {
		n, err := killPass(ctx, target)
		killed += n
		if err != nil || n == 0 {
			return killed, err
		}
	}
	return killed, fmt.Errorf("processes keep appearing in network namespace %s", path)
}

func killPass(ctx context.Context, target *os.File) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	killed := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		was, err := killIn(ctx, pid, target)
		if err != nil {
			return killed, fmt.Errorf("kill process %d: %w", pid, err)
		}
		if was {
			killed++
		}
	}
	return killed, nil
}

// killIn kills the process if its main thread is in the target namespace. It
// opens the pidfd first, so that the process that it checks is the one it kills.
func killIn(ctx context.Context, pid int, target *os.File) (bool, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, nil // it has ended
	}
	defer func() { _ = unix.Close(fd) }()
	if !inside(pid, target) {
		return false, nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); errors.Is(err, unix.ESRCH) {
		return false, nil // a zombie, or it has ended since
	} else if err != nil {
		return false, err
	}
	return true, waitGone(ctx, fd)
}

func inside(pid int, target *os.File) bool {
	var theirs, wanted unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &theirs) == nil &&
		unix.Fstat(int(target.Fd()), &wanted) == nil &&
		theirs.Dev == wanted.Dev && theirs.Ino == wanted.Ino
}

// waitGone returns when the process of the pidfd has ended.
func waitGone(ctx context.Context, pidfd int) error {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 100) // ms, so that ctx is seen
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}
