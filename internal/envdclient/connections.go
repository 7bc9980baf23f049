package envdclient

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/tunnel"
)

// goneError is the error of calls and streams that this client has cut, because it
// was closed or its guest does not answer. A guest that has ended sends nothing that
// would end a connection: without Close, a read would wait minutes for TCP's timeout.
type goneError struct{ why *wrenn.Error }

func (g *goneError) Error() string { return g.why.Error() }
func (g *goneError) Unwrap() error { return g.why }

// The reasons for closing a client.
var (
	errGone   = &goneError{wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox is no longer running")}
	errPaused = &goneError{wrenn.Errorf(wrenn.CutByPause, "the sandbox was paused: resume it, and try again; commands continue then, attach to them")}
)

// Gone returns the error of a call or a stream that Close, ClosePaused or Interrupt has
// ended, which is in err's chain, else nil.
func Gone(err error) error {
	if gone, ok := errors.AsType[*goneError](err); ok {
		return gone
	}
	return nil
}

// connections are the open connections of a client.
type connections struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	agent string       // the address of envd
	heard atomic.Int64 // Unix time in ns at which envd last sent a byte

	mu     sync.Mutex // guards the fields below
	closed *goneError // why it is closed; nil while it is open
	// silent is why dials fail at once, and calls on connections that heard nothing
	// since then; nil when they do not.
	silent *goneError
	open   map[*connection]struct{}
}

// DialContext opens another connection.
func (c *connections) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if reason := c.refusal(); reason != nil {
		return nil, reason
	}
	return c.connect(ctx, network, address, false)
}

// dialProbe is DialContext for a probe, which is made while the guest is silent.
func (c *connections) dialProbe(ctx context.Context, network, address string) (net.Conn, error) {
	return c.connect(ctx, network, address, true)
}

func (c *connections) connect(ctx context.Context, network, address string, probe bool) (net.Conn, error) {
	conn, err := c.dial(ctx, network, address)
	if err != nil {
		if reason := c.refusal(); reason != nil && !probe { // cut while it was dialed
			return nil, reason
		}
		return nil, err
	}
	out := &connection{Conn: conn, all: c, probe: probe, agent: address == c.agent}
	out.heard.Store(time.Now().UnixNano())
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed != nil:
		_ = conn.Close() // nothing was sent
		return nil, c.closed
	case c.silent != nil && !probe:
		_ = conn.Close()
		return nil, c.silent
	}
	c.open[out] = struct{}{}
	return out, nil
}

// refusal returns why nothing can be dialed; nil when it can.
func (c *connections) refusal() *goneError {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return c.closed
	}
	return c.silent
}

// close closes all connections, and makes later dials fail. The first reason counts.
func (c *connections) close(why *goneError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == nil {
		c.closed = why
	}
	for conn := range c.open {
		conn.cut(c.closed)
	}
	clear(c.open)
}

// interrupt cuts the connections that heard nothing since then, and makes later
// dials fail, until resume.
func (c *connections) interrupt(reason *goneError, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent = reason
	for conn := range c.open {
		if !conn.probe && conn.silentSince(since) {
			conn.cut(reason)
			delete(c.open, conn)
		}
	}
}

// resume takes interrupt back.
func (c *connections) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent = nil
}

// connection is a connection whose errors say why this client has cut it.
type connection struct {
	net.Conn

	all   *connections
	probe bool
	agent bool                      // it is to envd
	heard atomic.Int64              // Unix time in ns of the last byte, or of the dial
	gone  atomic.Pointer[goneError] // why it was cut
	// shared is its socket when another process has it, too, and nothing is read here.
	shared atomic.Pointer[net.TCPConn]
}

// cut closes the connection; its user gets the reason.
func (c *connection) cut(reason *goneError) {
	c.gone.Store(reason)
	if socket := c.shared.Load(); socket != nil {
		tunnel.Abort(socket)
	}
	_ = c.Conn.Close() // its user gets the reason
}

// silentSince reports whether it heard nothing after a moment.
func (c *connection) silentSince(since time.Time) bool {
	if socket := c.shared.Load(); socket != nil {
		silent, err := tunnel.SilentFor(socket)
		return err != nil || silent >= time.Since(since) // an error: it is closed
	}
	return c.heard.Load() <= since.UnixNano()
}

// Share returns the socket of a connection of DialPort, for another process to use;
// the caller must then leave it alone until it closes it. What ends the connection
// ends it for the other process, too. ok is false when that cannot be.
func Share(conn net.Conn) (socket *net.TCPConn, ok bool) {
	if socket, ok = tunnel.Socket(conn); !ok {
		return nil, false
	}
	c := own(conn)
	if c == nil {
		return nil, false
	}
	c.shared.Store(socket)
	if c.gone.Load() != nil { // cut just before
		tunnel.Abort(socket)
	}
	return socket, true
}

func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		now := time.Now().UnixNano()
		c.heard.Store(now)
		if c.agent {
			c.all.heard.Store(now)
		}
	}
	return n, c.explain(err)
}

func (c *connection) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

func (c *connection) explain(err error) error {
	if why := c.gone.Load(); why != nil && errors.Is(err, net.ErrClosed) {
		return why
	}
	return err
}

func (c *connection) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c)
	c.all.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite ends the direction to the guest; the guest may still send.
func (c *connection) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// WhyCut returns why Close, ClosePaused or Interrupt has cut a connection of
// DialPort; nil when none has.
func WhyCut(conn net.Conn) error {
	if c := own(conn); c != nil {
		if why := c.gone.Load(); why != nil {
			return why
		}
	}
	return nil
}

// own returns the connection of a client below conn; nil when there is none.
func own(conn net.Conn) *connection {
	for {
		if c, ok := conn.(*connection); ok {
			return c
		}
		outer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = outer.NetConn()
	}
}

// NetConn returns the underlying connection.
func (c *connection) NetConn() net.Conn { return c.Conn }
