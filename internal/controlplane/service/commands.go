package service

import (
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/guestagent"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/wake"
)

// Commands run programs in sandboxes.
type Commands struct{ *core }

// ExecStream is one live stream of a command. Receive may be used by one
// goroutine while another sends. Close ends the stream, not the command; the
// end of the context that opened it does the same.
type ExecStream interface {
	// Receive returns the next event, and io.EOF after Exit.
	Receive() (wrenn.ExecOutput, error)
	SendStdin(p []byte) error
	CloseStdin() error
	Resize(size wrenn.PTYSize) error
	// Signal takes "SIGTERM" or "SIGKILL".
	Signal(name string) error
	// Ack tells the command that all output before a position has arrived.
	Ack(offset uint64) error
	// Leave ends the session, and the stream after it.
	Leave() error
	Close() error
}

var _ ExecStream = (*hostclient.ExecStream)(nil)

// Exec runs a command to its end. When ctx ends first the command is killed.
// Its timeout is 30 s by default.
func (s *Commands) Exec(ctx context.Context, c Caller, id wrenn.SandboxID, cmd wrenn.ExecCommand) (*wrenn.ExecResult, error) {
	if err := s.limits.checkCommand(cmd); err != nil {
		return nil, err
	}
	var result *wrenn.ExecResult
	err := s.onHost(ctx, c, id, func(host *hostclient.Client) (err error) {
		defer s.used.add(id) // it may have taken long
		result, err = host.Exec(ctx, id, c.Team, cmd)
		return err
	})
	return result, err
}

// CheckExec returns the error that StartExec and AttachExec would return for the
// sandbox as it is now, so that a client learns it before it is upgraded to a
// stream. It changes nothing and resumes nothing.
func (s *Commands) CheckExec(ctx context.Context, c Caller, id wrenn.SandboxID) error {
	_, err := s.findUsable(ctx, c, id)
	return err
}

// StartExec starts a command and follows it. The caller closes the stream.
func (s *Commands) StartExec(ctx context.Context, c Caller, id wrenn.SandboxID, start wrenn.ExecStart) (ExecStream, error) {
	if err := s.limits.checkCommand(start.ExecCommand); err != nil {
		return nil, err
	}
	return s.open(ctx, c, id, func(host *hostclient.Client) (*hostclient.ExecStream, error) { return host.StartExec(ctx, id, start) })
}

// AttachExec follows a command that runs. The caller closes the stream.
func (s *Commands) AttachExec(ctx context.Context, c Caller, id wrenn.SandboxID, to wrenn.ExecAttach) (ExecStream, error) {
	return s.open(ctx, c, id, func(host *hostclient.Client) (*hostclient.ExecStream, error) { return host.AttachExec(ctx, id, to) })
}

// Processes returns the programs of a sandbox that run and were started by the API, by
// their PIDs.
func (s *Commands) Processes(ctx context.Context, c Caller, id wrenn.SandboxID) (list []wrenn.ProcessInfo, err error) {
	err = s.withAgent(ctx, c, id, func(a *guestagent.Agent) error {
		list, err = a.Processes(ctx)
		return err
	})
	return list, err
}

// SignalProcess signals a program that the API started, and all that it started:
// NotFound if there is none.
func (s *Commands) SignalProcess(ctx context.Context, c Caller, id wrenn.SandboxID, pid int, signal wrenn.Signal) error {
	return s.withAgent(ctx, c, id, func(a *guestagent.Agent) error { return a.Signal(ctx, pid, signal) })
}

// pollPaused is how often the row of a paused sandbox is read whose stream waits.
const pollPaused = time.Second

// AwaitRunning waits until a sandbox runs that was paused, without resuming it. It is
// a FailedPrecondition if the sandbox has ended, or is not resumed by its use, so that
// nothing says that it ever runs again.
func (s *Commands) AwaitRunning(ctx context.Context, c Caller, id wrenn.SandboxID) error {
	for {
		sb, err := s.findUsable(ctx, c, id)
		if err != nil || sb.State == wrenn.Running {
			return err
		}
		if !wake.Sleep(ctx, pollPaused) {
			return context.Cause(ctx)
		}
	}
}

func (s *Commands) open(ctx context.Context, c Caller, id wrenn.SandboxID, f func(*hostclient.Client) (*hostclient.ExecStream, error)) (ExecStream, error) {
	var stream *hostclient.ExecStream
	err := s.onHost(ctx, c, id, func(host *hostclient.Client) (err error) {
		stream, err = f(host)
		return err
	})
	if err != nil {
		return nil, err // not an ExecStream that holds a nil
	}
	return &usedStream{ExecStream: stream, used: func() { s.used.add(id) }}, nil
}

// usedStream records at its end that the sandbox was used until then.
type usedStream struct {
	*hostclient.ExecStream
	used func()
}

func (u *usedStream) Close() error {
	u.used()
	return u.ExecStream.Close()
}
