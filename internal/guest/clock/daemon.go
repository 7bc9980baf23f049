package clock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// Configurations of chronyd in a guest, which images are made with.
	ptpConfig = "/etc/chrony/chrony.conf"    // where there is KVM's clock
	ntpConfig = "/etc/chrony/wrenn-ntp.conf" // elsewhere: the host's clock by the network

	ptpDevice  = "/dev/ptp0"
	pidFile    = "/run/chrony/chronyd.pid"
	cgroupRoot = "/sys/fs/cgroup" // of programs that are neither the agent nor a user's
	lowest     = 19               // of setpriority(2)
)

// StartDaemon starts chronyd(8), which keeps the clock right from then on, and
// returns when it is ready. It does nothing where the image has none, or one runs.
//
// It is no part of wrenn-init because its start costs an emulated CPU 0.3 s, which
// a boot should not wait for: it has the lowest priority until it is ready.
func (Kernel) StartDaemon(ctx context.Context) error {
	config := ntpConfig
	if exists(ptpDevice) {
		config = ptpConfig
	}
	program, err := exec.LookPath("chronyd")
	if err != nil || !exists(config) || exists(pidFile) {
		return nil //nolint:nilerr // the time is then only as good as at the last start or restore
	}
	return startDaemon(ctx, program, config, pidFile)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// startDaemon runs a program that leaves a daemon behind when it ends, whose
// process id is in pidFile then.
func startDaemon(ctx context.Context, program, config, pidFile string) error {
	cmd := exec.CommandContext(ctx, program, "-f", config)
	cmd.Stderr = os.Stderr // the console; a pipe would be the daemon's, too
	var kind unix.Statfs_t
	if root, err := os.Open(cgroupRoot); err == nil { // not the agent's group
		defer root.Close()
		cgroup2 := unix.Fstatfs(int(root.Fd()), &kind) == nil && kind.Type == unix.CGROUP2_SUPER_MAGIC
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: cgroup2, CgroupFD: int(root.Fd())}
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start chronyd: %w", err)
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, lowest) // without it it is only in the way
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("start chronyd: %w", err)
	}
	return raise(pidFile)
}

// raise gives the process whose id is in the file the usual priority.
func raise(pidFile string) error {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return fmt.Errorf("chronyd's priority stays low: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil {
		err = unix.Setpriority(unix.PRIO_PROCESS, pid, 0)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("chronyd's priority stays low: %w", err)
	}
	return nil
}
