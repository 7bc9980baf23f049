package envdclient

import (
	"context"
	"errors"
	"net"
	"sync"

	"wrenn"
)

// goneError is the error of calls and streams that are open when the client is
// closed. A guest that has ended sends nothing that would end a connection:
// without Close, a read would wait minutes for TCP's timeout.
type goneError struct{ why *wrenn.Error }

func (g *goneError) Error() string { return g.why.Error() }
func (g *goneError) Unwrap() error { return g.why }

// The reasons for closing a client.
var (
	errGone   = &goneError{wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox is no longer running")}
	errPaused = &goneError{wrenn.Errorf(wrenn.CutByPause, "the sandbox was paused: resume it, and try again; commands continue then, attach to them")}
)

// Gone returns the error of a call or a stream that the end of the client has ended,
// which is in err's chain, else nil.
func Gone(err error) error {
	if gone, ok := errors.AsType[*goneError](err); ok {
		return gone
	}
	return nil
}

// connections are the open connections of a client.
type connections struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu     sync.Mutex // guards the fields below
	closed *goneError // why it is closed; nil while it is open
	open   map[*connection]struct{}
}

// DialContext opens another connection.
func (c *connections) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	out := &connection{Conn: conn, all: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		_ = conn.Close() // nothing was sent
		return nil, c.closed
	}
	c.open[out] = struct{}{}
	return out, nil
}

// close closes all connections, and makes later dials fail. The first reason counts.
func (c *connections) close(why *goneError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == nil {
		c.closed = why
	}
	for conn := range c.open {
		_ = conn.Conn.Close() // its user gets the reason
	}
	clear(c.open)
}

// reason is why it is closed; nil while it is open.
func (c *connections) reason() *goneError {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// connection is a connection whose errors are the reason after the client was closed.
type connection struct {
	net.Conn

	all *connections
}

func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.explain(err)
}

func (c *connection) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

func (c *connection) explain(err error) error {
	if errors.Is(err, net.ErrClosed) {
		if why := c.all.reason(); why != nil {
			return why
		}
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

// NetConn returns the underlying connection.
func (c *connection) NetConn() net.Conn { return c.Conn }
