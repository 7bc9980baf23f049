// Package guestagent calls the agent of a sandbox, envd, through a connection that the
// sandbox's host makes to its port: for calls that need no more of the host than that.
package guestagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
)

// Host connects to the ports of sandboxes; see hostclient.Client.
type Host interface {
	DialPort(ctx context.Context, id wrenn.SandboxID, port uint16) (net.Conn, error)
}

// Agent is a client of one sandbox's agent. The caller must Close it.
type Agent struct {
	*envdclient.Client

	conn net.Conn // of Open
}

// Open connects to a sandbox's agent. token is the sandbox's access token. Its errors
// are those of Host.DialPort, but Unavailable when the agent does not listen.
func Open(ctx context.Context, host Host, id wrenn.SandboxID, token string) (*Agent, error) {
	conn, err := host.DialPort(ctx, id, wrenn.EnvdPort)
	if errors.Is(err, wrenn.ErrPortClosed) {
		return nil, wrenn.Errorf(wrenn.Unavailable, "the sandbox's agent does not listen: try again, or pause and resume the sandbox")
	}
	if err != nil {
		return nil, err
	}
	var used atomic.Bool
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		if used.CompareAndSwap(false, true) {
			return conn, nil
		}
		return host.DialPort(ctx, id, wrenn.EnvdPort)
	}
	address := fmt.Sprintf("%s:%d", id, wrenn.EnvdPort)
	return &Agent{Client: envdclient.New(envdclient.Config{Dial: dial, Address: address, Token: token}), conn: conn}, nil
}

// Close ends all calls and watches. Twice is allowed.
func (a *Agent) Close() {
	a.Client.Close()
	_ = a.conn.Close() // when no call was made; nothing is in flight
}

// Explain returns err, the error of a call; if the host has cut the connection, it
// returns why, such as CutByPause.
func (a *Agent) Explain(ctx context.Context, err error) error {
	cut, ok := a.conn.(interface{ WhyCut(context.Context) error })
	if !ok || wrenn.CodeOf(err) != wrenn.Unavailable {
		return err
	}
	if why := cut.WhyCut(ctx); why != nil {
		return why
	}
	return err
}

// Watch is WatchDir whose errors are explained. Closing the watch closes the agent.
func (a *Agent) Watch(ctx context.Context, user, path string, recursive bool) (*Watch, error) {
	watch, err := a.WatchDir(ctx, user, path, recursive)
	if err != nil {
		return nil, a.Explain(ctx, err)
	}
	return &Watch{FileWatch: watch, ctx: ctx, agent: a}, nil
}

// Watch is a directory that is watched; see envdclient.FileWatch.
type Watch struct {
	*envdclient.FileWatch

	ctx   context.Context // of Agent.Watch
	agent *Agent
}

// Next waits for a change. It returns io.EOF when the directory was removed.
func (w *Watch) Next() (wrenn.FileChange, error) {
	change, err := w.FileWatch.Next()
	return change, w.agent.Explain(w.ctx, err)
}

// Close ends the watch and closes the agent. Twice is allowed.
func (w *Watch) Close() {
	w.FileWatch.Close()
	w.agent.Close()
}
