package envdclient

import (
	"context"
	"errors"
	"net"
	"sync"

	"wrenn"
)

// errGone is how everything ends that goes on when the client is closed. A
// guest that is gone sends nothing that would end a connection to it: without
// Close, whoever reads from it would wait until TCP gives up, for minutes.
var errGone = wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox does not run any more")

// connections are those that are open.
type connections struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu     sync.Mutex // guards what follows
	closed bool
	open   map[*connection]struct{}
}

// DialContext opens one more.
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

// close ends all of them, and those that are to come.
func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		_ = conn.Conn.Close() // who uses it hears of it
	}
	clear(c.open)
}

func (c *connections) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// connection tells why it ended.
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

// CloseWrite ends what is sent to the guest; the guest may still send.
func (c *connection) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// NetConn is the connection below.
func (c *connection) NetConn() net.Conn { return c.Conn }
