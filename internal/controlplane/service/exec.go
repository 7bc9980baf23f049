package service

import (
	"context"
	"errors"
	"io"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/hostclient"
	"wrenn/internal/controlplane/postgres"
)

// ExecStream is one live stream of a command. Receive may be used by one
// goroutine while another sends. Close ends the stream, not the command; the
// end of the context that opened it does the same.
type ExecStream interface {
	// Receive returns what happens next, and io.EOF after Exit.
	Receive() (ExecOutput, error)
	SendStdin(p []byte) error
	CloseStdin() error
	Resize(size PTYSize) error
	// Signal takes "SIGTERM" or "SIGKILL".
	Signal(name string) error
	// Ack says that all output before a position has arrived.
	Ack(offset uint64) error
	// Leave ends the session, and the stream after it.
	Leave() error
	Close() error
}

var _ ExecStream = (*hostclient.ExecStream)(nil)

// settleEvery is how often a row is read that somebody is about to move.
const settleEvery = 100 * time.Millisecond

// use returns the host of a sandbox that runs, and notes that it is used. A
// paused one that may be woken is: one caller moves its row, and their host
// makes one of the resumes of all. A row that says "running" of a sandbox that
// its host has paused meanwhile is no trouble: the host wakes it as well, or
// refuses.
func (s *Service) use(ctx context.Context, c Caller, id wrenn.SandboxID) (*hostclient.Client, error) {
	for {
		sb, host, err := s.at(ctx, c, id, wrenn.Running, wrenn.Pausing, wrenn.Paused, wrenn.Resuming)
		if err != nil {
			return nil, err
		}
		if sb.State != wrenn.Running && !sb.AutoResume {
			return nil, wrongState(sb, wrenn.Running)
		}
		switch sb.State {
		case wrenn.Paused:
			_, err = s.makeTurn(ctx, c, sb, host, resuming)
		case wrenn.Resuming:
			err = host.Resume(ctx, id)
		case wrenn.Pausing:
			pause(ctx, settleEvery)
			if err = context.Cause(ctx); err == nil {
				continue
			}
		}
		if errors.Is(err, postgres.ErrConflict) { // somebody else was first
			continue
		}
		if err != nil {
			return nil, err
		}
		s.usedBoxes.add(id)
		return host, nil
	}
}

// Exec runs a command to its end. When ctx ends first the command is killed.
// Its timeout is 30 s by default.
func (s *Service) Exec(ctx context.Context, c Caller, id wrenn.SandboxID, cmd ExecCommand) (*ExecResult, error) {
	if err := s.checkCommand(cmd); err != nil {
		return nil, err
	}
	host, err := s.use(ctx, c, id)
	if err != nil {
		return nil, err
	}
	defer s.usedBoxes.add(id) // it may have taken long
	return host.Exec(ctx, id, cmd)
}

// StartExec starts a command and watches it. The caller closes the stream.
func (s *Service) StartExec(ctx context.Context, c Caller, id wrenn.SandboxID, start ExecStart) (ExecStream, error) {
	if err := s.checkCommand(start.ExecCommand); err != nil {
		return nil, err
	}
	return s.open(ctx, c, id, func(host *hostclient.Client) (*hostclient.ExecStream, error) { return host.StartExec(ctx, id, start) })
}

// AttachExec watches a command that runs. The caller closes the stream.
func (s *Service) AttachExec(ctx context.Context, c Caller, id wrenn.SandboxID, to ExecAttach) (ExecStream, error) {
	return s.open(ctx, c, id, func(host *hostclient.Client) (*hostclient.ExecStream, error) { return host.AttachExec(ctx, id, to) })
}

func (s *Service) open(ctx context.Context, c Caller, id wrenn.SandboxID, f func(*hostclient.Client) (*hostclient.ExecStream, error)) (ExecStream, error) {
	host, err := s.use(ctx, c, id)
	if err != nil {
		return nil, err
	}
	stream, err := f(host)
	if err != nil {
		return nil, err // not an ExecStream that holds a nil
	}
	return &usedStream{ExecStream: stream, used: func() { s.usedBoxes.add(id) }}, nil
}

// usedStream notes at its end that the sandbox was used until then.
type usedStream struct {
	*hostclient.ExecStream
	used func()
}

func (u *usedStream) Close() error {
	u.used()
	return u.ExecStream.Close()
}

// WriteFile writes content to path. The file changes as a whole at the end or
// not at all; an error of content is returned as it is, with more around it.
func (s *Service) WriteFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string, content io.Reader) error {
	if err := checkFile(user, path); err != nil {
		return err
	}
	host, err := s.use(ctx, c, id)
	if err != nil {
		return err
	}
	defer s.usedBoxes.add(id)
	return host.Write(ctx, id, user, path, content)
}

// ReadFile opens a file. The caller closes it. A cut transfer is an error of
// Read, never io.EOF.
func (s *Service) ReadFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string) (io.ReadCloser, error) {
	if err := checkFile(user, path); err != nil {
		return nil, err
	}
	host, err := s.use(ctx, c, id)
	if err != nil {
		return nil, err
	}
	return host.Read(ctx, id, user, path)
}
