// Package freeze stops all processes of the guest's users at once, and continues
// them, by the freezer of cgroup2 (Linux 5.2 and newer; "Core Interface Files" in
// the kernel's Documentation/admin-guide/cgroup-v2.rst).
package freeze

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// freezeFile takes 0 and 1.
const freezeFile = "cgroup.freeze"

// ErrUnsupported means that this guest has no cgroup2 with a freezer.
var ErrUnsupported = errors.New("this guest has no cgroup2 that can freeze")

// StuckError means that processes did not stop in time: they hang in the
// kernel, or are so many that the machine is too slow for them.
type StuckError struct {
	Group string   // the cgroup that they are in
	Hung  []string // "pid (name)" of some that hang in the kernel; may be empty
	Err   error    // why the wait ended
}

func (e *StuckError) Error() string {
	text := "the processes of cgroup " + e.Group + " did not stop in time"
	if len(e.Hung) > 0 {
		text += "; in an uninterruptible wait: " + strings.Join(e.Hung, ", ")
	}
	return text + ": " + e.Err.Error()
}

func (e *StuckError) Unwrap() error { return e.Err }

// Groups are all cgroups directly below the root: the one of the agent's commands,
// and those that its users made, as container runtimes do. The agent's own is left
// out. Processes in the root itself run on. One caller at a time.
type Groups struct {
	root string // "" when there are none
	own  string // the agent's own name below root, "" when it is not below it
	held []group
}

// group is one of them, whose cgroup.freeze is open for writing.
type group struct {
	name string
	fd   int
}

// New returns the groups below root, where cgroup2 is mounted. Without cgroup2, or
// with an empty root, Freeze returns ErrUnsupported. The caller must be in its cgroup
// already.
func New(root string) *Groups {
	var stat unix.Statfs_t
	if root == "" || unix.Statfs(root, &stat) != nil || stat.Type != unix.CGROUP2_SUPER_MAGIC {
		return &Groups{}
	}
	return &Groups{root: root, own: ownGroup()}
}

// ownGroup returns the first part of the caller's path in cgroup2: cgroups(7), /proc/PID/cgroup.
func ownGroup() string {
	raw, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok {
			first, _, _ := strings.Cut(path, "/")
			return first
		}
	}
	return ""
}

// Freeze returns when no process of the groups runs. Freezing what is frozen
// is no error. When it fails nothing is frozen. ctx bounds it; a process that
// hangs in the kernel, or a fork bomb on a slow machine, gives a *StuckError then.
func (g *Groups) Freeze(ctx context.Context) (err error) {
	if g.root == "" {
		return ErrUnsupported
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Thaw())
		}
	}()
	g.release()
	var frozen []string
	// Until no group is new: a program may make one until it is frozen itself.
	for {
		names, err := g.list()
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(frozen, name) })
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			if err := g.freeze(name); err != nil {
				return err
			}
		}
		for _, name := range names {
			if err := g.wait(ctx, name); err != nil {
				return err
			}
		}
		frozen = append(frozen, names...)
	}
}

// Thaw continues the processes of all groups, as far as it can. Thawing what runs
// is no error.
//
// It uses the files that Freeze has opened: no program ran since, so no group is
// new. Listing the groups again takes a restored guest, in which all code is cold, as
// long as all the rest of Thaw.
func (g *Groups) Thaw() error {
	if g.root == "" {
		return ErrUnsupported
	}
	if len(g.held) > 0 && g.letGo() == nil {
		return nil
	}
	names, err := g.list()
	errs := []error{err}
	for _, name := range names {
		_, _, err := g.hold(name)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, g.letGo())...)
}

