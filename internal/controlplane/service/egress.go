package service

import (
	"context"
	"time"

	"wrenn.dev"
)

// EgressLog returns what a sandbox reached and was denied after the event with that
// number, oldest first. Without such events it waits for one for at most wait, up to
// wrenn.MaxEgressWait.
func (s *Sandboxes) EgressLog(ctx context.Context, c Caller, id wrenn.SandboxID, after uint64, wait time.Duration) (wrenn.EgressLog, error) {
	sb, host, err := s.locate(ctx, c, id, wrenn.Running, wrenn.Paused, wrenn.Pausing, wrenn.Resuming)
	if err != nil {
		return wrenn.EgressLog{}, err
	}
	log, err := host.Egress(ctx, id, after, min(max(wait, 0), wrenn.MaxEgressWait))
	if wrenn.CodeOf(err) == wrenn.NotFound {
		s.reconciler.Notify(sb.Host)
		return wrenn.EgressLog{}, lostError(sb)
	}
	return log, err
}

// ExplainEgress reports whether a sandbox may reach a host, an IPv4 address or a name, at
// a port, and why; port 0 is any. Invalid when host is neither.
func (s *Sandboxes) ExplainEgress(ctx context.Context, c Caller, id wrenn.SandboxID, to string, port uint16) (wrenn.EgressExplanation, error) {
	to = wrenn.CanonicalName(to)
	if err := wrenn.CheckEgressHost(to); err != nil {
		return wrenn.EgressExplanation{}, err
	}
	sb, host, err := s.locate(ctx, c, id, wrenn.Running, wrenn.Paused, wrenn.Pausing, wrenn.Resuming)
	if err != nil {
		return wrenn.EgressExplanation{}, err
	}
	e, err := host.ExplainEgress(ctx, id, to, port)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		s.reconciler.Notify(sb.Host)
		return wrenn.EgressExplanation{}, lostError(sb)
	}
	return e, err
}
