package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/telemetry"
)

// Steps is a histogram of how long the steps of sandboxes take. Observe is a
// sandbox.Config.Trace.
type Steps struct{ took *prometheus.HistogramVec }

// NewSteps registers the histogram.
func NewSteps(registry prometheus.Registerer) *Steps {
	s := &Steps{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "wrenn_sandbox_step_seconds", Help: "Time that each step in the life of a sandbox took.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"step"})}
	registry.MustRegister(s.took)
	return s
}

// Observe counts a step. One of a traced call is an exemplar with the trace's id.
func (s *Steps) Observe(ctx context.Context, _ wrenn.SandboxID, step string, took time.Duration) {
	telemetry.Observe(ctx, s.took.WithLabelValues(step), took)
}

// collector reads the manager when it is scraped.
type collector struct {
	manager                            *sandbox.Manager
	sandboxes, memory, disk, maxMemory *prometheus.Desc
	ready, claims                      *prometheus.Desc
	unstored, unstoredAge              *prometheus.Desc
	stored, storedBytes, storeFailed   *prometheus.Desc
	removed, removalsFailed            *prometheus.Desc
}

// NewCollector shows the inventory and the capacity of the manager.
func NewCollector(manager *sandbox.Manager) prometheus.Collector {
	return &collector{
		manager:   manager,
		sandboxes: prometheus.NewDesc("wrenn_sandboxes", "Sandboxes on this host.", []string{"status"}, nil),
		memory:    prometheus.NewDesc("wrenn_memory_used_bytes", "Memory of the machines of sandboxes, as they were created.", nil, nil),
		maxMemory: prometheus.NewDesc("wrenn_memory_limit_bytes", "Limit of the memory of all machines together; 0 is no limit.", nil, nil),
		ready:     prometheus.NewDesc("wrenn_ready_machines", "Machines of the warm pool that no sandbox has claimed yet.", nil, nil),
		claims:    prometheus.NewDesc("wrenn_ready_machine_claims_total", "Sandboxes that could claim a machine of the warm pool: hit if they got one, else miss.", []string{"result"}, nil),
		disk:      prometheus.NewDesc("wrenn_disk_free_bytes", "Space left for disks and snapshots.", nil, nil),

		unstored:    prometheus.NewDesc("wrenn_snapshots_not_stored", "Paused sandboxes that are on this host alone and are to be stored.", nil, nil),
		unstoredAge: prometheus.NewDesc("wrenn_snapshots_not_stored_age_seconds", "Time since the first of them was paused.", nil, nil),
		stored:      prometheus.NewDesc("wrenn_snapshots_stored_total", "Paused sandboxes that were stored.", nil, nil),
		storedBytes: prometheus.NewDesc("wrenn_snapshots_stored_bytes_total", "Bytes that were sent to the snapshot store.", nil, nil),
		storeFailed: prometheus.NewDesc("wrenn_snapshots_store_failures_total", "Attempts to store a paused sandbox that failed.", nil, nil),

		removed:        prometheus.NewDesc("wrenn_snapshots_unfinished_uploads_removed_total", "Uploads that killed agents have left in the snapshot store, and that this host has removed.", nil, nil),
		removalsFailed: prometheus.NewDesc("wrenn_snapshots_unfinished_uploads_failures_total", "Looks for such uploads that failed.", nil, nil),
	}
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.ready, c.claims, c.sandboxes, c.memory, c.maxMemory, c.disk, c.unstored, c.unstoredAge, c.stored, c.storedBytes, c.storeFailed, c.removed, c.removalsFailed} {
		out <- d
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	for status, n := range c.manager.Statuses() { // every status, always: a missing series does not read as zero
		out <- prometheus.MustNewConstMetric(c.sandboxes, prometheus.GaugeValue, float64(n), string(status))
	}
	pool := c.manager.Pool()
	out <- prometheus.MustNewConstMetric(c.ready, prometheus.GaugeValue, float64(pool.Ready))
	out <- prometheus.MustNewConstMetric(c.claims, prometheus.CounterValue, float64(pool.Hits), "hit")
	out <- prometheus.MustNewConstMetric(c.claims, prometheus.CounterValue, float64(pool.Misses), "miss")
	if c.manager.HasStore() {
		c.collectStored(out)
	}
	capacity, err := c.manager.Capacity()
	if err != nil {
		out <- prometheus.NewInvalidMetric(c.disk, err)
		return
	}
	for desc, mib := range map[*prometheus.Desc]int64{
		c.memory: capacity.MemoryMiBUsed, c.maxMemory: capacity.MemoryMiB, c.disk: capacity.DiskMiBFree,
	} {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(mib)*(1<<20))
	}
}

func (c *collector) collectStored(out chan<- prometheus.Metric) {
	stats := c.manager.StoreStats()
	out <- prometheus.MustNewConstMetric(c.unstored, prometheus.GaugeValue, float64(stats.Waiting))
	out <- prometheus.MustNewConstMetric(c.unstoredAge, prometheus.GaugeValue, stats.Oldest.Seconds())
	out <- prometheus.MustNewConstMetric(c.stored, prometheus.CounterValue, float64(stats.Done))
	out <- prometheus.MustNewConstMetric(c.storedBytes, prometheus.CounterValue, float64(stats.Sent))
	out <- prometheus.MustNewConstMetric(c.storeFailed, prometheus.CounterValue, float64(stats.Failed))
	out <- prometheus.MustNewConstMetric(c.removed, prometheus.CounterValue, float64(stats.Removed))
	out <- prometheus.MustNewConstMetric(c.removalsFailed, prometheus.CounterValue, float64(stats.RemovalsFailed))
}
