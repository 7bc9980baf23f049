package main

import "syscall"

// deviceTimeout is how long a disk may take to appear, also on a busy host.
const deviceTimeout = 30 // seconds

var errNoDevice = message("no such device, and none appeared in 30 s")

type message string

func (m message) Error() string { return string(m) }

// waitFor waits until the device file exists. The kernel's events for new devices
// wake it (netlink(7), NETLINK_KOBJECT_UEVENT).
func waitFor(device string) error {
	if exists(device) {
		return nil
	}
	events, err := uevents()
	if err != nil {
		return wrap("listen for devices", err)
	}
	defer release(events)
	buf := make([]byte, 4096)
	for start := now(); !exists(device); {
		if now()-start > deviceTimeout {
			return wrap("wait for "+device, errNoDevice)
		}
		_, _, _ = syscall.Recvfrom(events, buf, 0) // an event, or a second without one
	}
	return nil
}

func exists(path string) bool {
	var info syscall.Stat_t
	return syscall.Stat(path, &info) == nil
}

// now returns the uptime in seconds: no program can set that clock.
func now() int64 {
	var info syscall.Sysinfo_t
	_ = syscall.Sysinfo(&info) // fails for bad pointers only
	return info.Uptime
}

func uevents() (int, error) {
	const kernelGroup = 1
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, err
	}
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 1}); err != nil {
		release(fd)
		return -1, err
	}
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: kernelGroup}); err != nil {
		release(fd)
		return -1, err
	}
	return fd, nil
}

// release closes a descriptor that has no unwritten data, so an error would not
// matter.
func release(fd int) { _ = syscall.Close(fd) }
