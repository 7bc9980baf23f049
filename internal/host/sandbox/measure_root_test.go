//go:build root

package sandbox

import (
	"context"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// busyMachines is the CPU time of fake machines, which have no process. They use half a CPU.
func busyMachines(int) (time.Duration, error) { return time.Since(began) / 2, nil }

var began = time.Now()

func samples(s *Sandbox) []wrenn.MetricsSample { return s.Metrics(time.Time{}, time.Time{}) }

func TestMetrics(t *testing.T) {
	l := newLab(t)
	l.cfg.Adopt, l.cfg.MetricsEvery, l.cfg.CPUTime = true, 20*time.Millisecond, busyMachines
	m := l.open(t)
	stop := measuring(t, m)
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), poolable)
	must(t, err)
	testkit.WaitUntil(t, "there are samples", func() bool { return len(samples(sb)) >= 2 })
	last := samples(sb)[1]
	if last.CPUs != small.VCPUs || last.MemoryTotal <= 0 || last.MemoryUsed <= 0 || last.DiskTotal <= 0 || last.CPUPercent <= 0 || last.CPUPercent > 100 {
		t.Errorf("sample = %+v", last)
	}
	if used := sb.Info().LastActiveAt; used.After(last.At.Add(time.Second)) {
		t.Errorf("measuring is a use: %v", used)
	}
	must(t, sb.Pause(t.Context()))
	before := samples(sb)
	must(t, sb.Resume(t.Context()))
	testkit.WaitUntil(t, "there are more samples after the pause", func() bool { return len(samples(sb)) > len(before) })
	stop()
	m.Close()
	kept := len(samples(sb))
	l.crash(t)

	m = l.open(t)
	adopted, err := m.Get(sb.ID())
	must(t, err)
	destroyLater(t, adopted)
	if n := len(samples(adopted)); n != kept {
		t.Errorf("the next agent has %d samples, want %d", n, kept)
	}
	measuring(t, m)
	testkit.WaitUntil(t, "the next agent adds samples", func() bool { return len(samples(adopted)) > kept })
}

// A guest that does not answer has no samples, and does not keep those of others.
func TestMetricsOfASilentGuest(t *testing.T) {
	l := newLab(t)
	l.cfg.MetricsEvery, l.cfg.CPUTime = 20*time.Millisecond, busyMachines
	m := l.open(t)
	silent, other := create(t, m), create(t, m)
	silent.Guest().Close() // which fails every call
	measuring(t, m)
	testkit.WaitUntil(t, "the other has samples", func() bool { return len(samples(other)) >= 2 })
	if n := len(samples(silent)); n != 0 {
		t.Errorf("%d samples of a guest that does not answer", n)
	}
}

// measuring measures until stop is called, at the end of the test at the latest.
func measuring(t *testing.T, m *Manager) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.measure(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}
