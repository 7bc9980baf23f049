package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"wrenn.dev/internal/controlplane/admission"
	"wrenn.dev/internal/telemetry"
)

// answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   string
}

func get(t *testing.T, url string, header http.Header) answer {
	t.Helper()
	return ask(t, http.MethodGet, url, header)
}

// ask sends a request without a body, with the key.
func ask(t *testing.T, method, url string, header http.Header) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	req.Header.Set("X-API-Key", testKey)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func TestRateLimit(t *testing.T) {
	server := serve(t, &stub{}, func(s *Server) { s.admission = door(s.service, 0.25, 2) })
	url := "http://" + server.address + "/v1/sandboxes"
	for i := range 2 {
		if resp := get(t, url, nil); resp.status != 200 {
			t.Fatalf("request %d of a burst of 2 = %d", i+1, resp.status)
		}
	}
	resp := get(t, url, nil)
	after, err := strconv.Atoi(resp.header.Get("Retry-After"))
	if resp.status != 429 || !strings.Contains(resp.body, "rate_limited") || err != nil || after < 1 || after > 4 {
		t.Errorf("the third = %+v", resp)
	}
	if resp := get(t, "http://"+server.address+"/health", nil); resp.status != 200 {
		t.Errorf("GET /health = %d", resp.status)
	}
}

// door lets so many requests in.
func door(s Service, perSecond float64, burst int) *admission.Door {
	return admission.New(admission.Config{Authenticate: s.Authenticate, PerSecond: perSecond, Burst: burst})
}

func TestRequestID(t *testing.T) {
	server := serve(t, &stub{}, nil)
	for given, kept := range map[string]bool{"abc-1.2_X": true, "a b": false, strings.Repeat("x", 65): false, "ü": false} {
		got := get(t, "http://"+server.address+"/health", http.Header{"X-Request-Id": {given}}).header.Get("X-Request-Id")
		if (got == given) != kept || got == "" {
			t.Errorf("X-Request-Id %q was answered with %q", given, got)
		}
	}
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	server := serve(t, &stub{}, nil)
	for _, c := range []struct {
		method, path, allow string
		status              int
	}{
		{"GET", "/nothing", "", 404},
		{"GET", "/v1/nothing", "", 404},
		{"GET", "/v1/sandboxes/", "", 404},
		{"GET", "/docs/../../etc/passwd", "", 404},
		{"GET", "/docs/..%2fswagger%2findex.html", "", 404},
		{"PUT", "/v1/sandboxes", "GET, POST", 405},
		{"DELETE", at + "/exec", "POST", 405},
		{"PATCH", at, "GET, DELETE", 405},
	} {
		resp := ask(t, c.method, "http://"+server.address+c.path, nil)
		if resp.status != c.status || resp.header.Get("Allow") != c.allow || !strings.HasPrefix(resp.body, `{"error":{"code":"`) {
			t.Errorf("%s %s = %+v", c.method, c.path, resp)
		}
	}
}

// TestLogTellsCausesAndNoSecrets: the log has causes that answers do not have, and no secret.
func TestLogTellsCausesAndNoSecrets(t *testing.T) {
	var out bytes.Buffer
	log, err := telemetry.NewLogger(&out, telemetry.Log{Level: slog.LevelDebug})
	if err != nil {
		t.Fatal(err)
	}
	s := &stub{fail: errors.New("connect to the database: refused")}
	server := serve(t, s, func(s *Server) { s.log = log })
	resp := get(t, "http://"+server.address+at, http.Header{"X-Request-Id": {"find-me"}})
	if err := server.stop(); err != nil { // the log is complete then
		t.Fatal(err)
	}
	line := out.String()
	for _, part := range []string{"request=find-me", "sandbox=" + testID, "operation=getSandbox", "status=500", "key=" + testKeyID, `err="connect to the database: refused"`} {
		if !strings.Contains(line, part) {
			t.Errorf("the log lacks %s: %s", part, line)
		}
	}
	if strings.Contains(line, testKey) {
		t.Errorf("the log has the key: %s", line)
	}
	if !strings.Contains(resp.body, "find-me") || strings.Contains(resp.body, "database") {
		t.Errorf("answer = %s", resp.body)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	server := serve(t, &stub{}, func(s *Server) {
		m, err := newMetrics(registry)
		if err != nil {
			t.Fatal(err)
		}
		s.metrics = m
	})
	get(t, "http://"+server.address+at, nil)
	get(t, "http://"+server.address+"/nothing", nil)
	if err := server.stop(); err != nil {
		t.Fatal(err)
	}
	want := `
# HELP wrenn_api_requests_total Requests, by operation of the contract and status; status "gone" is a client that disconnected.
# TYPE wrenn_api_requests_total counter
wrenn_api_requests_total{operation="getSandbox",status="200"} 1
wrenn_api_requests_total{operation="none",status="404"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "wrenn_api_requests_total"); err != nil {
		t.Error(err)
	}
}

// TestStopWaitsForRequests: requests in progress are answered, later connections are refused.
func TestStopWaitsForRequests(t *testing.T) {
	s := &slow{hold: 300 * time.Millisecond}
	server := serve(t, s, nil)
	answered := make(chan int, 1)
	arrived := make(chan struct{})
	go func() {
		req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, "http://"+server.address+at, nil)
		if err != nil {
			panic(err)
		}
		req.Header.Set("X-API-Key", testKey)
		close(arrived)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	<-arrived
	<-time.After(100 * time.Millisecond) // it is under way; a stop that comes first would refuse the connection
	if err := server.stop(); err != nil {
		t.Errorf("Run() = %v", err)
	}
	if status := <-answered; status != 200 {
		t.Errorf("the request was answered with %d", status)
	}
}
