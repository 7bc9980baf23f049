// Stage0 is the first program of a guest, /init in the initramfs: it loads the
// kernel modules listed in /modules, gives eth0 the address of the kernel's
// ip= parameter, mounts the root file system and runs its init.
//
// Every cold boot waits for it, and an emulated CPU translates each page of code
// that runs: so it uses package syscall, and neither os, fmt nor net.
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
	if err := mountKernel(); err != nil {
		return err
	}
	line, err := readFile("/proc/cmdline")
	if err != nil {
		return wrap("read /proc/cmdline", err)
	}
	args := parse(string(line))
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := stopPIT(); err != nil {
		complain(err) // the guest works; its timer costs the host some CPU time
	}
	if err := configureNetwork(args.ip); err != nil {
		complain(err) // a guest without a network still has a console
	}
	if err := enterRoot(args); err != nil {
		return err
	}
	mountRuntime(args.readOnly)
	return wrap("run "+args.init, syscall.Exec(args.init, []string{args.init}, environment))
}

// environment is init's environment. Stage0's own is not passed on, because the
// kernel adds the parameters that it does not know, such as ip=.
var environment = []string{
	"HOME=/root",
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"TERM=linux",
}

// complain writes to the console, which is standard error.
func complain(err error) {
	_, _ = syscall.Write(2, []byte("stage0: "+err.Error()+"\n"))
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
