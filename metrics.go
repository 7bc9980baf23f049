package wrenn

import "time"

// MetricsEvery is the time between two samples of a running sandbox.
const MetricsEvery = 5 * time.Second

// MetricsSample is what a sandbox used at one moment. Sizes are in bytes.
type MetricsSample struct {
	At         time.Time // in whole seconds
	CPUs       int
	CPUPercent float64 // of all CPUs together, since the sample before
	MemoryUsed, MemoryTotal,
	MemoryCache int64
	DiskUsed, DiskTotal int64
}
