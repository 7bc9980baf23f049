package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/tunnel"
	"wrenn.dev/internal/wire"
)

const (
	// maxTunnels bounds the connections to the ports of one sandbox.
	maxTunnels = 10_000
	// touchEvery bounds how often traffic in a tunnel is recorded as use.
	touchEvery = time.Second
	// cutFor is how long the host remembers why it cut a tunnel.
	cutFor = 30 * time.Second
	// maxName bounds the name of a tunnel.
	maxName = 64
)

// tunnels are the connections to ports of sandboxes. They are no RPC, because
// what goes through them needs no frames: a connection of the caller's becomes
// the connection to the port.
type tunnels struct {
	s *server

	mu     sync.Mutex // guards what follows
	closed bool
	open   map[net.Conn]io.Closer // what ends a tunnel, by the connection to its port
	counts map[wrenn.SandboxID]int
	named  map[tunnelName]*named
}

// tunnelName is the name that a caller has given to a tunnel.
type tunnelName struct {
	id   wrenn.SandboxID
	name string
}

// named is a tunnel with a name: open, or cut a moment ago.
type named struct {
	port net.Conn // nil after the tunnel has ended
	why  error    // that it was cut
}

func newTunnels(s *server) *tunnels {
	return &tunnels{s: s, open: map[net.Conn]io.Closer{}, counts: map[wrenn.SandboxID]int{}, named: map[tunnelName]*named{}}
}

// ServeHTTP answers a request for tunnel.HostPath. A refusal is {"code", "message"},
// the code as RPC names it; 502 says that the port is not open.
func (t *tunnels) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if name := r.URL.Query().Get(tunnel.CutParam); name != "" {
		answer(w, http.StatusOK, t.whyCut(tunnelName{wrenn.SandboxID(r.PathValue("sandbox")), name}))
		return
	}
	sb, port, err := t.dial(r)
	if err != nil {
		refuse(w, err)
		return
	}
	id := sb.ID()
	if err := t.add(port, id); err != nil {
		_ = port.Close() // nothing is in flight
		refuse(w, err)
		return
	}
	unname := t.name(port, id, r.Header.Get(tunnel.NameHeader))
	ended := func() {
		unname()
		t.remove(port, id)
		_ = port.Close() // twice is allowed
	}
	pass, err := t.accept(w, r, port)
	if err != nil {
		ended()
		refuse(w, wrenn.Errorf(wrenn.Invalid, "a tunnel needs HTTP/1.1"))
		return
	}
	// Not in this goroutine, on which net/http holds on to buffers and the request.
	go func() {
		defer ended()
		pass(touch(sb))
	}()
}

// accept answers by the tunnel to port, or by the socket of port itself to a control
// plane on this machine. pass returns when the tunnel has ended.
func (t *tunnels) accept(w http.ResponseWriter, r *http.Request, port net.Conn) (pass func(traffic func()), err error) {
	if tunnel.AsksToShare(r) {
		if socket, ok := envdclient.Share(port); ok {
			lifeline, err := tunnel.Share(w, socket)
			if err != nil {
				return nil, err
			}
			t.keep(port, lifeline)
			return func(traffic func()) {
				defer lifeline.Close()
				tunnel.Watch(lifeline, traffic)
			}, nil
		}
	}
	client, err := tunnel.Accept(w)
	return func(traffic func()) { tunnel.Join(client, port, traffic) }, err
}

// keep records the lifeline of a tunnel whose socket was shared.
func (t *tunnels) keep(port, lifeline net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = lifeline.Close() // ends the tunnel
		return
	}
	t.open[port] = lifeline
}

func (t *tunnels) dial(r *http.Request) (*sandbox.Sandbox, net.Conn, error) {
	port, err := strconv.ParseUint(r.PathValue("port"), 10, 16)
	if err != nil || port == 0 || !tunnel.Asks(r) {
		return nil, nil, wrenn.Errorf(wrenn.Invalid, "a tunnel needs a port from 1 to 65535, and Upgrade: %s", tunnel.Protocol)
	}
	ctx, err := withEpoch(r.Context(), r.Header)
	if err != nil {
		return nil, nil, err
	}
	sb, ctx, err := t.s.find(ctx, r.PathValue("sandbox"))
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
	t.open[conn] = conn
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

// name keeps the tunnel's name until ended is called, and a moment longer if it was cut.
func (t *tunnels) name(port net.Conn, id wrenn.SandboxID, name string) (ended func()) {
	if name == "" || len(name) > maxName {
		return func() {}
	}
	key, n := tunnelName{id, name}, &named{port: port}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.named[key] = n
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if n.port, n.why = nil, envdclient.WhyCut(port); n.why == nil {
			t.forget(key, n)
			return
		}
		time.AfterFunc(cutFor, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.forget(key, n)
		})
	}
}

// forget removes a name that still means n. The caller must hold mu.
func (t *tunnels) forget(key tunnelName, n *named) {
	if t.named[key] == n {
		delete(t.named, key)
	}
}

// whyCut returns why a tunnel was cut; nil when it was not, or too long ago.
func (t *tunnels) whyCut(key tunnelName) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch n := t.named[key]; {
	case n == nil:
		return nil
	case n.port != nil: // it is being ended
		return envdclient.WhyCut(n.port)
	default:
		return n.why
	}
}

// close breaks all tunnels, and those that are to come.
func (t *tunnels) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, end := range t.open {
		_ = end.Close() // Join or Watch sees it
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
	answer(w, status, err)
}

// answer sends the code and the message of err, empty ones for nil.
func answer(w http.ResponseWriter, status int, err error) {
	code, message := wire.ToResult(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(tunnel.Refused{Code: code, Message: message}) // fails when the caller has left
}
