package api

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev/internal/telemetry"
)

// metrics are the metrics of the API.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	streams  prometheus.Gauge
	sent     prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "wrenn_api_requests_total",
			Help: "Requests, by operation of the contract and status; status \"gone\" is a client that disconnected.",
		}, []string{"operation", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "wrenn_api_request_seconds",
			Help:    "From the request's header to the end of the answer; a stream lasts as long as its command.",
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"operation"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "wrenn_api_exec_streams", Help: "Open WebSockets of exec/stream.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "wrenn_api_sent_bytes_total", Help: "Bytes of answers, without WebSockets.",
		}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.streams, m.sent} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// done counts a request. Its labels are a closed set: none comes from a client.
func (m *metrics) done(ctx context.Context, rec *recorder, gone bool, took time.Duration) {
	name := "none"
	if rec.operation != nil {
		name = rec.operation.ID
	}
	status := strconv.Itoa(rec.status)
	if gone {
		status = "gone"
	}
	m.requests.WithLabelValues(name, status).Inc()
	telemetry.Observe(ctx, m.seconds.WithLabelValues(name), took)
	m.sent.Add(float64(rec.written))
}
