package service

import (
	"context"
	"io"

	"wrenn"
)

// ExecStream is one live stream of a command. Receive may be used by one
// goroutine while another sends. Close ends the stream, not the command.
type ExecStream interface {
	// Receive returns what happens next, and io.EOF after Exit.
	Receive() (ExecOutput, error)
	SendStdin(p []byte) error
	CloseStdin() error
	Resize(PTYSize) error
	// Signal takes "SIGTERM" or "SIGKILL".
	Signal(name string) error
	Close() error
}

// Exec runs a command to its end.
func (s *Service) Exec(ctx context.Context, c Caller, id wrenn.SandboxID, cmd ExecCommand) (*ExecResult, error) {
	return nil, errSkeleton
}

// StartExec starts a command and watches it.
func (s *Service) StartExec(ctx context.Context, c Caller, id wrenn.SandboxID, start ExecStart) (ExecStream, error) {
	return nil, errSkeleton
}

// AttachExec watches a command that runs.
func (s *Service) AttachExec(ctx context.Context, c Caller, id wrenn.SandboxID, pid int) (ExecStream, error) {
	return nil, errSkeleton
}

// WriteFile writes content to path. The file changes as a whole at the end or not at all.
func (s *Service) WriteFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string, content io.Reader) error {
	return errSkeleton
}

// ReadFile opens a file. The caller closes it. A cut transfer is an error of Read, never io.EOF.
func (s *Service) ReadFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string) (io.ReadCloser, error) {
	return nil, errSkeleton
}
