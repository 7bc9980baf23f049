package sandbox

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"wrenn.dev"
)

const (
	// maxAsking bounds the guests that are asked for metrics at a time.
	maxAsking = 8
	// saveMetricsEvery is how much of the samples an agent loses that is killed.
	saveMetricsEvery = 5 * time.Minute
)

// measure takes a sample of each running sandbox every wrenn.MetricsEvery, until
// ctx ends.
func (h *host) measure(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	places := make(chan struct{}, maxAsking)
	ticker, save := time.NewTicker(h.cfg.MetricsEvery), time.NewTicker(saveMetricsEvery)
	defer ticker.Stop()
	defer save.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-save.C:
			h.saveMetrics(ctx)
		case now := <-ticker.C:
			for _, s := range h.registry.all() {
				if s.request.isInternal() || s.Info().Status != StatusRunning || !h.measureCPU(s, now) {
					continue
				}
				asking.Go(func() { askUsage(ctx, s, places) })
			}
		}
	}
}

// measureCPU takes a sample, and reports whether the guest is to be asked for the
// next one's memory and disk.
func (h *host) measureCPU(s *Sandbox, now time.Time) bool {
	j := s.journal.latest.Load()
	if j == nil || j.Instance == nil || j.Instance.Machine == nil {
		return false
	}
	pid := j.Instance.Machine.PID
	cpu, err := h.cfg.CPUTime(pid)
	if err != nil { // the VMM has just ended
		return false
	}
	return s.meter.take(now, pid, cpu, s.request.VCPUs)
}

// askUsage asks the guest, when there is a place among those that are asked.
func askUsage(ctx context.Context, s *Sandbox, places chan struct{}) {
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-places }()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	used, err := s.Guest().Usage(ctx)
	s.meter.answer(time.Now(), used, err)
}

// Metrics returns what the sandbox used from one moment to another, both included,
// oldest first, also while it is paused. A zero time is no bound. The further back,
// the fewer the samples. Memory and disk are as the guest reports them, when the
// machine has done something since.
func (s *Sandbox) Metrics(from, to time.Time) []wrenn.MetricsSample {
	return s.meter.series.Between(from, to)
}

// saveMetrics keeps the new samples of all sandboxes for the next agent, but for those
// to which something is being done now, which may be their removal.
func (h *host) saveMetrics(ctx context.Context) {
	for _, s := range h.registry.all() {
		if locked, ok := s.tryLock(); ok {
			saveMetrics(ctx, locked)
			locked.unlock()
		}
	}
}

func saveMetrics(ctx context.Context, s locked) {
	status := s.Info().Status
	if s.request.isInternal() || status != StatusRunning && status != StatusPaused {
		return
	}
	if err := s.meter.series.Save(filepath.Join(s.dir(), metricsFile)); err != nil {
		s.logError(ctx, slog.LevelWarn, "cannot keep metrics; will retry", err)
	}
}
