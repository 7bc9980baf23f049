package service

import (
	"context"
	"net"

	"wrenn"
	"wrenn/internal/controlplane/hostclient"
)

// Ports connects to the ports of sandboxes: of any team for the gateway, whose
// callers need no key, of the caller's team for the API.
type Ports struct{ *core }

// ConnectPort connects to a TCP port of a sandbox of the caller's team; see DialPort.
func (p *Ports) ConnectPort(ctx context.Context, c Caller, id wrenn.SandboxID, port uint16) (net.Conn, error) {
	host, err := p.use(ctx, c, id)
	if err != nil {
		return nil, err
	}
	return host.DialPort(ctx, id, port)
}

// DialPort connects to a TCP port of a sandbox, of any team. It waits while the
// sandbox is in transition and resumes one that is resumed by its use. NotFound
// and FailedPrecondition say that it does not run, wrenn.ErrPortClosed that no
// program listens. The connection breaks when the sandbox is paused or ends; the
// caller closes it.
func (p *Ports) DialPort(ctx context.Context, id wrenn.SandboxID, port uint16) (net.Conn, error) {
	host, err := p.awaitRunning(ctx, id)
	if err != nil {
		return nil, err
	}
	return host.DialPort(ctx, id, port)
}

func (p *Ports) awaitRunning(ctx context.Context, id wrenn.SandboxID) (*hostclient.Client, error) {
	for {
		sb, err := p.store.Sandbox(ctx, id)
		if err != nil {
			return nil, err
		}
		if sb.AutoResume && !sb.State.Ended() || !sb.State.InTransition() || sb.State == wrenn.Stopping {
			return p.use(ctx, Caller{Team: sb.Team}, id)
		}
		if !sleep(ctx, pollRow) {
			return nil, context.Cause(ctx)
		}
	}
}

// Runs reports whether the sandbox runs, by its row.
func (p *Ports) Runs(ctx context.Context, id wrenn.SandboxID) bool {
	sb, err := p.store.Sandbox(ctx, id)
	return err == nil && sb.State == wrenn.Running
}

// Used records that the sandbox is used now.
func (p *Ports) Used(id wrenn.SandboxID) { p.used.add(id) }

// AccessToken returns the token that callers of a sandbox's envd must have. It
// stays the same for the sandbox's life. It is not checked whether the sandbox exists.
func (p *Ports) AccessToken(ctx context.Context, id wrenn.SandboxID) (string, error) {
	return p.tokens.of(ctx, id)
}
