package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "wrenn/proto/gen/envd/process"
)

// proc is one program that was started.
//
// Its life: running; exited, when it was reaped and its output is drained;
// ended, when the end event was published. Files that others still hold are read on and
// discarded after that.
type proc struct {
	pid    int
	config *pb.ProcessConfig
	tag    *string
	pidfd  *os.File
	pty    *os.File // nil without terminal
	in     *input
	out    *hub
	srcs   []*source

	mu       sync.Mutex    // guards the following, and what is done with pid
	gone     chan struct{} // closed when it was reaped: pid may be somebody else's now
	expired  bool          // killed because its time was up
	deadline *time.Timer
}

// newProc takes over the near side of std.
func newProc(pid, pidfd int, req *pb.StartRequest, std *stdio, buffers, blocks *sync.Pool) *proc {
	p := &proc{
		pid:    pid,
		config: req.GetProcess(),
		tag:    req.Tag,
		pidfd:  os.NewFile(uintptr(pidfd), "pidfd"),
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

// supervise moves the output, reaps the program, publishes its end, calls
// ended, and returns when no file is open any more. It is called once.
func (p *proc) supervise(ended func()) {
	var pumps, rest sync.WaitGroup
	for _, s := range p.srcs {
		pumps.Add(1)
		rest.Go(func() {
			open := s.pump()
			pumps.Done()
			if open && p.pty == nil { // a terminal whose leader is gone is closed: the others get SIGHUP
				s.discard()
			}
			s.file.Close()
		})
	}
	status, err := p.reap()
	for _, s := range p.srcs {
		s.exited()
	}
	pumps.Wait()
	p.in.close()
	p.out.finish(endEvent(status, err))
	ended()
	rest.Wait()
}

// reap waits for the program's exit and collects it. It costs no thread: the
// runtime's poller watches the pidfd. WNOWAIT leaves the pid taken until no signal
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

// signal goes to the group that the program leads.
func (p *proc) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d has ended", p.pid))
	}
	if err := unix.Kill(-p.pid, sig); err != nil {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("signal process %d: %w", p.pid, err))
	}
	return nil
}

// expireAt kills the program at t unless it ended before.
func (p *proc) expireAt(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		p.deadline = time.AfterFunc(time.Until(t), p.expire)
	}
}

// expire kills the program because its time is up; twice is allowed.
func (p *proc) expire() {
	p.mu.Lock()
	p.expired = p.expired || p.running()
	p.mu.Unlock()
	_ = p.signal(unix.SIGKILL) // it may have ended meanwhile
}

func (p *proc) wasExpired() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.expired
}

// kill ends the program, and supervise although others may hold the files and
// subscribers not read.
func (p *proc) kill() {
	_ = p.signal(unix.SIGKILL) // it may have ended, and only its files be left
	p.out.hurry()
	for _, s := range p.srcs {
		s.file.Close()
	}
}

// endEvent says how the program ended, in the words of os.ProcessState.
func endEvent(status unix.WaitStatus, err error) *pb.ProcessEvent {
	end := &pb.ProcessEvent_EndEvent{ExitCode: -1}
	switch {
	case err != nil: // it was reaped by somebody else, which the agent never does
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
	if end.GetExitCode() != 0 {
		end.Error = &end.Status
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: end}}
}
