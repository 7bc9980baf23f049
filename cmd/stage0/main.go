// Stage0 is the first program of a guest, /init in the initramfs: it loads the
// kernel modules listed in /modules, gives eth0 the address of the kernel's
// ip= parameter, mounts the root file system and runs its init.
//
// It lies on the path of every cold boot, where an emulated CPU translates each
// page of code that runs: hence package syscall, and neither os, fmt nor net.
package main

import "syscall"

func main() {
	if err := boot(); err != nil {
		die(err)
	}
}

// failure is an error with what was being done: fmt.Errorf without fmt.
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
		complain(err) // it costs the host a little
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

// environment is all that init gets: the kernel turns parameters that it does
// not know, ip= among them, into variables.
var environment = []string{
	"HOME=/root",
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"TERM=linux",
}

// complain writes to the console, which is standard error.
func complain(err error) {
	_, _ = syscall.Write(2, []byte("stage0: "+err.Error()+"\n"))
}

// die says why and resets the machine, which ends a VMM that was told not to
// reboot. Returning instead would end in a kernel panic whose trace pushes the
// reason off the end of the console.
func die(err error) {
	complain(err)
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	syscall.Exit(1)
}
