package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, NewRegistry()) }()

	resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !bytes.Contains(body, []byte("\ngo_goroutines ")) {
		t.Errorf("GET /metrics = %s without go_goroutines", resp.Status)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve() = %v after its context ended", err)
	}
}
