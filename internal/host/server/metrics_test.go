package server

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// A step of a traced call has the trace's id as exemplar, another has none.
func TestStepsHaveExemplars(t *testing.T) {
	registry := prometheus.NewRegistry()
	steps := NewSteps(registry)
	traced := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	id := wrenn.NewSandboxID()
	steps.Observe(trace.ContextWithSpanContext(t.Context(), traced), id, "disk", time.Millisecond)
	steps.Observe(t.Context(), id, "slot", time.Millisecond)
	families, err := registry.Gather()
	testkit.Must(t, err)
	got := map[string]string{}
	for _, m := range families[0].GetMetric() {
		step := m.GetLabel()[0].GetValue()
		got[step] = ""
		for _, b := range m.GetHistogram().GetBucket() {
			if e := b.GetExemplar(); e != nil {
				got[step] = e.GetLabel()[0].GetValue()
			}
		}
	}
	if want := traced.TraceID().String(); got["disk"] != want || got["slot"] != "" || len(got) != 2 {
		t.Errorf("the exemplars are %v, want %s of disk alone", got, want)
	}
}
