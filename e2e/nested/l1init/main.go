// Command l1init is the first program of the nested test's virtual machine: it
// sets up a small Linux system with KVM, runs the plan on its disk and powers off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/e2e/nested/l1"
	"wrenn.dev/internal/image/initramfs"
)

func main() {
	if err := start(); err != nil {
		fmt.Println(l1.Fault, err) // on the console, which is the stdout of init
		report(l1.Fault + " " + err.Error())
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func start() error {
	for _, m := range early {
		if err := m.mount(); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	for _, m := range late {
		if err := m.mount(); err != nil {
			return err
		}
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return runPlan()
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// The initramfs has what loading modules and finding the disk needs.
var early = []mount{
	{"proc", "/proc", "proc", 0, ""},
	{"sysfs", "/sys", "sysfs", 0, ""},
	{"devtmpfs", "/dev", "devtmpfs", 0, ""},
}

// The rest is mounted in the disk's root. /tmp, with all files of the tests, is XFS,
// which can reflink.
var late = []mount{
	{"proc", "/proc", "proc", 0, ""},
	{"sysfs", "/sys", "sysfs", 0, ""},
	{"devtmpfs", "/dev", "devtmpfs", 0, ""},
	{"devpts", "/dev/pts", "devpts", 0, ""},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
	{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
	{"/dev/vdb", "/tmp", "xfs", 0, ""},
}

func (m mount) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	return nil
}

// loadModules loads what the initramfs lists, in that order.
func loadModules() error {
	list, err := os.ReadFile(initramfs.Manifest)
	if err != nil {
		return err
	}
	for path := range strings.Lines(string(list)) {
		path = strings.TrimSpace(path)
		if err := loadModule(path); err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
	}
	_, err = os.Stat("/dev/kvm")
	return err
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	params := ""
	if filepath.Base(path) == "kvm_amd.ko" {
		params = "nested=0" // L2 needs no KVM
	}
	err = unix.FinitModule(int(f.Fd()), params, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// switchRoot moves into the disk. The jailer calls pivot_root, which refuses
// when the root is the initramfs.
func switchRoot() error {
	if err := waitFor("/dev/vda", 10*time.Second); err != nil {
		return err
	}
	if err := (mount{"/dev/vda", "/root", "ext4", 0, ""}).mount(); err != nil {
		return err
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

// waitFor returns when path exists: a driver may find its devices only after the
// call that loads its module has returned.
func waitFor(path string, limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

func runPlan() error {
	data, err := os.ReadFile(l1.PlanPath)
	if err != nil {
		return err
	}
	var plan l1.Plan
	if err := json.Unmarshal(data, &plan); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	out, err := openResults()
	if err != nil {
		return err
	}
	defer out.Close()
	for _, p := range plan.Programs {
		say(out, "%s %s", l1.Begin, p.Name)
		code := run(p, out)
		say(out, "%s %s %d", l1.End, p.Name, code)
	}
	say(out, "%s ok", l1.Done)
	return drain(out)
}

// run runs a program and returns its exit code; 255 when it has none.
func run(p l1.Program, out io.Writer) int {
	cmd := exec.Command(p.Args[0], p.Args[1:]...) //nolint:noctx // its life is the machine's; the host has the deadline
	cmd.Dir = "/tmp"
	cmd.Env = append([]string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/", "TMPDIR=/tmp"}, p.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode()
	}
	if err != nil {
		say(out, "%v", err)
		return 255
	}
	return 0
}

// say writes a line to the results. When it is lost, the host sees that the plan was
// not completed.
func say(out io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(out, "\n"+format+"\n", args...)
}

// openResults opens the port for results, without a terminal's line endings.
// What comes in is dropped: the host only wants to interrupt (pokeEvery).
func openResults() (*os.File, error) {
	f, err := os.OpenFile(l1.Results, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l1.Results, err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	t.Cflag = t.Cflag&^(unix.CBAUD|unix.CRTSCTS|unix.CREAD) | unix.B115200 | unix.CLOCAL
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", l1.Results, err)
	}
	return f, nil
}

// report tries to write a line to the port for results.
func report(line string) {
	out, err := openResults()
	if err != nil {
		return
	}
	defer out.Close()
	say(out, "%s", line)
	_ = drain(out) // an error cannot be reported any more
}

// drain waits until the port has sent what was written; the power goes off next.
func drain(port *os.File) error {
	return unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1) // tcdrain(3)
}
