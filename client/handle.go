package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// closeWithin bounds Handle.Close.
const closeWithin = 30 * time.Second

// Handle is a sandbox to work with: its methods are those of Client that take the
// sandbox's id. It is safe for concurrent use, and holds no connection.
type Handle struct {
	c  *Client
	id string
}

// Create creates a sandbox and returns when it runs. The caller closes it, unless it
// should live on until its timeout.
func (c *Client) Create(ctx context.Context, s CreateSandbox) (*Handle, error) {
	sb, err := c.CreateSandbox(ctx, s)
	if err != nil {
		return nil, err
	}
	return c.Open(sb.ID), nil
}

// Open returns a handle of the sandbox with that id. It asks the server nothing: see
// Handle.Info for whether the sandbox exists.
func (c *Client) Open(id string) *Handle { return &Handle{c: c, id: id} }

// ID returns the sandbox's id.
func (h *Handle) ID() string { return h.id }

// Client returns the client that the handle uses.
func (h *Handle) Client() *Client { return h.c }

// Info returns the state of the sandbox, also after it ended.
func (h *Handle) Info(ctx context.Context) (*Sandbox, error) { return h.c.Sandbox(ctx, h.id) }

// Close destroys the sandbox, also when it is paused. It waits at most 30 seconds, and
// does not depend on the context of Create, so that it works in a defer statement after
// that has ended. Twice is allowed.
func (h *Handle) Close() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), closeWithin,
		&Error{Code: Unavailable, Message: fmt.Sprintf("sandbox %s may still exist: the server did not answer within %s", h.id, closeWithin)})
	defer cancel()
	return h.Delete(ctx)
}

// Delete is Close with a context of the caller's.
func (h *Handle) Delete(ctx context.Context) error { return h.c.DeleteSandbox(ctx, h.id) }

// Run runs a command and waits until it ends. See Client.Exec.
func (h *Handle) Run(ctx context.Context, cmd Command) (*Result, error) {
	return h.c.Exec(ctx, h.id, cmd)
}

// Shell runs a script by /bin/sh and waits until it ends. Each of args is $1, $2, … of
// the script: pass what is not yours by them and not in the script. See Client.Exec.
func (h *Handle) Shell(ctx context.Context, script string, args ...string) (*Result, error) {
	return h.Run(ctx, Command{Cmd: "/bin/sh", Args: append([]string{"-c", script, "sh"}, args...)})
}

// Start starts a command and returns when it runs. See Client.Start.
func (h *Handle) Start(ctx context.Context, cmd Command, opts StartOptions) (*Stream, error) {
	return h.c.Start(ctx, h.id, cmd, opts)
}

// Attach follows a running command. See Client.Attach.
func (h *Handle) Attach(ctx context.Context, pid int) (*Stream, error) {
	return h.c.Attach(ctx, h.id, pid)
}

// Processes lists the programs of the sandbox that run and were started by the API.
func (h *Handle) Processes(ctx context.Context) ([]Process, error) {
	return h.c.Processes(ctx, h.id)
}

// Logs returns the console of the sandbox; the caller closes it. See Client.Logs.
func (h *Handle) Logs(ctx context.Context, opts LogsOptions) (io.ReadCloser, error) {
	return h.c.Logs(ctx, h.id, opts)
}

// Pause saves the sandbox to a disk and returns when its memory is free. See
// Client.PauseSandboxBy.
func (h *Handle) Pause(ctx context.Context, opts PauseOptions) error {
	_, err := h.c.PauseSandboxBy(ctx, h.id, opts)
	return err
}

// Resume resumes the paused sandbox, with its programs and their memory, and returns
// when it runs.
func (h *Handle) Resume(ctx context.Context) error {
	_, err := h.c.ResumeSandbox(ctx, h.id)
	return err
}

// SetTimeout sets the idle time after which OnTimeout happens, counted from now; Never
// means no timeout.
func (h *Handle) SetTimeout(ctx context.Context, d time.Duration) error {
	_, err := h.c.SetTimeout(ctx, h.id, d)
	return err
}

// SetNetwork replaces what the sandbox may reach, at once. See Client.SetNetwork.
func (h *Handle) SetNetwork(ctx context.Context, p NetworkPolicy) error {
	_, err := h.c.SetNetwork(ctx, h.id, p)
	return err
}

// Fork makes running copies of the sandbox, all from the same moment, and returns when
// they run. If some could not be made it returns both the others and an error, in which
// there is an *Error for each: the caller closes the copies in any case.
func (h *Handle) Fork(ctx context.Context, f Fork) ([]*Handle, error) {
	forked, err := h.c.ForkSandbox(ctx, h.id, f)
	if err != nil {
		return nil, err
	}
	var copies []*Handle
	for _, sb := range forked.Sandboxes {
		copies = append(copies, h.c.Open(sb.ID))
	}
	var failed []error
	for _, e := range forked.Errors {
		failed = append(failed, &Error{Code: e.Code, Message: "copy " + e.ID + ": " + e.Message})
	}
	return copies, errors.Join(failed...)
}

// Checkpoint saves the state of the sandbox, which then continues, and returns its id.
// The name is for people, and may be empty.
func (h *Handle) Checkpoint(ctx context.Context, name string) (string, error) {
	saved, err := h.c.CreateCheckpoint(ctx, h.id, name)
	if err != nil {
		return "", err
	}
	return saved.ID, nil
}

// Restore goes back to a checkpoint of the sandbox. See Client.RestoreCheckpoint.
func (h *Handle) Restore(ctx context.Context, checkpoint string) error {
	_, err := h.c.RestoreCheckpoint(ctx, h.id, checkpoint)
	return err
}

// Dial connects to a TCP port of the sandbox; the caller closes the connection. See
// Client.DialPort.
func (h *Handle) Dial(ctx context.Context, port int) (net.Conn, error) {
	return h.c.DialPort(ctx, h.id, port)
}

// PortURL returns the URL of a web server in the sandbox. See Client.PortURL.
func (h *Handle) PortURL(port int) string { return h.c.PortURL(h.id, port) }

// Files returns the files of the sandbox, as the template's default user sees them.
func (h *Handle) Files() *Files { return &Files{h: h} }
