// Stage0 is PID 1 of a guest until tini takes over. As /init in the initramfs it
// loads the kernel modules listed in /modules, gives eth0 the address of the
// kernel's ip= parameter and mounts the root file system. Then it sets up what a
// usual init gives a system, and runs the agent; docs/guest-image.md lists the
// results. A kernel without an initramfs runs it as /usr/local/bin/wrenn-init, for
// the second part alone.
//
// Every cold boot waits for it, and an emulated CPU translates each page of code
// that runs: so it uses package syscall, and neither os, fmt nor net, and runs no
// programs. It must work whatever the root file system has or lacks.
package main

import "syscall"

func main() {
	if err := boot(); err != nil {
		die(err)
	}
}

// failure is an error with the step that failed: fmt.Errorf without fmt.
type failure struct {
	doing string
	cause error
}

func (f *failure) Error() string { return f.doing + ": " + f.cause.Error() }

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return &failure{doing, err}
}

// boot returns only when it fails.
func boot() error {
	if !inInitramfs() {
		program = "wrenn-init"
		mountMissing()
		return runAgent()
	}
	args, err := leaveInitramfs()
	if err != nil {
		return err
	}
	if !args.readOnly {
		emptyTmp()
	}
	mountRuntime("")
	if args.init == ownPath {
		return runAgent()
	}
	return wrap("run "+args.init, syscall.Exec(args.init, []string{args.init}, environment))
}

// inInitramfs reports whether the root is the kernel's first, in memory.
func inInitramfs() bool {
	const ramfs, tmpfs = 0x858458f6, 0x01021994 // statfs(2)
	var info syscall.Statfs_t
	err := syscall.Statfs("/", &info)
	return err == nil && (info.Type == ramfs || info.Type == tmpfs)
}

// leaveInitramfs does what the initramfs is for, and makes the guest's disk the root.
func leaveInitramfs() (arguments, error) {
	if err := mountKernel(); err != nil {
		return arguments{}, err
	}
	line, err := readFile("/proc/cmdline")
	if err != nil {
		return arguments{}, wrap("read /proc/cmdline", err)
	}
	args := parse(string(line))
	if err := loadModules("/modules"); err != nil {
		return args, err
	}
	if err := stopPIT(); err != nil {
		complain(err) // the guest works; its timer costs the host some CPU time
	}
	if err := configureNetwork(args.ip); err != nil {
		complain(err) // a guest without a network still has a console
	}
	return args, enterRoot(args)
}

// environment is init's environment. Stage0's own is not passed on, because the
// kernel adds the parameters that it does not know, such as ip=.
var environment = []string{
	"HOME=/root",
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"TERM=linux",
}

// program is what complain says that this is.
var program = "stage0"

// complain writes to the console, which is standard error.
func complain(err error) {
	if err != nil {
		_, _ = syscall.Write(2, []byte(program+": "+err.Error()+"\n"))
	}
}

// die prints the error and resets the machine, which ends a VMM that was started
// without reboots. Returning instead would cause a kernel panic, whose trace would
// scroll the error off the console.
func die(err error) {
	complain(err)
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	syscall.Exit(1)
}
