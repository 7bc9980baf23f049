package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve answers API calls with handle.
func serve(t *testing.T, handle http.HandlerFunc) *client {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	c := newClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", server.Listener.Addr().String())
	})
	t.Cleanup(c.close)
	return c
}

func TestCall(t *testing.T) {
	type request struct{ Method, Path, Body string }
	var got request
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = request{r.Method, r.URL.Path, string(body)}
		w.WriteHeader(http.StatusNoContent)
	})
	if err := c.put(t.Context(), "/drives/disk0", drive{ID: "disk0", Path: "disk0"}); err != nil {
		t.Fatal(err)
	}
	want := request{"PUT", "/drives/disk0", `{"drive_id":"disk0","path_on_host":"disk0","is_root_device":false,"is_read_only":false}`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestFault(t *testing.T) {
	for _, c := range []struct {
		name, body, want string
		status           int
	}{
		{"its own message", `{"fault_message":"unknown field ` + "`x`" + `"}`, "unknown field `x`", 400},
		{"no message", `{}`, `"{}"`, 400},
		{"no JSON", `oops`, `"oops"`, 500},
		{"nothing", ``, `""`, 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			})
			fault, ok := errors.AsType[*Fault](api.start(t.Context()))
			if !ok || *fault != (Fault{"PUT /actions", c.status, c.want}) {
				t.Errorf("start() = %+v", fault)
			}
		})
	}
}

func TestAnswerIsBounded(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"state":"%s"}`, strings.Repeat("x", answerLimit))
	})
	if _, err := c.state(t.Context()); err == nil {
		t.Error("an endless answer was read")
	}
}

func TestCallEnds(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	err := c.call(t.Context(), time.Millisecond, http.MethodGet, "/", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "did not answer GET / within 1ms") {
		t.Errorf("call() past its limit = %v", err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := c.start(ctx); !errors.Is(err, why) {
		t.Errorf("start() with a canceled context = %v", err)
	}
}

// FuzzFaultMessage: whatever a VMM that was taken over answers, there are words.
func FuzzFaultMessage(f *testing.F) {
	f.Add([]byte(`{"fault_message":"x"}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if faultMessage(body) == "" {
			t.Error("a fault without words")
		}
	})
}

// Firecracker would continue a write that no caller waits for, and all later calls would wait.
func TestCreateOutlivesItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		w.WriteHeader(http.StatusNoContent)
	})
	if err := c.create(ctx, 64, snapshotCreate{Type: "Full"}); err != nil || ctx.Err() == nil {
		t.Errorf("create() = %v, canceled meanwhile: %v; want its end", err, ctx.Err())
	}
}
