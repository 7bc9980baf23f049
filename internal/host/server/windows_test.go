package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counted is an upload without end.
type counted struct{ n atomic.Int64 }

func (c *counted) Read(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// TestStalledUploadsHoldUpNoOtherCall is about the window of a
// connection, which all its streams share.
func TestStalledUploadsHoldUpNoOtherCall(t *testing.T) {
	const uploads = 8
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	mux := http.NewServeMux()
	mux.HandleFunc("/stall", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(mux, slog.New(slog.DiscardHandler))
	go func() { _ = server.Serve(l) }() // ended by Close
	t.Cleanup(func() { _ = server.Close() })
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	post := func(ctx context.Context, path string, body io.Reader) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+l.Addr().String()+path, body)
		if err != nil {
			return "", err
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	var stalled sync.WaitGroup
	defer stalled.Wait()
	stalling, end := context.WithCancel(ctx)
	defer end()
	sent := &counted{}
	for range uploads {
		stalled.Go(func() { _, _ = post(stalling, "/stall", sent) }) // ends with its context
	}
	tick := time.NewTicker(500 * time.Millisecond) // that nothing moves any more is what is waited for
	defer tick.Stop()
	for before := int64(0); before == 0 || sent.n.Load() != before; <-tick.C {
		before = sent.n.Load()
	}
	if got, err := post(ctx, "/echo", strings.NewReader("hello")); got != "hello" || err != nil {
		t.Errorf("with %d uploads that stand still: %q, %v", uploads, got, err)
	}
}
