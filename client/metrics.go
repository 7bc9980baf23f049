package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// MetricsSample is what a sandbox used at one moment. The guest reports its memory
// and disk.
type MetricsSample struct {
	Time             time.Time `json:"time"`
	CPUs             int       `json:"cpus"`
	CPUPercent       float64   `json:"cpu_percent"` // of all CPUs together, 0 to 100, since the sample before
	MemoryUsedBytes  int64     `json:"memory_used_bytes"`
	MemoryTotalBytes int64     `json:"memory_total_bytes"`
	MemoryCacheBytes int64     `json:"memory_cache_bytes"`
	DiskUsedBytes    int64     `json:"disk_used_bytes"`
	DiskTotalBytes   int64     `json:"disk_total_bytes"`
}

// MetricsOptions are optional settings of Metrics.
type MetricsOptions struct {
	Start, End time.Time // in whole seconds, both included; zero is no bound
}

// Metrics returns what a sandbox used, oldest first: a sample for every 5 seconds
// that it ran, and fewer for what is long ago. None before the first, which is
// taken within 10 seconds of the sandbox's start.
func (c *Client) Metrics(ctx context.Context, id string, opts MetricsOptions) ([]MetricsSample, error) {
	query := url.Values{}
	for name, at := range map[string]time.Time{"start": opts.Start, "end": opts.End} {
		if !at.IsZero() {
			query.Set(name, strconv.FormatInt(at.Unix(), 10))
		}
	}
	var out struct {
		Samples []MetricsSample `json:"samples"`
	}
	err := c.call(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/metrics"), query: query}, &out)
	return out.Samples, err
}
