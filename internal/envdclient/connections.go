package envdclient

import (
	"context"
	"errors"
	"net"
	"sync"

	"wrenn"
)

// errGone is the error of calls and streams that are open when the client is
// closed. A guest that has ended sends nothing that would end a connection:
// without Close, a read would wait minutes for TCP's timeout.
var errGone = wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox is no longer running")

// connections are the open connections of a client.
type connections struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu     sync.Mutex // guards the fields below
	closed bool
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
	if c.closed {
		_ = conn.Close() // nothing was sent
		return nil, errGone
	}
	c.open[out] = struct{}{}
	return out, nil
}

// close closes all connections, and makes later dials fail.
func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		_ = conn.Conn.Close() // its user gets errGone
	}
	clear(c.open)
}

func (c *connections) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// connection is a connection whose errors are errGone after the client was closed.
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
	if errors.Is(err, net.ErrClosed) && c.all.isClosed() {
		return errGone
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
