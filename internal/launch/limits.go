package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Limits are resource limits of a process, see setrlimit(2). A zero is no limit of
// ours. No process dumps core.
type Limits struct {
	// Tasks are the threads and processes of its user.
	Tasks uint64
	// Files are its open file descriptors.
	Files uint64
	// FileBytes is how large it can make a file.
	FileBytes uint64
	// MemoryBytes is the size of its address space.
	MemoryBytes uint64
	// CPUSeconds is the CPU time after which the kernel kills it.
	CPUSeconds uint64
}

// limit sets the limits of a process that has just started as cmd says.
func limit(pid int, cmd Command) error {
	err := cmd.Limits.apply(pid)
	if errors.Is(err, unix.EPERM) && cmd.UID != 0 {
		err = OnThread(func() error { return cmd.Limits.applyAs(pid, int(cmd.UID), int(cmd.GID)) })
	}
	if err != nil {
		return fmt.Errorf("limit resources: %w", err)
	}
	return nil
}

func (l Limits) apply(pid int) error {
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
		return err
	}
	for resource, most := range map[int]uint64{
		unix.RLIMIT_NPROC: l.Tasks, unix.RLIMIT_NOFILE: l.Files, unix.RLIMIT_FSIZE: l.FileBytes,
		unix.RLIMIT_AS: l.MemoryBytes, unix.RLIMIT_CPU: l.CPUSeconds,
	} {
		if most == 0 {
			continue
		}
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: most, Max: most}, nil); err != nil {
			return err
		}
	}
	return nil
}

// applyAs sets the limits by the rights of the process's own user, where root has no
// CAP_SYS_RESOURCE, as in many containers. It changes the user of the calling thread,
// which must end afterwards; package syscall would change that of all threads.
func (l Limits) applyAs(pid, uid, gid int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return errno
	}
	return l.apply(pid)
}

// killFirst is the oom_score_adj of every process that is started here. The agent's
// own is negative where systemd protects it, and would be inherited: then the kernel,
// short of memory, would kill the host's databases before a sandbox.
const killFirst = 500

// yieldMemory makes a process one of the first that the kernel kills when the host is
// short of memory. It does nothing for a process that has ended.
func yieldMemory(pid int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(killFirst)), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// closeOnExec marks every descriptor of this process, so that a child gets those of
// its Command only. This process may itself have inherited some that nothing marked.
func closeOnExec() error {
	err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	entries, err := os.ReadDir("/proc/self/fd") // Linux before 5.11
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd) // the directory's own is closed by now
		}
	}
	return nil
}
