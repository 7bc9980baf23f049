package service

import (
	"context"
	"errors"
	"net"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/recent"
	"wrenn.dev/internal/wake"
)

// Ports connects to the ports of sandboxes: of any team for the gateway, whose
// callers need no key, of the caller's team for the API.
type Ports struct {
	*core

	// located has the hosts of sandboxes that were reached a moment ago. The host
	// decides; what it refuses is looked up again.
	located *recent.Cache[wrenn.SandboxID, placement]
	// ingress has what is known of sandboxes' ingress, which never changes.
	ingress *recent.Cache[wrenn.SandboxID, wrenn.Ingress]
}

// placement is a sandbox on a host.
type placement struct {
	host  wrenn.HostID
	epoch wrenn.Epoch
}

func newPorts(c *core) *Ports {
	return &Ports{
		core: c, located: recent.New[wrenn.SandboxID, placement](maxLocated, locatedTTL),
		ingress: recent.New[wrenn.SandboxID, wrenn.Ingress](maxLocated, ingressTTL),
	}
}

const (
	maxLocated = 64 << 10
	locatedTTL = 10 * time.Second
	ingressTTL = time.Hour
)

// ConnectPort connects to a TCP port of a sandbox of the caller's team; see DialPort.
func (p *Ports) ConnectPort(ctx context.Context, c Caller, id wrenn.SandboxID, port uint16) (conn net.Conn, err error) {
	err = p.onHost(ctx, c, id, func(host *hostclient.Client) (err error) {
		conn, err = host.DialPort(ctx, id, port)
		return err
	})
	return conn, err
}

// DialPort connects to a TCP port of a sandbox, of any team. It waits while the
// sandbox is in transition and resumes one that is resumed by its use. NotFound
// and FailedPrecondition say that it does not run, wrenn.ErrPortClosed that no
// program listens. The connection breaks when the sandbox is paused or ends; the
// caller closes it.
func (p *Ports) DialPort(ctx context.Context, id wrenn.SandboxID, port uint16) (net.Conn, error) {
	if at, ok := p.located.Get(id, time.Now()); ok {
		conn, err := p.dialAt(ctx, at, id, port)
		if err == nil || errors.Is(err, wrenn.ErrPortClosed) || ctx.Err() != nil {
			return conn, err
		}
		p.located.Drop(id) // it may have ended, or moved
	}
	at, err := p.awaitRunning(ctx, id)
	if err != nil {
		return nil, err
	}
	conn, err := p.dialAt(ctx, at, id, port)
	if err == nil || errors.Is(err, wrenn.ErrPortClosed) {
		p.located.Put(id, at, time.Now())
	}
	return conn, err
}

func (p *Ports) dialAt(ctx context.Context, at placement, id wrenn.SandboxID, port uint16) (net.Conn, error) {
	host, err := p.hosts.client(at.host)
	if err != nil {
		return nil, err
	}
	return host.At(at.epoch).DialPort(ctx, id, port)
}

// awaitRunning returns where a sandbox runs.
func (p *Ports) awaitRunning(ctx context.Context, id wrenn.SandboxID) (placement, error) {
	for {
		sb, err := p.store.Sandbox(ctx, id)
		if err != nil {
			return placement{}, err
		}
		if sb.State == wrenn.Running {
			return placement{sb.Host, sb.Epoch}, nil
		}
		if sb.AutoResume && !sb.State.Ended() || !sb.State.InTransition() || sb.State == wrenn.Stopping {
			host, err := p.use(ctx, Caller{Team: sb.Team}, id)
			if err != nil {
				return placement{}, err
			}
			return placement{host.ID(), host.Epoch()}, nil // another one than the row's, if it was moved
		}
		if !wake.Sleep(ctx, pollRow) {
			return placement{}, context.Cause(ctx)
		}
	}
}

// maxLive bounds the sandboxes among which that of a signed URL is searched.
const maxLive = 50_000

// Tokens returns the access tokens of all sandboxes that have not ended, of all
// teams. FailedPrecondition when there are too many.
func (p *Ports) Tokens(ctx context.Context) (map[wrenn.SandboxID]string, error) {
	ids, err := p.store.LiveSandboxes(ctx, maxLive+1)
	if err != nil {
		return nil, err
	}
	if len(ids) > maxLive {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "there are too many sandboxes to find the one of a signed URL that does not name it: use the URL of a domain")
	}
	return p.tokens.ofAll(ctx, ids)
}

// Ingress returns who reaches the ports of a sandbox, of any team, and how.
// NotFound when there is no such sandbox, or it has ended; a while after its end it
// may be returned still.
func (p *Ports) Ingress(ctx context.Context, id wrenn.SandboxID) (wrenn.Ingress, error) {
	if known, ok := p.ingress.Get(id, time.Now()); ok {
		return known, nil
	}
	found, err := p.store.Ingress(ctx, id)
	if err == nil {
		p.ingress.Put(id, found, time.Now())
	}
	return found, err
}

// TrafficToken returns the token that clients of a private sandbox's ports must
// have; see AccessToken, which it is not.
func (p *Ports) TrafficToken(ctx context.Context, id wrenn.SandboxID) (string, error) {
	return p.tokens.ofTraffic(ctx, id)
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
