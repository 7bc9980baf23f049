// Package launch starts programs that the host does not trust, and follows them: VMMs,
// and those that work on images of tenants. They run without a shell, confined, in
// their own namespaces, identified by more than a PID, and with their output in files
// that cannot grow. It knows no particular program.
package launch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/plain"
)

// Command is a VMM to start. The process leads its own session and is in its own
// mount namespace, from which nothing propagates. It outlives its parent.
type Command struct {
	// Path is the program's file; PATH is not searched.
	Path string
	// Args are the arguments after the program's name.
	Args []string
	// Env is the whole environment; nothing is inherited.
	Env []string
	// Dir is the working directory; empty is the caller's.
	Dir string
	// Files become the file descriptors 3, 4, … of the process. The caller
	// still owns, and closes, its own.
	Files []*os.File
	// Namespace is the path of the network namespace to run in; empty is the caller's.
	Namespace string
	// UID and GID are the user and the group that it runs as, without
	// supplementary groups. With UID zero it runs as the caller's user.
	UID, GID uint32
	// Mounts makes mounts for the process alone, before it starts; nil makes none.
	Mounts func() error
	// SmallPages turns off transparent huge pages for the process, and for this
	// process from then on, which loses nothing by it.
	SmallPages bool
	// Cgroup is an open directory of a cgroup2 hierarchy in which the process
	// starts; nil is the caller's cgroup.
	Cgroup *os.File
	// Root is what the process sees of the host's files; nil is all. With a Root it
	// is also in its own PID namespace, as process 1, and in its own IPC namespace, and
	// no program that it executes has more privileges than itself. Path is in the Root.
	Root *Root
	// Reads lets the process read every file in its Root, also as a user that may not:
	// CAP_DAC_READ_SEARCH, in a user namespace, so that it opens no other file. Root
	// must be set and have Proc, and UID must not be 0.
	Reads bool
	// NoNetwork puts it in a new network namespace, without devices. Then
	// Namespace must be empty.
	NoNetwork bool
	Limits    Limits

	largeLog bool // the standard error may have ConsoleSize bytes
}

// Process is a VMM that runs or has ended. It is safe for concurrent use. It holds
// file descriptors and goroutines until the VMM has ended.
type Process struct {
	id      Identity
	pidfd   *os.File
	console *ring       // the standard output
	log     *ring       // the standard error; nil for an adopted one that has none
	child   *os.Process // nil for an adopted one
	done    chan struct{}

	mu     sync.Mutex // guards the following
	killed bool
	exit   Exit    // valid when done is closed
	output []Piece // what console held at the end
	errors []byte  // what log held at the end
}

// Exit describes the end of a process.
type Exit struct {
	// Reason is like "exit status 1" or "signal: killed". The kernel tells only a
	// parent: for an adopted process Reason is "exit status unknown".
	Reason string
	// Code is the exit status, and -1 after a signal or when it is not known.
	Code int
	// Killed reports whether Kill ended it.
	Killed bool
}

// Start starts a command and returns when the program has been executed.
func Start(cmd Command) (*Process, error) {
	console, err := newRing("console", ConsoleSize)
	if err != nil {
		return nil, err
	}
	logSize := int64(LogSize)
	if cmd.largeLog {
		logSize = ConsoleSize
	}
	log, err := newRing("log", logSize)
	if err != nil {
		console.close()
		return nil, err
	}
	p := &Process{console: console, log: log, done: make(chan struct{})}
	if err := p.start(cmd); err != nil {
		console.close()
		log.close()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go p.follow()
	return p, nil
}

func (p *Process) start(cmd Command) error {
	if err := closeOnExec(); err != nil {
		return fmt.Errorf("keep descriptors from children: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	pidfd := -1
	if err := inNamespaces(cmd, func() error { return p.spawn(cmd, null, &pidfd) }); err != nil {
		return err
	}
	if p.pidfd, err = pollable(pidfd); err != nil {
		return errors.Join(err, p.child.Kill(), reap(p.child))
	}
	if err := p.settle(cmd); err != nil {
		err = errors.Join(err, p.child.Kill())
		awaitExit(p.pidfd) // Wait does not wait for a pidfd that does not block
		return errors.Join(err, reap(p.child), p.pidfd.Close())
	}
	return nil
}

// spawn starts the program on the calling thread, whose namespaces and root it
// inherits.
func (p *Process) spawn(cmd Command, null *os.File, pidfd *int) (err error) {
	if cmd.SmallPages {
		useSmallPages()
	}
	attr := &os.ProcAttr{
		Dir:   cmd.Dir,
		Env:   append([]string{}, cmd.Env...), // never nil: that would inherit
		Files: append([]*os.File{null, p.console.file, p.log.file}, cmd.Files...),
		Sys:   sysProcAttr(cmd, pidfd),
	}
	p.child, err = os.StartProcess(cmd.Path, append([]string{cmd.Path}, cmd.Args...), attr)
	return err
}

// settle limits the process, which has just started, and records its identity.
func (p *Process) settle(cmd Command) (err error) {
	pid := p.child.Pid // until it is reaped no other process has it
	p.id, err = identify(pid)
	return errors.Join(err, yieldMemory(pid), limit(pid, cmd))
}

// useSmallPages turns off transparent huge pages for this process and all that it
// starts: the setting belongs to the address space, and a child inherits it and
// keeps it when it executes a program, see PR_SET_THP_DISABLE(2const). Between the
// fork and the execution package os runs none of our code. A kernel that refuses the
// call has no huge pages.
func useSmallPages() { _ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) }

func sysProcAttr(cmd Command, pidfd *int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Setsid: true,
		PidFD:  pidfd,
	}
	if cmd.UID != 0 {
		attr.Credential = &syscall.Credential{Uid: cmd.UID, Gid: cmd.GID}
	}
	if cmd.Cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(cmd.Cgroup.Fd())
	}
	if cmd.Root != nil {
		attr.Cloneflags |= unix.CLONE_NEWPID | unix.CLONE_NEWIPC
	}
	if cmd.NoNetwork {
		attr.Cloneflags |= unix.CLONE_NEWNET
	}
	if cmd.Reads {
		// Each user is the same inside: files keep their owners.
		same := []syscall.SysProcIDMap{{Size: math.MaxUint32}}
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = same, same, true
		attr.AmbientCaps = []uintptr{unix.CAP_DAC_READ_SEARCH}
	}
	return attr
}

