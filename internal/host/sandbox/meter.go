package sandbox

import (
	"sync"
	"time"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/host/sandbox/usage"
)

const (
	// askAfter is how much CPU time a machine uses before its guest is asked again
	// for its memory and disk. A guest that does nothing is not asked, and costs one
	// read of a file of /proc: its memory and disk are as they were.
	askAfter = 250 * time.Millisecond
	// askTimeout bounds a question, and silentFor the time in which a guest that did
	// not answer one is not asked again.
	askTimeout = 2 * time.Second
	silentFor  = time.Minute
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
	asked time.Duration // the CPU time at the last question; below zero before the first of a VMM

	mu     sync.Mutex // guards what follows
	known  envdclient.Usage
	asking bool
	silent time.Time // the guest is not asked before that
}

// take adds a sample of the machine with that process, CPU time and CPUs, once it was
// measured before and its guest has answered a question, and reports whether to ask
// the guest now.
func (m *meter) take(now time.Time, pid int, cpu time.Duration, cpus int) (ask bool) {
	elapsed := now.Sub(m.at)
	measured := pid == m.pid && elapsed > 0
	percent := min(100, max(0, 100*float64(cpu-m.cpu)/float64(elapsed)/float64(cpus)))
	if pid != m.pid {
		m.asked = -askAfter
	}
	m.pid, m.cpu, m.at = pid, cpu, now
	m.mu.Lock()
	defer m.mu.Unlock()
	if measured && m.known.MemoryTotal > 0 {
		m.series.Add(wrenn.MetricsSample{
			At: now.UTC().Truncate(time.Second), CPUs: cpus, CPUPercent: percent,
			MemoryUsed: m.known.MemoryUsed, MemoryTotal: m.known.MemoryTotal, MemoryCache: m.known.MemoryCache,
			DiskUsed: m.known.DiskUsed, DiskTotal: m.known.DiskTotal,
		})
	}
	if m.asking || now.Before(m.silent) || cpu-m.asked < askAfter {
		return false
	}
	m.asked, m.asking = cpu, true
	return true
}

// answer ends a question with what the guest answered, or an error.
func (m *meter) answer(u envdclient.Usage, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asking = false
	if err != nil {
		m.silent = time.Now().Add(silentFor)
		return
	}
	m.known = u
}
