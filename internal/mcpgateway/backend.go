package mcpgateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"wrenn.dev/internal/plain"
)

// backend is a server behind the gateway, which is started again when it has ended.
type backend struct {
	program
	log    *slog.Logger
	stderr io.Writer // of the program

	mu      sync.Mutex // guards session, and is held while the program starts
	session *mcp.ClientSession
}

// open returns the session with the program, which is started unless it runs.
func (b *backend) open(ctx context.Context) (*mcp.ClientSession, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session != nil {
		return b.session, nil
	}
	session, err := b.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", b.name, err)
	}
	b.session = session
	go func() {
		err := session.Wait()
		b.log.LogAttrs(context.Background(), slog.LevelInfo, "server has ended", slog.String("server", b.name), slog.Any("err", err))
		b.forget(session)
	}()
	return session, nil
}

// forget has the next open start the program again.
func (b *backend) forget(session *mcp.ClientSession) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.session == session {
		b.session = nil
	}
}

func (b *backend) start(ctx context.Context) (*mcp.ClientSession, error) {
	if err := b.fetch(ctx); err != nil {
		return nil, err
	}
	// It lives longer than the call that starts it.
	cmd := b.command(context.WithoutCancel(ctx), b.argv)
	cmd.Stderr = b.stderr
	client := mcp.NewClient(&mcp.Implementation{Name: "wrenn-mcp-gateway", Version: "1"}, &mcp.ClientOptions{Capabilities: &mcp.ClientCapabilities{}})
	return client.Connect(ctx, &mcp.CommandTransport{Command: cmd}, nil)
}

// close ends the program. How it ends is of no interest.
func (b *backend) close() {
	b.mu.Lock()
	session := b.session
	b.mu.Unlock()
	if session != nil {
		_ = session.Close()
	}
}

// fetch clones and installs the server's repository unless that was done.
func (b *backend) fetch(ctx context.Context) error {
	if b.clone == "" {
		return nil
	}
	done := b.dir + ".installed"
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if err := os.RemoveAll(b.dir); err != nil { // an incomplete one
		return err
	}
	steps := []*exec.Cmd{exec.CommandContext(ctx, "git", "clone", "--quiet", "--depth", "1", b.clone, b.dir)}
	if b.install != "" {
		steps = append(steps, b.command(ctx, []string{"/bin/sh", "-c", b.install}))
	}
	for _, step := range steps {
		if out, err := step.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", plain.Shorten(step.String(), maxQuoted), err, tail(out))
		}
	}
	return os.WriteFile(done, nil, 0o600)
}

// maxQuoted bounds what an error quotes, in bytes.
const maxQuoted = 1 << 10

// tail returns the end of an output.
func tail(out []byte) []byte { return out[max(0, len(out)-maxQuoted):] }

// command returns a command in the server's directory with its variables. Canceling
// ctx ends it with all that it has started.
func (b *backend) command(ctx context.Context, argv []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = b.dir, os.Environ()
	for name, value := range b.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// call calls f with the session. A call during which the program ends is not repeated: it
// may have had an effect.
func call[T any](ctx context.Context, b *backend, f func(*mcp.ClientSession) (T, error)) (T, error) {
	session, err := b.open(ctx)
	if err != nil {
		var none T
		return none, err
	}
	result, err := f(session)
	// An error that the server did not answer with is one of the connection.
	if _, answered := errors.AsType[*jsonrpc.Error](err); err != nil && !answered && ctx.Err() == nil {
		b.forget(session)
		_ = session.Close()
		return result, fmt.Errorf("server %s has ended; it is started again for the next call: %w", b.name, err)
	}
	return result, err
}
