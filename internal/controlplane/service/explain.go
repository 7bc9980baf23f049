package service

import (
	"cmp"
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/scheduler"
)

// Placement says why a sandbox is where it is, and where else it could be.
type Placement struct {
	Sandbox   *wrenn.Sandbox
	Decisions []Decision // oldest first
	Hosts     []HostVerdict
}

// Decision is when a sandbox got a host.
type Decision struct {
	At            time.Time
	Host          wrenn.HostID
	Actor, Reason string
}

// HostVerdict is whether a host could have a sandbox now, and why.
type HostVerdict struct {
	Host   wrenn.HostID
	Here   bool // it has the sandbox
	Fits   bool
	Reason string
	Cost   float64 // of one that fits; the lowest is picked
}

// ExplainPlacement returns why a sandbox of any team is where it is: what was decided,
// and what every host that is used looks like for it now, the best first. Of a sandbox
// that has ended it returns the decisions alone.
func (s *HostAdmin) ExplainPlacement(ctx context.Context, _ Caller, id wrenn.SandboxID) (*Placement, error) {
	sb, err := s.store.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &Placement{Sandbox: sb}
	if out.Decisions, err = s.decisions(ctx, id); err != nil || sb.State.Ended() {
		return out, err
	}
	place := s.hosts.restoring(ctx, sb)
	place.Stays = true
	if sb.State == wrenn.Starting && sb.Build != "" {
		g, err := s.store.FindBuild(ctx, sb.Build)
		if err != nil {
			return nil, err
		}
		if place.Template = s.hosts.sharedTemplate(g); place.Template == nil && g != nil {
			place.Only = g.Host
		}
	}
	for _, v := range scheduler.Explain(s.hosts.without(sb), &place) {
		out.Hosts = append(out.Hosts, HostVerdict{Host: v.Host, Here: v.Host == sb.Host, Fits: v.Reason == scheduler.Fits, Reason: v.Detail, Cost: v.Cost.Sum()})
	}
	return out, nil
}

// decisions returns the events by which a sandbox got a host.
func (s *HostAdmin) decisions(ctx context.Context, id wrenn.SandboxID) (out []Decision, err error) {
	events, err := s.store.Events(ctx, id)
	var last wrenn.HostID
	for _, e := range events {
		if e.Host != last {
			out = append(out, Decision{At: e.At, Host: e.Host, Actor: e.Actor, Reason: cmp.Or(e.Reason, "unknown")})
		}
		last = e.Host
	}
	return out, err
}

// without returns the candidates as they would be without a sandbox that runs.
func (f *fleet) without(sb *wrenn.Sandbox) []scheduler.Host {
	hosts := f.candidates(true)
	for i := range hosts {
		if hosts[i].ID == sb.Host && sb.State != wrenn.Paused {
			c := &hosts[i].Capacity
			c.MemoryMiBUsed = max(0, c.MemoryMiBUsed-int64(sb.MemoryMiB))
		}
	}
	return hosts
}
