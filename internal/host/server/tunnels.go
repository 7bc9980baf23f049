package server

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"wrenn"
	"wrenn/internal/host/sandbox"
	"wrenn/internal/tunnel"
	"wrenn/internal/wire"
)

const (
	// maxTunnels bounds the connections to the ports of one sandbox.
	maxTunnels = 10_000
	// touchEvery bounds how often traffic in a tunnel is recorded as use.
	touchEvery = time.Second
)

// tunnels are the connections to ports of sandboxes. They are no RPC, because
// what goes through them needs no frames: a connection of the caller's becomes
// the connection to the port.
type tunnels struct {
	s *server

	mu     sync.Mutex // guards what follows
	closed bool
	open   map[net.Conn]wrenn.SandboxID
	counts map[wrenn.SandboxID]int
}

func newTunnels(s *server) *tunnels {
	return &tunnels{s: s, open: map[net.Conn]wrenn.SandboxID{}, counts: map[wrenn.SandboxID]int{}}
}

// ServeHTTP answers a request for tunnel.HostPath. A refusal is {"code", "message"},
// the code as RPC names it; 502 says that the port is not open.
func (t *tunnels) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sb, port, err := t.dial(r)
	if err != nil {
		refuse(w, err)
		return
	}
	defer port.Close()
	id := sb.ID()
	if err := t.add(port, id); err != nil {
		refuse(w, err)
		return
	}
	defer t.remove(port, id)
	client, err := tunnel.Accept(w)
	if err != nil {
		refuse(w, wrenn.Errorf(wrenn.Invalid, "a tunnel needs HTTP/1.1"))
		return
	}
	tunnel.Join(client, port, touch(sb))
}

func (t *tunnels) dial(r *http.Request) (*sandbox.Sandbox, net.Conn, error) {
	port, err := strconv.ParseUint(r.PathValue("port"), 10, 16)
	if err != nil || port == 0 || !tunnel.Asks(r) {
		return nil, nil, wrenn.Errorf(wrenn.Invalid, "a tunnel needs a port from 1 to 65535, and Upgrade: %s", tunnel.Protocol)
	}
	sb, ctx, err := t.s.find(r.Context(), r.PathValue("sandbox"))
	if err != nil {
		return nil, nil, err
	}
	conn, err := sb.DialPort(ctx, uint16(port))
	return sb, conn, err
}

// touch returns a function that records traffic as use of the sandbox, now and then.
func touch(sb *sandbox.Sandbox) func() {
	var last atomic.Int64 // Unix time in ns
	return func() {
		now := time.Now().UnixNano()
		if before := last.Load(); now-before >= int64(touchEvery) && last.CompareAndSwap(before, now) {
			sb.Touch()
		}
	}
}

func (t *tunnels) add(conn net.Conn, id wrenn.SandboxID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return wrenn.Errorf(wrenn.Unavailable, "the host agent is stopping; try again in a moment")
	case t.counts[id] >= maxTunnels:
		return wrenn.Errorf(wrenn.Exhausted, "sandbox %s has %d connections to its ports, which is the limit: close some", id, maxTunnels)
	}
	t.open[conn] = id
	t.counts[id]++
	return nil
}

func (t *tunnels) remove(conn net.Conn, id wrenn.SandboxID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, conn)
	if t.counts[id]--; t.counts[id] == 0 {
		delete(t.counts, id)
	}
}

// close breaks all tunnels, and those that are to come.
func (t *tunnels) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for conn := range t.open {
		_ = conn.Close() // Join sees it
	}
}

// refuse answers an error. It has no effect after an answer.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, wrenn.ErrPortClosed):
		status = http.StatusBadGateway
	case errors.Is(err, context.Canceled):
		return // the caller has left
	}
	code, message := wire.ToResult(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(tunnel.Refused{Code: code, Message: message}) // fails when the caller has left
}
