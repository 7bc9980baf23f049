package main

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
)

// fileSystem is one that the kernel has by itself.
type fileSystem struct {
	kind, dir string
	flags     uintptr
	data      string
}

// mountRuntime mounts the file systems of a running system, but those that are mounted:
// the directories in a list with spaces around each. What the kernel does not have is
// left out.
func mountRuntime(mounted string) {
	// Containers in the guest expect mounts to propagate, as under systemd.
	complain(wrap("share the mounts", syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")))
	for _, m := range []fileSystem{
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
		if !strings.Contains(mounted, " "+m.dir+" ") {
			complain(m.mount())
		}
	}
	const writable = 2
	if syscall.Access("/tmp", writable) != nil { // the disk is read-only
		complain(fileSystem{"tmpfs", "/tmp", noDev, "mode=1777," + limits(4, 256)}.mount())
	}
	linkDevices()
	complain(wrap("make /run/utmp", makeFile("/run/utmp", "")))
}

// mount makes the directory, since /dev and /run start empty, and mounts the file
// system there. One that the kernel does not have is no error; those below /sys have a
// directory where the kernel has them.
func (m fileSystem) mount() error {
	inSys := strings.HasPrefix(m.dir, "/sys/")
	if !inSys {
		_ = syscall.Mkdir(m.dir, 0o755)
	}
	err := syscall.Mount(m.kind, m.dir, m.kind, m.flags, m.data)
	if err == syscall.ENODEV || inSys && err == syscall.ENOENT {
		return nil
	}
	return wrap("mount "+m.dir, err)
}

// mountMissing mounts what no initramfs has mounted.
func mountMissing() {
	if !exists("/proc/mounts") {
		complain(kernelFileSystems()[0].mount())
	}
	mounted := mountPoints()
	for _, m := range kernelFileSystems() {
		if !strings.Contains(mounted, " "+m.dir+" ") {
			complain(m.mount())
		}
	}
	if !strings.Contains(mounted, " /run ") { // no earlier stage0 was here
		complain(configureNetwork(address{})) // the loopback alone: ip= is the kernel's then
		openNodes()
		emptyTmp()
	}
	mountRuntime(mounted)
}

// mountPoints returns the directories where something is mounted, with a space
// before and after each.
func mountPoints() string {
	text, err := readFile("/proc/mounts")
	complain(wrap("read /proc/mounts", err))
	var dirs strings.Builder
	dirs.WriteByte(' ')
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			dirs.WriteString(fields[1] + " ")
		}
	}
	return dirs.String()
}

// linkDevices makes the links that udev and systemd make on other systems.
func linkDevices() {
	for name, target := range map[string]string{
		"/etc/mtab":   "../proc/self/mounts",
		"/dev/fd":     "/proc/self/fd",
		"/dev/stdin":  "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2",
		"/dev/core":   "/proc/kcore",
	} {
		if err := syscall.Symlink(target, name); err != syscall.EEXIST && err != syscall.EROFS && err != syscall.ENOENT {
			complain(wrap("make "+name, err))
		}
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

// oldTmp is where what was in /tmp before this boot waits for its removal.
const oldTmp = "/.tmp-before-boot"

// emptyTmp makes /tmp an empty directory, or reports why it is not; it is usable all the same.
func emptyTmp() { complain(wrap("empty /tmp", emptyDir("/tmp", oldTmp))) }

// removeOldTmp removes what was in /tmp, beside what follows: to remove a million files
// takes longer than a boot may take.
func removeOldTmp() {
	if !exists(oldTmp) {
		return
	}
	const rm = "/bin/rm"
	_, err := syscall.ForkExec(rm, []string{rm, "-rf", oldTmp}, &syscall.ProcAttr{Env: environment, Files: []uintptr{0, 1, 2}})
	complain(wrap("remove "+oldTmp, err))
}

// emptyDir makes tmp an empty directory that all may write to. It moves a tmp that
// is not empty into old.
func emptyDir(tmp, old string) error {
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
