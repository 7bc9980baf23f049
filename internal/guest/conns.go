package guest

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// connections are those that the agent has.
type connections struct {
	mu   sync.Mutex // guards open
	open map[net.Conn]struct{}
}

func newConnections() *connections { return &connections{open: make(map[net.Conn]struct{})} }

// connKey finds a request's connection in its context.
type connKey struct{}

// withConn is http.Server.ConnContext.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// track is http.Server.ConnState.
func (c *connections) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.open[conn] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
}

// closeOthers closes all connections but that of the request with ctx. The
// requests on them end as if their clients had gone.
func (c *connections) closeOthers(ctx context.Context) {
	own, _ := ctx.Value(connKey{}).(net.Conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		if conn != own {
			conn.Close()
		}
	}
}
