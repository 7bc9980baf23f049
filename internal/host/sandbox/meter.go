package sandbox

import (
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/sandbox/usage"
)

const (
	// askAfter is how much CPU time a machine uses before its guest is asked again
	// for its memory and disk. A guest that does nothing is not asked, and costs one
	// read of a file of /proc: its memory and disk are as they were.
	askAfter = 250 * time.Millisecond
	// askTimeout bounds a question. A guest that did not answer one is asked again
	// after minSilence, and twice that after each further one, up to maxSilence.
	askTimeout = 4 * time.Second
	minSilence = 5 * time.Second
	maxSilence = time.Minute
)

// metricsFile is the name of the file that has a sandbox's samples while no agent runs.
const metricsFile = "metrics.json"

// meter measures what a sandbox uses. The zero value is ready. Take is called by
// one goroutine at a time, the others at any time.
type meter struct {
	series usage.Series

	pid   int // of the VMM that was measured
	cpu   time.Duration
	at    time.Time
	asked time.Duration // the CPU time at the last question

	mu     sync.Mutex // guards what follows
	known  envdclient.Usage
	fresh  bool // the VMM's guest has answered the last question
	asking bool
	silent time.Time     // the guest is not asked before that
	wait   time.Duration // from the last question, which was not answered, to silent
}

// take adds a sample of the machine with that process, CPU time and CPUs, once it was
// measured before and its guest has answered a question, and reports whether to ask
// the guest now.
func (m *meter) take(now time.Time, pid int, cpu time.Duration, cpus int) (ask bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	elapsed := now.Sub(m.at)
	if pid != m.pid {
		m.fresh, m.silent, m.wait = false, time.Time{}, 0
	} else if elapsed > 0 && m.known.MemoryTotal > 0 {
		percent := 100 * float64(cpu-m.cpu) / float64(elapsed) / float64(cpus)
		m.series.Add(wrenn.MetricsSample{
			At: now.UTC().Truncate(time.Second), CPUs: cpus, CPUPercent: min(100, max(0, percent)),
			MemoryUsed: m.known.MemoryUsed, MemoryTotal: m.known.MemoryTotal, MemoryCache: m.known.MemoryCache,
			DiskUsed: m.known.DiskUsed, DiskTotal: m.known.DiskTotal,
		})
	}
	m.pid, m.cpu, m.at = pid, cpu, now
	if m.asking || now.Before(m.silent) || m.fresh && cpu-m.asked < askAfter {
		return false
	}
	m.asked, m.asking = cpu, true
	return true
}

// answer ends a question, at a time, with what the guest answered, or an error.
func (m *meter) answer(now time.Time, u envdclient.Usage, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asking, m.fresh = false, err == nil
	if err != nil {
		m.wait = min(max(2*m.wait, minSilence), maxSilence)
		m.silent = now.Add(m.wait)
		return
	}
	m.known, m.wait = u, 0
}
