package tracing_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/tracing"
	"wrenn.dev/internal/tracing/tracingtest"
)

// open returns an exporter of all requests, and its metrics.
func open(t *testing.T, cfg tracing.Export) (*tracing.Exporter, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	e, err := tracing.Open(t.Context(), cfg, tracing.Process{Name: "test", Sampler: tracing.Sampled(1), Registry: registry, Log: slog.New(slog.DiscardHandler)})
	testkit.Must(t, err)
	t.Cleanup(func() { e.Close(context.Background()) })
	return e, registry
}

func request() *http.Request { return httptest.NewRequest(http.MethodGet, "/", http.NoBody) }

func TestSpanOfAnErrorHasNoText(t *testing.T) {
	collected := tracingtest.New(t)
	headers := filepath.Join(t.TempDir(), "headers")
	testkit.Must(t, os.WriteFile(headers, []byte("X-Key: k1\n"), 0o600))
	e, _ := open(t, tracing.Export{Endpoint: collected.URL, HeadersFile: headers})
	ctx, root := tracing.Request(request(), e.Provider())
	failed := errors.New("planted")
	if err := tracing.Do(ctx, "step", func(context.Context) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("Do() = %v", err)
	}
	root.End()
	e.Close(t.Context())
	spans := collected.Spans()
	if len(spans) != 2 || spans[0].GetName() != "step" || spans[0].GetStatus().GetCode() != otlp.Status_STATUS_CODE_ERROR || strings.Contains(spans[0].String(), "planted") {
		t.Errorf("spans = %v", spans)
	}
	if got := collected.Headers().Get("X-Key"); got != "k1" {
		t.Errorf("X-Key = %q", got)
	}
}

// TestStuckCollectorDelaysNoCall: calls end, and what does not fit the queue is counted.
func TestStuckCollectorDelaysNoCall(t *testing.T) {
	stuck := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stuck }))
	t.Cleanup(s.Close)
	e, registry := open(t, tracing.Export{Endpoint: s.URL})
	t.Cleanup(func() { close(stuck) }) // before both are closed
	const all = 5000
	for range all {
		_, span := tracing.Request(request(), e.Provider())
		span.End()
	}
	const want = `# HELP wrenn_trace_spans_total Spans by what became of them: sent, failed (the collector did not accept them) or dropped (too many waited for it).
# TYPE wrenn_trace_spans_total counter
wrenn_trace_spans_total{result="dropped"} 2952
wrenn_trace_spans_total{result="failed"} 0
wrenn_trace_spans_total{result="sent"} 0
`
	testkit.Must(t, testutil.GatherAndCompare(registry, strings.NewReader(want)))
}

// TestNoEndpointNoSpans: without traces a call costs no memory.
func TestNoEndpointNoSpans(t *testing.T) {
	e, _ := open(t, tracing.Export{})
	r := request()
	nothing := func(context.Context) error { return nil }
	if n := testing.AllocsPerRun(100, func() {
		ctx, span := tracing.Request(r, e.Provider())
		_ = tracing.Do(ctx, "step", nothing)
		span.End()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCheckEndpoint(t *testing.T) {
	for url, ok := range map[string]bool{
		"": true, "http://127.0.0.1:4318": true, "https://c.example/otlp/v1/traces": true,
		"127.0.0.1:4318": false, "grpc://c:4317": false, "https://u:p@c.example": false, "https://c.example/?key=1": false,
	} {
		if err := (tracing.Export{Endpoint: url}).CheckEndpoint(); (err == nil) != ok {
			t.Errorf("CheckEndpoint(%q) = %v", url, err)
		}
	}
}
