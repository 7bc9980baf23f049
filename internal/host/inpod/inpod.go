// Package inpod lets the agent of a pod of Kubernetes become a program of its node: it
// runs in the mount namespace and in a cgroup of the host. So the kubelet still
// supervises the agent, and what the agent starts outlives the pod.
//
// The pod must be privileged and share the host's process ids, and the state directory
// must be mounted at the same path in both.
package inpod

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// group is the name of the agent's cgroup in every hierarchy of the host.
	group = "wrenn-agent"

	programMode, dirMode = 0o755, 0o755
)

// CopyPrograms copies the programs, which must have different names, to a directory below
// dir that is named after their content, and returns it. Other directories there, those of
// earlier agents, are removed: running programs keep their files. Twice is allowed.
func CopyPrograms(dir string, programs []string) (string, error) {
	name, err := digest(programs)
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, name)
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return "", err
	}
	staged, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return "", err
	}
	for _, program := range programs {
		if err := copyFile(program, filepath.Join(staged, filepath.Base(program))); err != nil {
			return "", errors.Join(err, os.RemoveAll(staged))
		}
	}
	if err := errors.Join(os.Chmod(staged, dirMode), os.Rename(staged, to)); err != nil {
		return "", errors.Join(err, os.RemoveAll(staged))
	}
	return to, removeOthers(dir, name)
}

func digest(programs []string) (string, error) {
	sum := sha256.New()
	for _, program := range programs {
		fmt.Fprintf(sum, "%s\n", filepath.Base(program))
		if err := read(program, sum); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

func read(name string, to io.Writer) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, f)
	return err
}

func copyFile(from, to string) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, programMode)
	if err != nil {
		return err
	}
	return errors.Join(read(from, f), f.Sync(), f.Close())
}

func removeOthers(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.Name() != keep {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	return err
}

// Exec replaces this process by the program, which gets argv and env, in the mount
// namespace of the process pid and in a cgroup of the host. It returns only an error,
// after which the calling goroutine must end: its thread may be in the other namespace.
func Exec(pid int, program string, argv, env []string) error {
	runtime.LockOSThread() // not undone: the thread must not be used by other goroutines
	if err := enterMounts(pid); err != nil {
		return fmt.Errorf("enter the mount namespace of process %d: %w; the pod needs hostPID and privileged", pid, err)
	}
	if err := leaveCgroups(); err != nil {
		return fmt.Errorf("leave the cgroups of the pod: %w", err)
	}
	return fmt.Errorf("start %s on the host: %w", program, unix.Exec(program, argv, env))
}

func enterMounts(pid int) error {
	namespace, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/mnt"))
	if err != nil {
		return err
	}
	defer namespace.Close()
	// The kernel refuses a thread that shares its root and working directory with others.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS)
}

// leaveCgroups moves the process to the agent's cgroup in every hierarchy. The kubelet
// ends what it finds in those of the pod; one that is forgotten is enough.
func leaveCgroups() error {
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo") // that of the process would be the pod's
	if err != nil {
		return err
	}
	found := hierarchies(mounts)
	if len(found) == 0 {
		return errors.New("the host has no cgroups mounted")
	}
	for _, dir := range found {
		if err := join(dir); err != nil {
			return err
		}
	}
	return nil
}

// hierarchies returns where cgroups are mounted, once each, by a text of proc_pid_mountinfo(5).
func hierarchies(mountinfo []byte) (dirs []string) {
	seen := map[string]bool{} // by device
	lines := bufio.NewScanner(bytes.NewReader(mountinfo))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		end := slices.Index(fields, "-")
		if end < 6 || len(fields) <= end+1 || fields[end+1] != "cgroup" && fields[end+1] != "cgroup2" || seen[fields[2]] {
			continue
		}
		seen[fields[2]] = true
		dirs = append(dirs, fields[4])
	}
	return dirs
}

// join moves the process to the cgroup below the root of a hierarchy.
func join(dir string) error {
	own := filepath.Join(dir, group)
	if err := os.Mkdir(own, dirMode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// In version 1 a new cpuset is empty, and takes no process.
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err := errors.Join(err, os.WriteFile(filepath.Join(own, name), text, 0)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}
