package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

func TestLinesNameTheirRequestAndSandbox(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, Log{Format: "json"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := WithSandbox(WithRequest(t.Context(), "r1"), "i0")
	log.With(slog.String("part", "api")).InfoContext(ctx, "hello")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	delete(line, "time")
	want := map[string]any{"level": "INFO", "msg": "hello", "part": "api", "request": "r1", "sandbox": "i0"}
	if diff := cmp.Diff(want, line); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

// TestLineNamesItsSandboxOnce: the line's own attribute wins, as for a copy that a request for its parent makes.
func TestLineNamesItsSandboxOnce(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, Log{Format: "text"})
	if err != nil {
		t.Fatal(err)
	}
	log.InfoContext(WithSandbox(t.Context(), "i0"), "hello", slog.String("sandbox", "i1"), slog.String("host", "h1"))
	if got := out.String(); strings.Count(got, "sandbox=") != 1 || !strings.Contains(got, "sandbox=i1 host=h1") {
		t.Errorf("log = %q", got)
	}
}

func TestTextLineWithoutIDs(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, Log{Level: slog.LevelWarn})
	if err != nil {
		t.Fatal(err)
	}
	log.InfoContext(t.Context(), "not shown")
	log.WarnContext(t.Context(), "shown")
	if got := out.String(); !strings.HasSuffix(got, "level=WARN msg=shown\n") || strings.Contains(got, "not shown") {
		t.Errorf("log = %q", got)
	}
}

func TestUnknownFormatIsAnError(t *testing.T) {
	if _, err := NewLogger(io.Discard, Log{Format: "xml"}); err == nil {
		t.Error("NewLogger took xml")
	}
}

func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var broken atomic.Pointer[error]
	ready := func(context.Context) error {
		if err := broken.Load(); err != nil {
			return *err
		}
		return nil
	}
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, NewRegistry(), ready) }()
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "\ngo_goroutines ") {
		t.Errorf("GET /metrics = %d without go_goroutines", code)
	}
	away, secret := error(wrenn.Errorf(wrenn.Unavailable, "the database is away")), errors.New("dial 10.0.0.1")
	for _, tc := range []struct {
		path   string
		broken *error
		code   int
		body   string
	}{
		{"/health", nil, 200, `{"status":"ok"}`},
		{"/ready", nil, 200, `{"status":"ready"}`},
		{"/ready", &away, 503, `{"error":{"code":"unavailable","message":"the database is away"}}`},
		{"/ready", &secret, 503, `{"error":{"code":"unavailable","message":"not ready"}}`},
		{"/health", &away, 200, `{"status":"ok"}`},
	} {
		broken.Store(tc.broken)
		if code, body := get(tc.path); code != tc.code || strings.TrimSpace(body) != tc.body {
			t.Errorf("GET %s = %d %s, want %d %s", tc.path, code, body, tc.code, tc.body)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve() = %v after its context ended", err)
	}
}
