//go:build root

package controlplane

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/telemetry/logtest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/tracing"
	"wrenn.dev/internal/tracing/tracingtest"
)

const (
	theirTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	secretEnv  = "planted-in-a-trace"
)

// TestTraceOfACreate: one trace has the spans of the API, of placement, of the call and
// of the steps on the host. The client's own trace is linked only.
func TestTraceOfACreate(t *testing.T) {
	collected := tracingtest.New(t)
	s := &system{log: &logtest.Journal{}}
	log := s.logger(t)
	agentSpans, err := tracing.Open(t.Context(), tracing.Export{Endpoint: collected.URL}, tracing.Process{
		Name: "wrenn-host-agent", Sampler: tracing.Joined(), Registry: prometheus.NewRegistry(), Log: log,
	})
	testkit.Must(t, err)
	agent := agenttest.New(t, agenttest.Config{Log: log, Traces: agentSpans.Provider()})
	cfg := Defaults()
	cfg.Listen, cfg.MetricsListen = "127.0.0.1:0", ""
	cfg.Traces = Traces{tracing.Export{Endpoint: collected.URL}, 1}
	s.database = pgtest.New(t)
	cfg.Database.URL = s.database
	cfg.Hosts = []Host{{ID: "h1", URL: agent.URL()}}
	cfg.Secrets.KeyFiles = []string{filepath.Join(t.TempDir(), "secrets.key")}
	testkit.Must(t, vault.Create(cfg.Secrets.KeyFiles[0]))
	s.key = makeKey(t, cfg, slog.New(slog.DiscardHandler))
	s.serve(t, cfg, log)
	testkit.WaitNoError(t, "a sandbox is created", func() error { return s.createTraced(t) })
	s.get(t, "/v2/sandboxes", "X-API-Key", s.key)
	s.get(t, "/p/"+string(wrenn.NewSandboxID())+"/8080/"+secretEnv, "Cookie", secretEnv)
	s.stop()
	agentSpans.Close(context.WithoutCancel(t.Context()))

	checkTrace(t, collected.Spans())
}

// get sends a request with a header; any answer will do.
func (s *system) get(t *testing.T, path, header, value string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+path, nil)
	testkit.Must(t, err)
	req.Header.Set(header, value)
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	testkit.Must(t, resp.Body.Close())
}

// createTraced creates a sandbox as a client that has a trace.
func (s *system) createTraced(t *testing.T) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/v1/sandboxes", strings.NewReader(`{"env": {"KEY": "`+secretEnv+`"}}`))
	testkit.Must(t, err)
	req.Header.Set("Authorization", "Bearer "+s.key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Traceparent", "00-"+theirTrace+"-00f067aa0ba902b7-01")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = &notCreated{string(text)}
	}
	return err
}

type notCreated struct{ text string }

func (e *notCreated) Error() string { return e.text }

// checkTrace looks at the trace of the last createSandbox.
func checkTrace(t *testing.T, spans []*otlp.Span) {
	t.Helper()
	var root *otlp.Span
	byID := map[string]*otlp.Span{}
	names := map[string]bool{}
	for _, span := range spans {
		byID[string(span.GetSpanId())] = span
		names[kindOf(span)] = true
		if span.GetName() == "createSandbox" && span.GetStatus().GetCode() != otlp.Status_STATUS_CODE_ERROR {
			root = span
		}
		if strings.Contains(span.String(), secretEnv) || len(span.GetEvents()) > 0 || span.GetStatus().GetMessage() != "" {
			t.Errorf("a span has a text of a user: %v", span)
		}
	}
	for _, name := range []string{"server GET e2b /v2/sandboxes", "server port"} {
		if !names[name] {
			t.Errorf("there is no span %q in %v", name, names)
		}
	}
	if root == nil {
		t.Fatalf("no span of createSandbox in %v", spans)
	}
	if len(root.GetParentSpanId()) != 0 || len(root.GetLinks()) != 1 || hex.EncodeToString(root.GetLinks()[0].GetTraceId()) != theirTrace || hex.EncodeToString(root.GetTraceId()) == theirTrace {
		t.Errorf("the root does not only link the client's trace: %v", root)
	}
	parents := map[string]string{}
	for _, span := range spans {
		if parent := byID[string(span.GetParentSpanId())]; parent != nil && string(span.GetTraceId()) == string(root.GetTraceId()) {
			parents[kindOf(span)] = kindOf(parent)
		}
	}
	const call = "hostagent.v1.HostAgentService/StartSandbox"
	for child, parent := range map[string]string{
		"place": "server createSandbox", "row": "server createSandbox", "client " + call: "server createSandbox", "server " + call: "client " + call,
		"client query InsertSandboxes": "row", "client guest /init": "ready",
		"slot": "server " + call, "disk": "server " + call, "machine": "server " + call, "ready": "server " + call,
	} {
		if parents[child] != parent {
			t.Errorf("the parent of %q is %q, want %q; all: %v", child, parents[child], parent, parents)
		}
	}
}

// kindOf is the name of a span, with its side if it is a call.
func kindOf(span *otlp.Span) string {
	switch span.GetKind() {
	case otlp.Span_SPAN_KIND_SERVER:
		return "server " + span.GetName()
	case otlp.Span_SPAN_KIND_CLIENT:
		return "client " + span.GetName()
	default:
		return span.GetName()
	}
}
