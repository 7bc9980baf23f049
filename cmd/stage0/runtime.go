package main

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
)

// mountRuntime mounts the file systems of a running system. Wrenn-init would have
// to run a program for each, which costs an emulated machine ten milliseconds. It
// tries again what fails here and reports errors, so a change of this list needs
// the same change in images/wrenn-init.sh.
func mountRuntime(readOnly bool) {
	if !readOnly {
		if err := emptyTmp("/tmp", "/.tmp-before-boot"); err != nil {
			complain(wrap("empty /tmp", err)) // /tmp is usable all the same
		}
	}
	// Containers in the guest expect mounts to propagate, as under systemd.
	_ = syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		data      string
	}{
		{"devpts", "/dev/pts", syscall.MS_NOSUID | syscall.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", noDev, "mode=1777," + limits(33, 32)},
		{"mqueue", "/dev/mqueue", noExec, ""},
		{"hugetlbfs", "/dev/hugepages", noDev, ""},
		{"tmpfs", "/run", noDev, "mode=755," + limits(8, 128)},
		{"tmpfs", "/run/lock", noExec, "mode=1777," + limits(1, 512)},
		{"tmpfs", "/run/user", noDev, "mode=755," + limits(4, 256)},
		{"cgroup2", "/sys/fs/cgroup", noExec, "nsdelegate"},
		{"securityfs", "/sys/kernel/security", noExec, ""},
		{"debugfs", "/sys/kernel/debug", noExec, "mode=700"},
		{"tracefs", "/sys/kernel/tracing", noExec, "mode=700"},
		{"bpf", "/sys/fs/bpf", noExec, "mode=700"},
	} {
		if !strings.HasPrefix(m.dir, "/sys/") {
			_ = syscall.Mkdir(m.dir, 0o755) // devtmpfs and /run start empty
		}
		_ = syscall.Mount(m.kind, m.dir, m.kind, m.flags, m.data)
	}
	linkDevices()
}

// linkDevices makes the links in /dev that udev makes on other systems.
func linkDevices() {
	for name, target := range map[string]string{
		"/dev/fd":     "/proc/self/fd",
		"/dev/stdin":  "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2",
		"/dev/core":   "/proc/kcore",
	} {
		_ = syscall.Symlink(target, name)
	}
}

// limits returns mount options of a tmpfs that may hold that percentage of the
// guest's memory, and one file per so many KiB of memory: an empty file takes about
// a KiB that the size does not count. All tmpfs together may take about half of
// the memory, so that a guest survives when they are full.
func limits(percent, kibPerFile uint64) string {
	return "size=" + strconv.FormatUint(percent, 10) + "%,nr_inodes=" + strconv.FormatUint(memoryKiB()/kibPerFile, 10)
}

// memoryKiB returns MemTotal of /proc/meminfo: the guest's memory without the kernel's own.
func memoryKiB() uint64 {
	var info syscall.Sysinfo_t
	_ = syscall.Sysinfo(&info) // fails only for a bad address; a limit of 0 files would mean no limit
	return info.Totalram * uint64(info.Unit) >> 10
}

// emptyTmp makes tmp an empty directory that all may write to. It moves a tmp that
// is not empty into old, which wrenn-init removes later: to remove a million files
// takes longer than a boot may take.
func emptyTmp(tmp, old string) error {
	empty, err := isEmpty(tmp)
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil // a link, for example to /var/tmp, is kept: the guest's owner made it
	}
	if err == nil && !empty {
		err = moveInto(tmp, old)
	}
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	if err := syscall.Mkdir(tmp, 0o755); err != nil && err != syscall.EEXIST {
		return err
	}
	return syscall.Chmod(tmp, syscall.S_ISVTX|0o777) // Mkdir applies the umask
}

// isEmpty reports whether a directory has no entries. A link to a directory is an error.
func isEmpty(dir string) (bool, error) {
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer release(fd)
	buf := make([]byte, 1024) // three entries with the longest names
	n, err := syscall.ReadDirent(fd, buf)
	if err != nil {
		return false, err
	}
	_, _, names := syscall.ParseDirent(buf[:n], -1, nil) // without . and ..
	return len(names) == 0, nil
}

// moveInto moves a directory into the directory old, which only root may enter,
// under an unused name: old may have entries when its removal was cut short.
func moveInto(dir, old string) error {
	err := syscall.Mkdir(old, 0o700)
	if err != nil && err != syscall.EEXIST {
		return err
	}
	for _, name := range "0123456789" {
		err = syscall.Rename(dir, old+"/"+string(name))
		if err != syscall.ENOTEMPTY && err != syscall.EEXIST {
			return err
		}
	}
	return err
}
