package tracing

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev/internal/buildinfo"
	"wrenn.dev/internal/config"
)

// Export is the section [traces] of a configuration: where spans are sent to.
type Export struct {
	// Endpoint is the URL of a collector that speaks OTLP over HTTP, such as
	// http://127.0.0.1:4318; "" is none. Without a path it is /v1/traces.
	Endpoint string `toml:"endpoint"`
	// HeadersFile has lines "Name: value" that each request to the collector has.
	HeadersFile string `toml:"headers_file"`
}

// Check adds what is wrong.
func (e Export) Check(problems *config.Problems) {
	if e.Endpoint == "" {
		if e.HeadersFile != "" {
			problems.Addf("traces.headers_file: set traces.endpoint, or leave it out")
		}
		return
	}
	if err := e.CheckEndpoint(); err != nil {
		problems.Addf("traces.endpoint: %w", err)
	}
	if _, err := e.headers(); err != nil {
		problems.Addf("traces.headers_file: %w", err)
	}
}

// CheckEndpoint returns what is wrong with the endpoint; "" is right.
func (e Export) CheckEndpoint() error {
	u, err := url.Parse(e.Endpoint)
	if e.Endpoint != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "") {
		return errors.New("use a URL such as http://127.0.0.1:4318, without user, password and query; keys are for headers_file of [traces]")
	}
	return nil
}

// maxHeaders bounds the file of headers, in bytes.
const maxHeaders = 64 << 10

// headers returns those of the file. Its errors have no values.
func (e Export) headers() (map[string]string, error) {
	if e.HeadersFile == "" {
		return nil, nil //nolint:nilnil // none is no error
	}
	f, err := os.Open(e.HeadersFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHeaders))
	if err != nil {
		return nil, err
	}
	read, err := textproto.NewReader(bufio.NewReader(strings.NewReader(strings.TrimSpace(string(text)) + "\r\n\r\n"))).ReadMIMEHeader()
	if err != nil {
		return nil, errors.New(`write lines of the form "Name: value"`)
	}
	all := map[string]string{}
	for name := range read {
		all[name] = http.Header(read).Get(name)
	}
	return all, nil
}

// maxWaiting is how many ended spans wait for the collector; more are dropped.
const maxWaiting = 2048

// stopWait bounds how long Exporter.Close waits for the collector.
const stopWait = 3 * time.Second

// Exporter sends spans.
type Exporter struct {
	provider *sdk.TracerProvider // nil if there is no endpoint
}

// Process says whose spans they are, and which are recorded.
type Process struct {
	Name     string // such as wrenn-control-plane
	Sampler  sdk.Sampler
	Registry prometheus.Registerer
	Log      *slog.Logger
}

// Sampled records this share of the requests, 0 to 1.
func Sampled(share float64) sdk.Sampler { return sdk.TraceIDRatioBased(share) }

// Joined records the calls of traces that a control plane records, and no others.
func Joined() sdk.Sampler { return sdk.ParentBased(sdk.NeverSample()) }

// Open returns an exporter, which sends nothing without an endpoint. A collector that
// fails or is slow delays no call: spans are dropped and counted. Close it.
func Open(ctx context.Context, cfg Export, process Process) (*Exporter, error) {
	if cfg.Endpoint == "" {
		return &Exporter{}, nil
	}
	headers, err := cfg.headers()
	if err != nil {
		return nil, fmt.Errorf("traces.headers_file: %w", err)
	}
	endpoint, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("traces.endpoint: %w", err)
	}
	if strings.Trim(endpoint.Path, "/") == "" {
		endpoint.Path = "/v1/traces"
	}
	options := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(endpoint.String())}
	if headers != nil {
		options = append(options, otlptracehttp.WithHeaders(headers))
	}
	otlp, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	of, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", process.Name), attribute.String("service.version", buildinfo.Read().Short()),
	), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	queue, err := newQueue(otlp, process)
	if err != nil {
		return nil, err
	}
	return &Exporter{sdk.NewTracerProvider(sdk.WithResource(of), sdk.WithSampler(process.Sampler), sdk.WithSpanProcessor(queue))}, nil
}

// Provider makes the spans; nil if none are sent.
func (e *Exporter) Provider() trace.TracerProvider {
	if e.provider == nil {
		return nil
	}
	return e.provider
}

// Close sends what waits, for some seconds.
func (e *Exporter) Close(ctx context.Context) {
	if e.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
	defer cancel()
	_ = e.provider.Shutdown(ctx) // failed spans are counted and logged
}

// queue is the SDK's queue, which drops spans without a trace of it when it is full;
// this one counts them.
type queue struct {
	sdk.SpanProcessor
	waiting atomic.Int64
	spans   *prometheus.CounterVec
	next    sdk.SpanExporter
	log     *slog.Logger
	failing bool // used by the one goroutine that exports
}

func newQueue(next sdk.SpanExporter, process Process) (*queue, error) {
	q := &queue{next: next, log: process.Log, spans: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "wrenn_trace_spans_total", Help: "Spans by what became of them: sent, failed (the collector did not accept them) or dropped (too many waited for it).",
	}, []string{"result"})}
	for _, result := range []string{"sent", "failed", "dropped"} {
		q.spans.WithLabelValues(result)
	}
	q.SpanProcessor = sdk.NewBatchSpanProcessor(exporter{q}, sdk.WithMaxQueueSize(maxWaiting))
	return q, process.Registry.Register(q.spans)
}

// OnEnd queues a span, or drops it.
func (q *queue) OnEnd(span sdk.ReadOnlySpan) {
	if !span.SpanContext().IsSampled() {
		return
	}
	if q.waiting.Add(1) > maxWaiting {
		q.waiting.Add(-1)
		q.spans.WithLabelValues("dropped").Inc()
		return
	}
	q.SpanProcessor.OnEnd(span)
}

// exporter sends the spans of its queue.
type exporter struct{ q *queue }

// ExportSpans never fails: failures are counted, and the first of several is logged.
func (e exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	plain := make([]sdk.ReadOnlySpan, len(spans))
	for i, span := range spans {
		plain[i] = withoutTexts{span}
	}
	err := e.q.next.ExportSpans(ctx, plain)
	e.q.waiting.Add(-int64(len(spans)))
	result := "sent"
	if err != nil {
		result = "failed"
	}
	e.q.spans.WithLabelValues(result).Add(float64(len(spans)))
	if failing := err != nil; failing != e.q.failing {
		e.q.failing = failing
		if failing {
			e.q.log.LogAttrs(ctx, slog.LevelWarn, "cannot send traces; calls continue without", slog.Any("err", err))
		} else {
			e.q.log.LogAttrs(ctx, slog.LevelInfo, "traces are sent again")
		}
	}
	return nil
}

// Shutdown ends the connection to the collector.
func (e exporter) Shutdown(ctx context.Context) error { return e.q.next.Shutdown(ctx) }

// withoutTexts is a span without its error's text and events, which may repeat what
// users sent.
type withoutTexts struct{ sdk.ReadOnlySpan }

func (s withoutTexts) Status() sdk.Status { return sdk.Status{Code: s.ReadOnlySpan.Status().Code} }

func (withoutTexts) Events() []sdk.Event { return nil }
