package main

import (
	"strings"
	"syscall"
)

const (
	noExec = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	noDev  = syscall.MS_NOSUID | syscall.MS_NODEV
)

// kernelFileSystems are those of which others are parts; /proc is the first.
func kernelFileSystems() []fileSystem {
	return []fileSystem{
		{"proc", "/proc", noExec, ""},
		{"sysfs", "/sys", noExec, ""},
		{"devtmpfs", "/dev", syscall.MS_NOSUID, limits(2, 64)}, // a tmpfs, which root can fill
	}
}

// mountKernel mounts the kernel's file systems inside the initramfs.
func mountKernel() error {
	for _, m := range kernelFileSystems() {
		if err := m.mount(); err != nil {
			return err
		}
	}
	return nil
}

// enterRoot mounts the root file system, moves the kernel's file systems into it
// and makes it /.
func enterRoot(args arguments) error {
	const root = "/root"
	if err := waitFor(args.root); err != nil {
		return err
	}
	readAhead(args.root)
	flags := uintptr(syscall.MS_NOATIME)
	if args.readOnly {
		flags |= syscall.MS_RDONLY
	}
	if err := syscall.Mount(args.root, root, args.rootType, flags, mountData(args)); err != nil {
		return wrap("mount the root "+args.root+" ("+args.rootType+")", err)
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := syscall.Mount(dir, root+dir, "", syscall.MS_MOVE, ""); err != nil {
			return wrap("move "+dir+" to the root", err)
		}
	}
	free("/modules", "/init")
	if err := syscall.Chdir(root); err != nil {
		return wrap("enter the root", err)
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return wrap("move the root to /", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return wrap("chroot", err)
	}
	return wrap("enter the new root", syscall.Chdir("/"))
}

// readAhead raises the read-ahead of a disk. Programs are read through mappings,
// and with small requests each costs an emulated machine a round trip through the
// host. The kernel's default is 128 KiB.
func readAhead(device string) {
	const kib = "512"
	name := strings.TrimPrefix(device, "/dev/")
	fd, err := syscall.Open("/sys/block/"+name+"/queue/read_ahead_kb", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return // for example a partition; the guest boots, a little slower
	}
	defer release(fd)
	_, _ = syscall.Write(fd, []byte(kib))
}

// mountData returns the root's mount options. Without noinit_itable the kernel
// writes the inode tables of a sparse image in the background, for minutes.
func mountData(args arguments) string {
	switch {
	case args.rootFlags != "":
		return args.rootFlags
	case args.rootType == "ext4":
		return "noinit_itable"
	}
	return ""
}

// free removes files of the initramfs, which frees their memory.
func free(files ...string) {
	for _, f := range files {
		_ = syscall.Unlink(f) // on an error the memory stays in use
	}
}
