package identity

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxRegistrations bounds how many files one restore looks at.
	maxRegistrations = 4096
	// maxSignalName bounds what is read of a registration, in bytes.
	maxSignalName = 32
)

// notify signals the processes that registered. Registrations of processes that
// have ended are removed.
func (k *Keeper) notify() {
	if k.registered.isEmpty() { // nearly always
		return
	}
	dir, err := os.OpenRoot(filepath.Join(k.cfg.RunDir, notifyDir))
	if err != nil {
		k.cfg.Log.Warn("no program is told of the restore", slog.Any("err", err))
		return
	}
	defer func() { _ = dir.Close() }() // nothing was written
	list, err := dir.Open(".")
	if err != nil {
		return
	}
	names, _ := list.Readdirnames(maxRegistrations) // what was read counts
	list.Close()
	for _, name := range names {
		err := k.notifyOne(dir, name)
		switch {
		case errors.Is(err, errGone):
			_ = dir.Remove(name) // or it is a directory, and stays
		case err != nil:
			k.cfg.Log.Warn("a program is not told of the restore", slog.String("registration", name), slog.Any("err", err))
		}
	}
}

// errGone means that the process of a registration has ended.
var errGone = errors.New("nobody holds the registration's lock")

// notifyOne signals the process that a registration names, if that is safe. Most
// signals end a program that does not expect them, so it is sent only to a process
//   - that holds the file locked: the kernel drops the lock when the process
//     ends, so that a pid that is used again is never signaled;
//   - that belongs to the file's owner, else a user could signal others;
//   - that catches the signal.
func (k *Keeper) notifyOne(dir *os.Root, name string) error {
	pid, err := strconv.ParseUint(name, 10, 31)
	if err != nil || pid < 2 {
		return errors.New("its name is no pid")
	}
	f, err := dir.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a file")
	}
	if !locked(f) {
		return errGone
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSignalName))
	if err != nil {
		return err
	}
	signal, err := parseSignal(strings.TrimSpace(string(raw)))
	if err != nil {
		return err
	}
	if err := checkTarget(int(pid), signal, info.Sys().(*syscall.Stat_t).Uid); err != nil {
		return err
	}
	return k.cfg.Machine.Signal(int(pid), signal)
}

// locked reports whether a process holds a lock on the file, by flock(2) or fcntl(2).
func locked(f *os.File) bool {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Is(err, unix.EWOULDBLOCK)
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // closing does it too
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock)
	return err == nil && lock.Type != unix.F_UNLCK
}

// parseSignal knows names with and without SIG, and numbers, for real-time signals.
func parseSignal(s string) (int, error) {
	const last = 64 // _NSIG of Linux
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= last {
		return n, nil
	}
	if n := unix.SignalNum("SIG" + strings.TrimPrefix(s, "SIG")); n != 0 {
		return int(n), nil
	}
	return 0, fmt.Errorf("%q is no signal: write a name such as USR1", s)
}

// checkTarget reads /proc/PID/status (proc_pid_status(5)).
func checkTarget(pid, signal int, owner uint32) error {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return errGone // the lock is a child's, or another process's
	}
	uid, caught := uint64(1<<32), uint64(0)
	for line := range strings.Lines(string(raw)) {
		switch name, rest, _ := strings.Cut(strings.TrimSpace(line), ":"); name {
		case "Uid": // real, effective, saved, file system
			if fields := strings.Fields(rest); len(fields) > 0 {
				uid, err = strconv.ParseUint(fields[0], 10, 32)
			}
		case "SigCgt": // bit 0 is signal 1
			caught, err = strconv.ParseUint(strings.TrimSpace(rest), 16, 64)
		}
		if err != nil {
			return fmt.Errorf("/proc/%d/status: %w", pid, err)
		}
	}
	switch {
	case owner != 0 && uid != uint64(owner):
		return fmt.Errorf("process %d is another user's", pid)
	case caught&(1<<(signal-1)) == 0:
		return fmt.Errorf("process %d does not catch signal %d", pid, signal)
	}
	return nil
}
