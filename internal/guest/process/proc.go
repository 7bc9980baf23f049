package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/guest/cgroup"
	pb "wrenn.dev/proto/gen/envd/process"
)

// termGrace is how long what a program started may take to end itself after
// SIGTERM, when the program itself has ended.
const termGrace = 5 * time.Second

// proc is one program that was started.
//
// It is running; then exited, when it was reaped and its output is drained; then
// ended, when the end event was published. From then on, what other processes write
// to its files is discarded.
type proc struct {
	pid    int
	group  *cgroup.Group // nil: it runs in the agent's own
	config *pb.ProcessConfig
	tag    *string
	pidfd  *os.File
	pty    *os.File // nil without terminal
	in     *input
	out    *hub
	srcs   []*source

	mu       sync.Mutex    // guards the following, and what is done with pid
	gone     chan struct{} // closed when it was reaped: pid may be another process's now
	signaled time.Time     // the last time that SendSignal was called
	expired  bool          // killed at its deadline
	deadline *time.Timer
}

// newProc returns the process of a child. It owns the near side of std from now on.
func newProc(c child, req *pb.StartRequest, std *stdio, buffers, blocks *sync.Pool) *proc {
	p := &proc{
		pid:    c.pid,
		group:  c.group,
		config: req.GetProcess(),
		tag:    req.Tag,
		pidfd:  os.NewFile(uintptr(c.pidfd), "pidfd"),
		pty:    std.near.pty,
		out:    newHub(blocks),
		gone:   make(chan struct{}),
	}
	if p.pty != nil {
		p.in = newInput(p.pty, true)
		p.srcs = []*source{p.source(p.pty, ptyChunk, buffers, kindPTY)}
		return p
	}
	p.in = newInput(std.near.stdin, false)
	p.srcs = []*source{
		p.source(std.near.stdout, pipeChunk, buffers, kindStdout),
		p.source(std.near.stderr, pipeChunk, buffers, kindStderr),
	}
	return p
}

func (p *proc) source(file *os.File, chunk int, buffers *sync.Pool, kind outputKind) *source {
	return &source{file: file, chunk: chunk, buffers: buffers, emit: func(b []byte) { p.out.publish(kind, b) }}
}

// supervise moves the output, reaps the program, calls reaped, publishes its end,
// calls ended, and returns when no file is open any more. It is called once.
func (p *proc) supervise(reaped, ended func()) {
	var pumps, rest sync.WaitGroup
	for _, s := range p.srcs {
		pumps.Add(1)
		rest.Go(func() {
			open := s.pump()
			pumps.Done()
			if open && p.pty == nil { // a terminal is closed: other processes that have it get SIGHUP
				s.discard()
			}
			s.file.Close()
		})
	}
	status, err := p.reap()
	why := p.reason()
	end := endEvent(status, err, why)
	p.killRest(status, why)
	reaped()
	for _, s := range p.srcs {
		s.exited()
	}
	pumps.Wait()
	p.in.close()
	p.out.finish(end)
	ended()
	rest.Wait()
}

// reap waits for the program's exit and reaps it. It needs no thread: the
// runtime's poller watches the pidfd. WNOWAIT keeps the pid in use until no signal
// can be on its way to it.
func (p *proc) reap() (unix.WaitStatus, error) {
	defer p.pidfd.Close()
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return 0, err
	}
	var waitErr error
	err = conn.Read(func(fd uintptr) bool {
		var info unix.Siginfo
		waitErr = eintr(func() error {
			return unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
		})
		return waitErr != nil || info.Signo != 0
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.gone)
	if p.deadline != nil {
		p.deadline.Stop()
	}
	if p.group == nil && !p.signaled.IsZero() {
		killSession(p.pid) // while no other process can have the pid
	}
	if err := errors.Join(err, waitErr); err != nil {
		return 0, fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	var status unix.WaitStatus
	err = eintr(func() error {
		_, err := unix.Wait4(p.pid, &status, 0, nil)
		return err
	})
	return status, err
}

func eintr(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// running reports whether the program has not been reaped.
func (p *proc) running() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// awaitGone returns when nothing is left of the program in its cgroup, or ctx ends.
func (p *proc) awaitGone(ctx context.Context) {
	select {
	case <-p.gone:
	case <-ctx.Done():
		return
	}
	if p.group != nil {
		_ = p.group.WaitEmpty(ctx) // the caller's slowReaderLimit is what ends it
	}
}

// signal sends a signal that a client asked for to all of the program.
func (p *proc) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d has ended", p.pid))
	}
	p.signaled = time.Now()
	if err := p.send(sig); err != nil {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("signal process %d: %w", p.pid, err))
	}
	return nil
}

