package service

import (
	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/reconcile"
)

// collector shows the hosts as this replica sees them when it is scraped.
type collector struct {
	hosts                              *fleet
	reconciler                         *reconcile.Loop
	store                              *storeCollector
	up, sandboxes, memoryUsed, unknown *prometheus.Desc

	storeObjects, storeBytes, storeFailures, storeHeld *prometheus.Desc
}

func newCollector(hosts *fleet, reconciler *reconcile.Loop, store *storeCollector) *collector {
	label := []string{"host"}
	return &collector{
		hosts: hosts, reconciler: reconciler, store: store,
		up:         prometheus.NewDesc("wrenn_host_up", "1 when the host's agent answers.", label, nil),
		sandboxes:  prometheus.NewDesc("wrenn_host_sandboxes", "Sandboxes with a machine on the host, from its last answer.", label, nil),
		memoryUsed: prometheus.NewDesc("wrenn_host_memory_used_bytes", "Memory promised to these sandboxes, from the host's last answer.", label, nil),
		unknown: prometheus.NewDesc("wrenn_host_unknown_sandboxes",
			"Sandboxes in quarantine, or that no row explains, which need an operator; only from the replica that reconciles.", label, nil),

		storeObjects:  prometheus.NewDesc("wrenn_store_deleted_objects_total", "Objects that nothing needed and that were deleted from the snapshot store.", nil, nil),
		storeBytes:    prometheus.NewDesc("wrenn_store_deleted_bytes_total", "Bytes of these objects.", nil, nil),
		storeFailures: prometheus.NewDesc("wrenn_store_collection_failures_total", "Teams of which such objects could not be deleted, each time that it was tried.", nil, nil),
		storeHeld:     prometheus.NewDesc("wrenn_store_collection_held", "1 when nothing is deleted from the snapshot store, because a host does not answer or its agent is too old; only from the replica that collects.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.sandboxes, c.memoryUsed, c.unknown, c.storeObjects, c.storeBytes, c.storeFailures, c.storeHeld} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, host wrenn.HostID) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, string(host))
	}
	for _, m := range c.hosts.all() {
		up, info := m.known()
		gauge(c.up, map[bool]float64{true: 1}[up], m.id)
		if info.Instance != "" { // it has answered once
			gauge(c.sandboxes, float64(info.Capacity.SandboxesUsed), m.id)
			gauge(c.memoryUsed, float64(info.Capacity.MemoryMiBUsed)*(1<<20), m.id)
		}
	}
	counter := func(desc *prometheus.Desc, value uint64) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value))
	}
	counter(c.storeObjects, c.store.objects.Load())
	counter(c.storeBytes, c.store.bytes.Load())
	counter(c.storeFailures, c.store.failures.Load())
	out <- prometheus.MustNewConstMetric(c.storeHeld, prometheus.GaugeValue, map[bool]float64{true: 1}[c.store.held.Load()])
	for id, n := range c.reconciler.Unknown() {
		gauge(c.unknown, float64(n), id)
	}
}