func reap(child *os.Process) error {
	_, err := child.Wait()
	return err
}

// Adopt follows a process that another process started. The error is
// os.ErrProcessDone if it no longer runs, also if another process has its PID.
func Adopt(id Identity) (*Process, error) {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", id.PID, goneOr(err))
	}
	pidfd, err := pollable(fd)
	if err != nil {
		return nil, err
	}
	// The check comes after the pidfd was opened: so the pidfd is that of the process
	// checked here, or of one that has ended.
	now, err := identify(id.PID)
	if err != nil || now != id || hasExited(pidfd) {
		pidfd.Close()
		return nil, fmt.Errorf("process %d: %w", id.PID, errors.Join(os.ErrProcessDone, err))
	}
	if err := yieldMemory(id.PID); err != nil { // an older agent did not
		pidfd.Close()
		return nil, fmt.Errorf("process %d: %w", id.PID, err)
	}
	p := &Process{id: id, pidfd: pidfd, done: make(chan struct{})}
	if p.console, p.log, err = adoptRings(fd); err != nil {
		pidfd.Close()
		return nil, fmt.Errorf("output of process %d: %w", id.PID, err)
	}
	go p.follow()
	return p, nil
}

func goneOr(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: not a possible PID
		return os.ErrProcessDone
	}
	return err
}

// follow waits for the end of the process and records it.
func (p *Process) follow() {
	gone := make(chan struct{})
	var keeper sync.WaitGroup
	keeper.Go(func() { rewindRings(gone, p.console, p.log) })
	awaitExit(p.pidfd)
	exit := Exit{Reason: "exit status unknown", Code: -1}
	if p.child != nil {
		if state, err := p.child.Wait(); err == nil {
			exit = Exit{Reason: state.String(), Code: state.ExitCode()}
		}
	}
	close(gone)
	keeper.Wait()
	p.mu.Lock()
	exit.Killed = p.killed
	p.exit = exit
	p.output, p.errors = p.console.pieces(), p.log.tail()
	p.console.close()
	p.log.close()
	p.pidfd.Close()
	close(p.done)
	p.mu.Unlock()
}

// Identity returns what Adopt needs.
func (p *Process) Identity() Identity { return p.id }

// File returns the file that the process has open as the descriptor fd: the same open
// file, not one opened again. The process may have exchanged it, so the caller checks
// which file it is, and closes it.
func (p *Process) File(fd int) (*os.File, error) {
	var f *os.File
	err := withFD(p.pidfd, func(pidfd int) error {
		mine, err := unix.PidfdGetfd(pidfd, fd, 0)
		if err != nil {
			return fmt.Errorf("take descriptor %d of process %d: %w", fd, p.id.PID, err)
		}
		f = os.NewFile(uintptr(mine), fmt.Sprintf("descriptor %d", fd))
		return nil
	})
	return f, err
}

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns when the process has ended, or ctx's cause if ctx ends first.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return Exit{}, context.Cause(ctx)
	}
}

// Kill kills the process by SIGKILL and returns when it has ended, or ctx's cause
// if ctx ends first. Twice is allowed, and so is killing a process that has ended.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.sendKill(); err != nil {
		return fmt.Errorf("kill process %d: %w", p.id.PID, err)
	}
	_, err := p.Wait(ctx)
	return err
}

func (p *Process) sendKill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return nil
	default:
	}
	if hasExited(p.pidfd) { // by itself: Kill is not the reason
		return nil
	}
	p.killed = true
	err := withFD(p.pidfd, func(fd int) error { return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Output returns the end of the process's standard output, at most ConsoleSize
// bytes: that of the guest's console, whose content the guest chooses. It can be
// read while the process runs and after its end.
func (p *Process) Output() []byte {
	var all []byte
	for _, piece := range p.Pieces() {
		all = append(all, piece.Text...)
	}
	return all
}

// Pieces returns what Output returns in parts, oldest first, with when each was written.
func (p *Process) Pieces() []Piece {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return p.output
	default:
		return p.console.pieces()
	}
}

// Log returns the end of the process's standard error, the VMM's own messages, at
// most LogSize bytes; nothing for a process that an old agent started with one
// file for both. It can be read while the process runs and after its end.
func (p *Process) Log() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return p.errors
	default:
		return p.log.tail()
	}
}

// LastLines returns the part of an output that fits an error message: its last
// lines, with control characters replaced.
func LastLines(output []byte) string {
	return plain.Text(strings.ReplaceAll(lastLines(output, maxLastLines), "\r\n", "\n"))
}

// maxLastLines is enough for about 25 lines.
const maxLastLines = 2 << 10

func lastLines(out []byte, limit int) string {
	s := string(out)
	if len(s) <= limit {
		return s
	}
	s = s[len(s)-limit:]
	if _, rest, found := strings.Cut(s, "\n"); found {
		return rest
	}
	return s
}
