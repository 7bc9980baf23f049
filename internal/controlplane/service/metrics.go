package service

import (
	"github.com/prometheus/client_golang/prometheus"

	"wrenn"
)

// collector shows the hosts as this replica sees them when it is scraped.
type collector struct {
	service                            *Service
	up, sandboxes, memoryUsed, orphans *prometheus.Desc
}

// Collector returns the metrics of the hosts. Those of unknown sandboxes are
// from the replica that reconciles; the others show none.
func (s *Service) Collector() prometheus.Collector {
	host := []string{"host"}
	return &collector{
		service:    s,
		up:         prometheus.NewDesc("wrenn_host_up", "1 when the host's agent answers.", host, nil),
		sandboxes:  prometheus.NewDesc("wrenn_host_sandboxes", "Sandboxes that have a machine there, as the host said last.", host, nil),
		memoryUsed: prometheus.NewDesc("wrenn_host_memory_used_bytes", "Memory that they were promised, as the host said last.", host, nil),
		orphans: prometheus.NewDesc("wrenn_host_unknown_sandboxes",
			"Sandboxes in quarantine, or that no row explains, which a person has to look at; only from the replica that reconciles.", host, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.sandboxes, c.memoryUsed, c.orphans} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, host wrenn.HostID) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, string(host))
	}
	for id, m := range c.service.fleet.members {
		up, info := m.known()
		gauge(c.up, map[bool]float64{true: 1}[up], id)
		if info.Instance != "" { // it has answered once
			gauge(c.sandboxes, float64(info.Capacity.SandboxesUsed), id)
			gauge(c.memoryUsed, float64(info.Capacity.MemoryMiBUsed)*(1<<20), id)
		}
	}
	for id, n := range c.service.loop.Unknown() {
		gauge(c.orphans, float64(n), id)
	}
}
