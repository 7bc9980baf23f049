package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"wrenn.dev/internal/tunnel"
)

// errCut is the error of a connection to a program whose sandbox has ended or was
// paused. The hop from the host's agent may show that as an ordinary end.
var errCut = errors.New("the sandbox was paused or has ended")

// runsTimeout bounds the look at a sandbox's row when one of its connections ends.
const runsTimeout = 5 * time.Second

// sandboxConn is a connection to a program in a sandbox. Its end is an error unless
// the sandbox runs on.
type sandboxConn struct {
	net.Conn

	to        target
	sandboxes Sandboxes
}

func (c *sandboxConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) && !c.runs() {
		err = errCut
	}
	return n, err
}

func (c *sandboxConn) runs() bool {
	ctx, cancel := context.WithTimeout(context.Background(), runsTimeout) // a read has none
	defer cancel()
	return c.sandboxes.Runs(ctx, c.to.id)
}

// CloseWrite ends the direction to the program.
func (c *sandboxConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// NetConn is the connection below.
func (c *sandboxConn) NetConn() net.Conn { return c.Conn }

// resetIfCut is deferred around the work on a request. A request that breaks off
// because its sandbox was paused or has ended resets the client's connection, as
// at E2B: its SDKs then ask what became of the sandbox. By HTTP/2 the stream is
// reset in any case.
func (g *Gateway) resetIfCut(w http.ResponseWriter, r *http.Request, to target) {
	broken := recover()
	if broken == nil {
		return
	}
	if r.ProtoMajor == 1 && r.Context().Err() == nil && !g.sandboxes.Runs(r.Context(), to.id) {
		if client, _, err := http.NewResponseController(w).Hijack(); err == nil { // else it is gone already
			tunnel.Reset(client)
		}
	}
	panic(broken)
}
