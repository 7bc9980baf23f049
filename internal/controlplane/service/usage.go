package service

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
)

// MaxMetrics bounds the sandboxes of one LastMetrics.
const MaxMetrics = 100

// SandboxMetrics returns what a sandbox used from one moment to another, both
// included, oldest first, also while it is paused. A zero time is no bound. There
// is a sample for every wrenn.MetricsEvery, and fewer for what is long ago.
func (s *Sandboxes) SandboxMetrics(ctx context.Context, c Caller, id wrenn.SandboxID, from, to time.Time) ([]wrenn.MetricsSample, error) {
	sb, host, err := s.locate(ctx, c, id, wrenn.Running, wrenn.Paused, wrenn.Pausing, wrenn.Resuming)
	if err != nil {
		return nil, err
	}
	samples, err := host.Metrics(ctx, id, from, to)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		s.reconciler.Notify(sb.Host)
		return nil, lostError(sb)
	}
	return samples, err
}

// LastMetrics returns the newest sample of each of the sandboxes, at most
// MaxMetrics. Those that do not exist, or have none, are left out.
func (s *Sandboxes) LastMetrics(ctx context.Context, c Caller, ids []wrenn.SandboxID) (map[wrenn.SandboxID]wrenn.MetricsSample, error) {
	if len(ids) > MaxMetrics {
		return nil, wrenn.Errorf(wrenn.Invalid, "metrics are for at most %d sandboxes at a time, not %d", MaxMetrics, len(ids))
	}
	const atATime = 8
	newest := make([]*wrenn.MetricsSample, len(ids))
	var g errgroup.Group
	g.SetLimit(atATime)
	for i, id := range ids {
		g.Go(func() error {
			samples, err := s.SandboxMetrics(ctx, c, id, time.Now().Add(-time.Minute), time.Time{})
			if code := wrenn.CodeOf(err); code == wrenn.NotFound || code == wrenn.FailedPrecondition {
				return nil
			}
			if len(samples) > 0 {
				newest[i] = &samples[len(samples)-1]
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := map[wrenn.SandboxID]wrenn.MetricsSample{}
	for i, id := range ids {
		if newest[i] != nil {
			out[id] = *newest[i]
		}
	}
	return out, nil
}
