package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
)

// NewRegistry returns a registry with the metrics of the process and of the Go
// runtime. The parts of a program register theirs.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

// Observe adds a duration to a histogram. Within a sampled span it is an exemplar with
// the id of the trace.
func Observe(ctx context.Context, histogram prometheus.Observer, took time.Duration) {
	span := trace.SpanContextFromContext(ctx)
	if e, ok := histogram.(prometheus.ExemplarObserver); ok && span.IsSampled() {
		e.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": span.TraceID().String()})
		return
	}
	histogram.Observe(took.Seconds())
}

// Ready returns nil if the program can do its work, else an error. Only the
// message of a *wrenn.Error is shown to the client.
type Ready func(context.Context) error

// readyWait bounds how long a probe waits: probes have short timeouts themselves.
const readyWait = 5 * time.Second

// Serve answers GET /metrics, /health and /ready on l until ctx ends, and closes l.
// /health and /ready have the same answers as those of the public API.
func Serve(ctx context.Context, l net.Listener, registry *prometheus.Registry, ready Ready) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, status{"ok"}) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) { answerReady(w, r, ready) })
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // an interrupted scrape does no harm
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// The shapes of api/openapi.yaml.
type (
	status struct {
		Status string `json:"status"`
	}
	failure struct {
		Error reason `json:"error"`
	}
	reason struct {
		Code    wrenn.Code `json:"code"`
		Message string     `json:"message"`
	}
)

func answerReady(w http.ResponseWriter, r *http.Request, ready Ready) {
	ctx, cancel := context.WithTimeout(r.Context(), readyWait)
	defer cancel()
	err := ready(ctx)
	if err == nil {
		answer(w, http.StatusOK, status{"ready"})
		return
	}
	message := "not ready"
	if known, ok := errors.AsType[*wrenn.Error](err); ok {
		message = known.Message
	}
	w.Header().Set("Retry-After", "5")
	answer(w, http.StatusServiceUnavailable, failure{reason{wrenn.Unavailable, message}})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}
