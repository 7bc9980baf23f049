package cli

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEvents: what happens while there is no connection is printed after it.
func TestEvents(t *testing.T) {
	box := func(id, state, reason string) string {
		return fmt.Sprintf(`{"id":%q,"status":%q,"reason":%q,"metadata":{"group":"a"}}`, "i"+strings.Repeat(id, 20), state, reason)
	}
	event := func(name string, boxes ...string) string {
		return ":\n\nevent: " + name + "\ndata: {\"sandboxes\":[" + strings.Join(boxes, ",") + "],\"dropped\":[]}\n\n"
	}
	streams := []string{
		event("snapshot", box("a", "running", "")) + event("change", box("b", "starting", "")) + event("change", box("b", "starting", "")) + event("change", box("b", "running", "")),
		event("snapshot", box("b", "paused", "")) + event("change", `{"id":"i`+strings.Repeat("d", 20)+`","status":"running","metadata":{}}`) + event("change", box("b", "failed", "its\u009bdisk")),
	}
	var connections atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(connections.Load())
		switch {
		case r.URL.Path == "/v1/events" && n == len(streams):
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = fmt.Fprint(w, `{"error":{"code":"unauthorized","message":"the key was revoked"}}`) // the client still listens
		case r.URL.Path == "/v1/events":
			connections.Add(1)
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush() // the client still listens
			_, _ = fmt.Fprint(w, streams[n])
		case r.URL.Path == "/v1/sandboxes":
			_, _ = fmt.Fprint(w, "["+box("b", "paused", "")+"]") // the client still listens
		case strings.HasPrefix(r.URL.Path, "/v1/sandboxes/ia"):
			_, _ = fmt.Fprint(w, box("a", "stopped", "its time is up")) // the client still listens
		default:
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	t.Cleanup(server.Close)
	environ := map[string]string{"WRENN_API_KEY": "key", "HOME": "/nonexistent"}
	got := invoke(t, strings.NewReader(""), environ, "--url", server.URL, "events", "-f", "-l", "group=a")
	var lines []string
	for line := range strings.Lines(got.out) {
		lines = append(lines, strings.TrimSpace(line[len("2006-01-02 15:04:05  "):]))
	}
	a, b := "i"+strings.Repeat("a", 20)+"  ", "i"+strings.Repeat("b", 20)+"  "
	want := []string{b + "starting  group=a", b + "running   group=a", a + "stopped   its time is up; group=a", b + "paused    group=a", b + "failed    its\ufffddisk; group=a"}
	if diff := cmp.Diff(want, lines); diff != "" || got.code != 1 || got.err != "the key was revoked\n" {
		t.Errorf("events ended with %d, %q (-want +got):\n%s", got.code, got.err, diff)
	}
	connections.Store(1)
	got = invoke(t, strings.NewReader(""), environ, "--url", server.URL, "-o", "json", "events", "--all")
	if n := strings.Count(got.out, "\n"); n != 3 || !strings.Contains(got.out, `"status":"running"`) {
		t.Errorf("events -o json printed %q", got.out)
	}
}
