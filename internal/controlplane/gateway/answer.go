package gateway

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev/internal/wire"
)

// answer is the gateway's own, for a request that no program in a sandbox
// answered: JSON as E2B's clients expect it, a page for browsers.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, status int, to target, message string) {
	g.metrics.refused.WithLabelValues(fmt.Sprint(status)).Inc()
	trace.SpanFromContext(r.Context()).SetAttributes(attribute.Int("http.response.status_code", status)) // of what a program answers there is none
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*") // a page must be able to read why
	h.Set("Cache-Control", "no-store")
	if status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	if browser(r) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "sandbox")
		w.WriteHeader(status)
		fmt.Fprintf(w, page, status, html.EscapeString(message), html.EscapeString(string(to.id)))
		return
	}
	body := struct {
		SandboxID string `json:"sandboxId,omitempty"`
		Message   string `json:"message"`
		Port      uint16 `json:"port,omitempty"`
		Code      int    `json:"code"`
	}{SandboxID: string(to.id), Message: message, Code: status}
	if message == portClosed {
		body.Port = to.port
	}
	if status == http.StatusUnauthorized {
		body.SandboxID = "" // envd's own answer has nothing else, and clients compare it
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	text, _ := json.Marshal(body) // cannot fail
	_, _ = w.Write(text)          // fails when the client has left
}

// said is what an error says to clients.
func said(err error) string {
	_, message := wire.ToResult(err)
	return message
}

const page = `<!doctype html><meta charset="utf-8"><title>Wrenn: %d</title>
<body style="font-family:sans-serif;max-width:40em;margin:4em auto"><h1>%s</h1><p>Sandbox <code>%s</code></p>
`

// browser reports whether a person looks at the answer.
func browser(r *http.Request) bool {
	return strings.HasPrefix(r.UserAgent(), "Mozilla/") && strings.Contains(r.Header.Get("Accept"), "text/html")
}

// metrics count what the gateway does.
type metrics struct {
	requests prometheus.Counter
	inFlight prometheus.Gauge
	refused  *prometheus.CounterVec
}

func newMetrics(to prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounter(prometheus.CounterOpts{Name: "wrenn_gateway_requests_total", Help: "Requests for ports of sandboxes."}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "wrenn_gateway_requests_in_flight", Help: "Requests for ports of sandboxes that have not ended, WebSockets among them."}),
		refused:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "wrenn_gateway_refused_total", Help: "Requests that the gateway answered itself, by status."}, []string{"status"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.inFlight, m.refused} {
		if err := to.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// begin counts a request; the function that it returns ends it.
func (m *metrics) begin() (end func()) {
	m.requests.Inc()
	return m.hold()
}

// hold counts a request that was counted before as one in flight, until end is called.
func (m *metrics) hold() (end func()) {
	m.inFlight.Inc()
	return m.inFlight.Dec
}
