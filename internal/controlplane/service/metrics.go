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
	up, sandboxes, memoryUsed, unknown *prometheus.Desc
}

func newCollector(hosts *fleet, reconciler *reconcile.Loop) *collector {
	label := []string{"host"}
	return &collector{
		hosts: hosts, reconciler: reconciler,
		up:         prometheus.NewDesc("wrenn_host_up", "1 when the host's agent answers.", label, nil),
		sandboxes:  prometheus.NewDesc("wrenn_host_sandboxes", "Sandboxes with a machine on the host, from its last answer.", label, nil),
		memoryUsed: prometheus.NewDesc("wrenn_host_memory_used_bytes", "Memory promised to these sandboxes, from the host's last answer.", label, nil),
		unknown: prometheus.NewDesc("wrenn_host_unknown_sandboxes",
			"Sandboxes in quarantine, or that no row explains, which need an operator; only from the replica that reconciles.", label, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.sandboxes, c.memoryUsed, c.unknown} {
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
	for id, n := range c.reconciler.Unknown() {
		gauge(c.unknown, float64(n), id)
	}
}
