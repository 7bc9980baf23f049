package guest

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// connections are the agent's open connections.
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

// closeOthers closes the connections that are open now, except that of the request
// with ctx, after some time. The requests on them end as if their clients had left.
//
// It waits because closing them takes a tenth of the time between a restore and the
// first command, nothing waits for it, and their peers are gone.
func (c *connections) closeOthers(ctx context.Context, after time.Duration) {
	own, _ := ctx.Value(connKey{}).(net.Conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	others := make([]net.Conn, 0, len(c.open))
	for conn := range c.open {
		if conn != own {
			others = append(others, conn)
		}
	}
	if len(others) == 0 {
		return
	}
	time.AfterFunc(after, func() {
		for _, conn := range others {
			conn.Close() // some may be closed already
		}
	})
}
