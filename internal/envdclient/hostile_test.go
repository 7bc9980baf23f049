package envdclient

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"wrenn.dev"

	"google.golang.org/protobuf/proto"

	"wrenn.dev/proto/gen/envd/process"
)

// newImpostor returns a client of a guest whose root has replaced the agent.
func newImpostor(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return newClient(t, server.Listener.Addr().String(), "")
}

// envelope is one message of a stream in Connect's protocol, see
// https://connectrpc.com/docs/protocol#streaming-request.
func envelope(flags byte, content []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(content))), content...)
}

func TestGuestCannotFillTheHostsMemory(t *testing.T) {
	const (
		size = 128 << 20
		most = 16 << 20
	)
	big := make([]byte, size)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(big); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, message := range map[string][]byte{
		"packed": envelope(1, packed.Bytes()),
		"plain":  envelope(0, big),
	} {
		t.Run(name, func(t *testing.T) {
			accepts := make(chan string, 1)
			c := newImpostor(t, func(w http.ResponseWriter, r *http.Request) {
				accepts <- r.Header.Get("Connect-Accept-Encoding")
				w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
				w.Header().Set("Connect-Content-Encoding", "gzip")
				_, _ = w.Write(message) // the client hangs up
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"})
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Error("Exec() succeeded")
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > most {
				t.Errorf("a message of %d bytes took %d of memory", len(message), got)
			}
			if got := <-accepts; got != "" {
				t.Errorf("the client accepts %q", got)
			}
		})
	}
}

// TestHeadersOfTheGuestAreBounded: net/http would keep 10 MiB of a header for as
// long as the guest does not end it.
func TestHeadersOfTheGuestAreBounded(t *testing.T) {
	release := make(chan struct{})
	c := newImpostor(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20))) // the client hangs up
		<-release
	})
	defer close(release) // before the server's end, which waits for it
	if _, err := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"}); err == nil {
		t.Error("Exec() succeeded")
	}
	if _, err := c.ReadFile(t.Context(), "", "/x"); err == nil {
		t.Error("ReadFile() succeeded")
	}
}

// Errors of a guest reach terminals.
func TestErrorsOfTheGuestAreText(t *testing.T) {
	const text = "\x1b]52;c;cm0gLXJmIH4K\x07\u009b2J\nso"
	const want = "\ufffd]52;c;cm0gLXJmIH4K\ufffd\ufffd2J\ufffdso"
	long := strings.Repeat("日", maxAnswer/4)
	for name, tc := range map[string]struct{ says, want string }{
		"sequences": {text, want},
		"much":      {long, long[:3*((maxText-3)/3)] + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := json.Marshal(map[string]string{"message": tc.says, "code": "internal"})
			if err != nil {
				t.Fatal(err)
			}
			end, err := json.Marshal(map[string]any{"error": json.RawMessage(raw)})
			if err != nil {
				t.Fatal(err)
			}
			c := newImpostor(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
				if strings.HasPrefix(r.URL.Path, "/process.") {
					_, _ = w.Write(envelope(2, end)) // the client may have hung up
					return
				}
				w.WriteHeader(http.StatusInternalServerError)
				_, _ = w.Write(raw) // the same
			})
			_, exec := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"})
			_, read := c.ReadFile(t.Context(), "", "/x")
			for prefix, err := range map[string]error{"start true: ": exec, "read /x: ": read} {
				if err == nil || err.Error() != prefix+tc.want {
					t.Errorf("%.300q, want %.300q", err, prefix+tc.want)
				}
			}
		})
	}
}

func TestExitStatusIsText(t *testing.T) {
	begun := &process.StartResponse{Event: &process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: 1}}}}
	ended := &process.StartResponse{Event: &process.ProcessEvent{Event: &process.ProcessEvent_End{End: &process.ProcessEvent_EndEvent{Status: "\x1b[2J"}}}}
	c := newImpostor(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		for _, message := range []proto.Message{begun, ended} {
			raw, err := proto.Marshal(message)
			if err != nil {
				t.Error(err)
			}
			_, _ = w.Write(envelope(0, raw)) // the client may have hung up
		}
		_, _ = w.Write(envelope(2, []byte("{}"))) // the same
	})
	res, err := c.Exec(t.Context(), wrenn.ExecCommand{Cmd: "true"})
	if err != nil || res.Status != "\ufffd[2J" {
		t.Errorf("Exec() = %+v, %v", res, err)
	}
}