func (g *Groups) list() ([]string, error) {
	entries, err := os.ReadDir(g.root)
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != g.own {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// freeze freezes a group, and holds what thaws it.
func (g *Groups) freeze(name string) error {
	held, there, err := g.hold(name)
	if err != nil || !there {
		return err
	}
	return held.set("1")
}

// hold opens the freezer of a group until release, if the group exists.
func (g *Groups) hold(name string) (held group, there bool, err error) {
	fd, err := unix.Open(filepath.Join(g.root, name, freezeFile), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		held = group{name, fd}
		g.held = append(g.held, held)
		return held, true, nil
	case errors.Is(err, fs.ErrNotExist) && g.exists(name):
		return group{}, false, ErrUnsupported // a kernel before 5.2
	case gone(err):
		return group{}, false, nil
	default:
		return group{}, false, fmt.Errorf("open %s of %s: %w", freezeFile, name, err)
	}
}

// letGo thaws the held groups, as far as it can, and releases them.
func (g *Groups) letGo() error {
	var errs []error
	for _, held := range g.held {
		errs = append(errs, held.set("0"))
	}
	g.release()
	return errors.Join(errs...)
}

// release closes the held groups.
func (g *Groups) release() {
	for _, held := range g.held {
		_ = unix.Close(held.fd) // nothing is buffered
	}
	g.held = nil
}

// set writes 0 or 1. A group that was removed is no error.
func (g group) set(value string) error {
	if _, err := unix.Pwrite(g.fd, []byte(value), 0); err != nil && !gone(err) {
		return fmt.Errorf("set %s of %s to %s: %w", freezeFile, g.name, value, err)
	}
	return nil
}

// gone reports whether err says that a cgroup was removed. Then it has no processes.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

func (g *Groups) exists(name string) bool {
	_, err := os.Stat(filepath.Join(g.root, name))
	return err == nil
}

// look is how often a wait for the kernel checks whether its caller still waits.
const look = 50 * time.Millisecond

// wait returns when the group is frozen or gone.
func (g *Groups) wait(ctx context.Context, name string) error {
	events, err := os.Open(filepath.Join(g.root, name, "cgroup.events"))
	if err != nil {
		return ignoreGone(err, name)
	}
	defer events.Close()
	for {
		frozen, err := isFrozen(events)
		if frozen || err != nil {
			return ignoreGone(err, name)
		}
		if ctx.Err() != nil {
			return &StuckError{Group: name, Hung: g.hung(name), Err: context.Cause(ctx)}
		}
		// The kernel reports POLLPRI when the file has changed since it was read.
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(look/time.Millisecond)); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll cgroup.events of %s: %w", name, err)
		}
	}
}

func ignoreGone(err error, name string) error {
	if err == nil || gone(err) {
		return nil
	}
	return fmt.Errorf("read cgroup.events of %s: %w", name, err)
}

func isFrozen(events *os.File) (bool, error) {
	var buf [256]byte // "populated 1\nfrozen 0\n"
	n, err := events.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return slices.ContainsFunc(bytes.Split(buf[:n], []byte("\n")), func(line []byte) bool {
		return string(line) == "frozen 1"
	}), nil
}

// hung names a few processes below a group that are in an uninterruptible wait.
func (g *Groups) hung(name string) []string {
	const most = 3
	var found []string
	// A group or a process that ends during the walk does not hang.
	_ = filepath.WalkDir(filepath.Join(g.root, name), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		procs, err := os.Open(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil
		}
		defer procs.Close()
		for lines := bufio.NewScanner(procs); lines.Scan() && len(found) < most; {
			if comm, state := status(lines.Text()); state == "D" {
				found = append(found, lines.Text()+" ("+comm+")")
			}
		}
		if len(found) >= most {
			return fs.SkipAll
		}
		return nil
	})
	return found
}

// status reads the name and state of a process: proc_pid_stat(5). The name may hold any bytes.
func status(pid string) (comm, state string) {
	raw, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return "", ""
	}
	open, end := bytes.IndexByte(raw, '('), bytes.LastIndexByte(raw, ')')
	if open < 0 || end < open || end+2 >= len(raw) {
		return "", ""
	}
	return fmt.Sprintf("%.15q", raw[open+1:end]), string(raw[end+2 : end+3])
}
