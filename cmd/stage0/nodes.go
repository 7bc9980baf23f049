package main

import "syscall"

// nodes are device files: when one is opened, the kernel loads its module. They
// are those of Debian's `kmod static-nodes` that are useful in a guest, with the
// modes that udev gives them. All users may make FUSE file systems, and tunnels in
// their network namespaces.
var nodes = []struct {
	path         string
	mode         uint32
	major, minor int
}{
	{"/dev/fuse", 0o666, 10, 229},
	{"/dev/net/tun", 0o666, 10, 200},
	{"/dev/loop-control", 0o660, 10, 237},
	{"/dev/mapper/control", 0o600, 10, 236},
	{"/dev/btrfs-control", 0o660, 10, 234},
	{"/dev/ppp", 0o600, 108, 0},
}

// makeNodes makes the nodes. An error costs the guest a device but not its boot.
func makeNodes() {
	for _, dir := range []string{"/dev/net", "/dev/mapper"} {
		_ = syscall.Mkdir(dir, 0o755)
	}
	for _, n := range nodes {
		err := syscall.Mknod(n.path, syscall.S_IFCHR|n.mode, n.major<<8|n.minor) // makedev(3) of small numbers
		if err == nil || err == syscall.EEXIST {                                 // made by the kernel, with access only for root
			err = syscall.Chmod(n.path, n.mode) // Mknod applies the umask
		}
		if err != nil {
			complain(wrap("make "+n.path, err))
		}
	}
}

// openNodes gives the nodes that the kernel made their modes.
func openNodes() {
	for _, n := range nodes {
		if exists(n.path) {
			complain(wrap("allow access to "+n.path, syscall.Chmod(n.path, n.mode)))
		}
	}
}
