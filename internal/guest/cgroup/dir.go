package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pollInterval is how often a wait for the kernel checks whether its caller still waits.
	pollInterval = 50 * time.Millisecond
	// destroyTimeout bounds the wait for killed processes to be gone. One that
	// hangs in the kernel does not go.
	destroyTimeout = 2 * time.Second
	// killRounds bounds killing processes one by one, which a process that forks can outrun.
	killRounds = 100
)

// dir is the directory of a group, used by one command after the other.
type dir struct {
	path     string
	file     *os.File
	events   *os.File // cgroup.events
	oomKills uint64   // that had happened when it was last empty
	killed   bool     // cannot be used again
	owner    owner    // who may divide it
}

func openDir(path string) (*dir, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d := &dir{path: path, file: file}
	d.events, err = os.Open(d.eventsPath())
	if err != nil {
		file.Close()
		return nil, err
	}
	return d, nil
}

func (d *dir) close() {
	d.file.Close()
	d.events.Close()
}

func (d *dir) fd() int { return int(d.file.Fd()) }

func (d *dir) eventsPath() string { return filepath.Join(d.path, "cgroup.events") }

func (d *dir) exists() bool {
	_, err := os.Stat(d.path)
	return err == nil
}

// populated reports whether a process is in the directory or below it. One that was removed has none.
func (d *dir) populated() bool {
	value, err := flatKey(d.events, "populated")
	return err == nil && value != 0
}

// kill sends SIGKILL to everything in the directory and below it. Linux (seen
// with 6.18) may kill what clone3(2) starts in it afterwards, too: it compares the
// number of kills of the new process's cgroup with that of its parent's.
func (d *dir) kill() error {
	d.killed = true
	err := set(d.path, "cgroup.kill", "1")
	if !errors.Is(err, fs.ErrNotExist) || !d.exists() {
		return ignoreGone(err)
	}
	return d.killEach()
}

// killEach is kill for Linux before 5.14, which has no cgroup.kill.
func (d *dir) killEach() error {
	for range killRounds {
		if !d.populated() {
			return nil
		}
		if err := d.signal(unix.SIGKILL, 0); err != nil {
			return err
		}
	}
	return nil
}

// signal signals every process in the directory and below it, but those in the
// process group except, 0 for none.
func (d *dir) signal(signal unix.Signal, except int) error {
	pids, err := d.processes()
	for _, pid := range pids {
		pgid, pgidErr := unix.Getpgid(pid)
		if pgidErr != nil || except != 0 && pgid == except {
			continue
		}
		if killErr := unix.Kill(pid, signal); killErr != nil && !errors.Is(killErr, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("signal process %d: %w", pid, killErr))
		}
	}
	return err
}

// processes lists the processes in the directory and below it.
func (d *dir) processes() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(d.path, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return ignoreGone(err)
		}
		raw, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return ignoreGone(err)
		}
		for field := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 { // 0 is a process of another namespace
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// readOOMKills is 0 in a guest without the memory controller.
func (d *dir) readOOMKills() uint64 {
	file, err := os.Open(filepath.Join(d.path, "memory.events"))
	if err != nil {
		return 0
	}
	defer file.Close()
	kills, err := flatKey(file, "oom_kill")
	if err != nil {
		return 0
	}
	return kills
}

// unchanged is what the files of a new directory say that a command may have written to.
var unchanged = map[string]string{
	"cgroup.freeze": "0", "cgroup.type": "domain", "cgroup.subtree_control": "",
	"memory.high": "max", "memory.oom.group": "0",
}

// reset prepares an empty directory for another command. False means that it
// was killed or changed: remove it.
func (d *dir) reset(limits limits) bool {
	if d.killed {
		return false
	}
	for _, values := range []map[string]string{unchanged, limits.files()} {
		for name, want := range values {
			raw, err := os.ReadFile(filepath.Join(d.path, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(raw)) != want {
				return false
			}
		}
	}
	const withoutChildren = 2 // links: its name and its dot
	info, err := d.file.Stat()
	if err != nil {
		return false
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Nlink != withoutChildren {
		return false
	}
	d.oomKills = d.readOOMKills()
	return true
}

// destroy kills what is in the directory and removes it.
func (d *dir) destroy() error {
	defer d.close()
	ctx, cancel := context.WithTimeout(context.Background(), destroyTimeout)
	defer cancel()
	return errors.Join(d.kill(), d.waitEmpty(ctx), removeAll(d.path))
}

func (d *dir) waitEmpty(ctx context.Context) error {
	for d.populated() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// The kernel reports POLLPRI when the file has changed since it was read.
		fds := []unix.PollFd{{Fd: int32(d.events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(pollInterval/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll cgroup.events: %w", err)
		}
	}
	return nil
}

// flatKey reads the value of a key in a file of lines "key value".
func flatKey(file *os.File, key string) (uint64, error) {
	var buf [512]byte
	n, err := file.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	for line := range bytes.Lines(buf[:n]) {
		if name, value, ok := strings.Cut(strings.TrimSpace(string(line)), " "); ok && name == key {
			return strconv.ParseUint(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file.Name(), key)
}
