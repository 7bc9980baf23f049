package envdclient

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
)

// newImpostor is a guest whose root has put a program of their own in the agent's place.
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

func TestAGuestCannotFillTheMemoryOfItsHost(t *testing.T) {
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
			_, err := c.Exec(t.Context(), Command{Path: "true"})
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