// send sends a signal to everything in the program's cgroup and to the process
// group that it leads, which root may have moved to another one. Without a cgroup it
// is the process group, and for SIGKILL the session. The caller holds mu.
func (p *proc) send(sig unix.Signal) error {
	var err error
	switch {
	case p.group == nil && sig == unix.SIGKILL:
		killSession(p.pid)
	case p.group == nil:
	case sig == unix.SIGKILL:
		err = p.group.Kill()
	default:
		_ = p.group.Signal(sig, p.pid) // what it misses is killed later
	}
	return errors.Join(unix.Kill(-p.pid, sig), err)
}

// killRest kills what is left of a program that ended at its deadline, for want of
// memory or after a signal of SendSignal, with a grace in the last case. What is left
// of one that ended by itself runs on.
func (p *proc) killRest(status unix.WaitStatus, why pb.EndReason) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.group == nil:
	case p.expired: // again, in case that it failed
		_ = p.group.Kill()
	case why == pb.EndReason_END_REASON_OUT_OF_MEMORY && status.Signaled() && status.Signal() == unix.SIGKILL:
		_ = p.group.Kill() // a fork bomb lives on without its first process
	case !p.signaled.IsZero():
		time.AfterFunc(time.Until(p.signaled.Add(termGrace)), func() { _ = p.group.Kill() }) // nothing if all has ended
	}
}

// reason is why the program ended, unless it exited with 0. Call it before the
// group is released.
func (p *proc) reason() pb.EndReason {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.expired:
		return pb.EndReason_END_REASON_DEADLINE
	case p.group != nil && p.group.OutOfMemory():
		return pb.EndReason_END_REASON_OUT_OF_MEMORY
	case !p.signaled.IsZero():
		return pb.EndReason_END_REASON_SIGNALED
	default:
		return pb.EndReason_END_REASON_EXITED
	}
}

// expireAt kills the program at t unless it ended before.
func (p *proc) expireAt(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		p.deadline = time.AfterFunc(time.Until(t), p.expire)
	}
}

// expire kills the program at its deadline; twice is allowed.
func (p *proc) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		p.expired = true
		_ = p.send(unix.SIGKILL) // it is killed again when it is reaped
	}
}

func (p *proc) wasExpired() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.expired
}

// kill kills the program and makes supervise return, though other processes may
// hold the files and subscribers may not read.
func (p *proc) kill() {
	p.mu.Lock()
	if p.running() {
		_ = p.send(unix.SIGKILL) // fails for a process that is ending
	}
	p.mu.Unlock()
	p.out.hurry()
	for _, s := range p.srcs {
		s.file.Close()
	}
}

// endEvent describes how the program ended, in the words of os.ProcessState,
// and why, unless it exited with 0.
func endEvent(status unix.WaitStatus, err error, why pb.EndReason) *pb.ProcessEvent {
	end := &pb.ProcessEvent_EndEvent{ExitCode: -1, Reason: why}
	switch {
	case err != nil: // another part of the process reaped it, which the agent never does
		end.Status = "unknown: " + err.Error()
	case status.Exited():
		end.ExitCode, end.Exited = int32(status.ExitStatus()), true
		end.Status = fmt.Sprintf("exit status %d", status.ExitStatus())
	default:
		end.Status = "signal: " + status.Signal().String()
		if status.CoreDump() {
			end.Status += " (core dumped)"
		}
	}
	if end.GetExitCode() == 0 {
		end.Reason = pb.EndReason_END_REASON_EXITED
	} else {
		end.Error = &end.Status
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: end}}
}
