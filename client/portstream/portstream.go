// Package portstream carries a TCP connection in a WebSocket, as
// GET /v1/sandboxes/{id}/connect/{port} does: binary messages are the bytes, and
// an empty one is the end of its direction. A text message says why the API ends the
// connection early. The API and its clients share it.
package portstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// Protocol is the WebSocket's subprotocol.
const Protocol = "wrenn.port.v1"

const (
	// maxMessage bounds a message of the peer's.
	maxMessage = 1 << 20
	// piece is the most that a message of ours has.
	piece = 128 << 10
)

// Conn is a connection over a WebSocket. Read and Write may be used at the same
// time, each by one goroutine. The caller closes it; twice is allowed.
type Conn struct {
	ws      *websocket.Conn
	message io.Reader // what is left of the message that is being read
	empty   bool      // nothing was read of it yet
	ended   bool      // the peer has ended its direction
	closing sync.Once
	expired atomic.Bool // a deadline has passed
	mu      sync.Mutex  // guards timers
	timers  [2]*time.Timer
}

var _ net.Conn = (*Conn)(nil)

// New returns the connection that ws carries, and owns ws from then on.
func New(ws *websocket.Conn) *Conn {
	ws.SetReadLimit(maxMessage)
	return &Conn{ws: ws}
}

// Read returns io.EOF when the peer has ended its direction, and another error
// when the WebSocket ends before that: then not all may have come. It is a *Cut when
// the peer says why.
func (c *Conn) Read(p []byte) (int, error) {
	for !c.ended {
		if c.message == nil {
			kind, message, err := c.ws.Reader(context.Background())
			if err != nil {
				return 0, c.explain(err)
			}
			if kind != websocket.MessageBinary {
				return 0, readCut(message)
			}
			c.message, c.empty = message, true
		}
		n, err := c.message.Read(p)
		if n > 0 {
			c.empty = false
			return n, nil
		}
		if errors.Is(err, io.EOF) {
			c.ended, c.message = c.empty, nil
		} else if err != nil {
			return 0, c.explain(err)
		}
	}
	return 0, io.EOF
}

// Cut is the error of a Read when the peer says why it cut the connection.
type Cut struct {
	Code    string `json:"code"` // of the API's errors
	Message string `json:"data"`
}

func (c *Cut) Error() string { return c.Message }

// Unwrap returns io.ErrUnexpectedEOF.
func (c *Cut) Unwrap() error { return io.ErrUnexpectedEOF }

// cutFrame is Cut as the peer sends it: as exec streams send their errors.
type cutFrame struct {
	Type string `json:"type"` // "error"
	Cut
}

// readCut reads a text message.
func readCut(message io.Reader) error {
	var frame cutFrame
	if err := json.NewDecoder(message).Decode(&frame); err != nil || frame.Type != "error" {
		return errors.New("the peer sent text on a connection to a port")
	}
	return &frame.Cut
}

// Fail tells the peer why the connection is cut, which Close then does.
func (c *Conn) Fail(code, message string) error {
	text, err := json.Marshal(cutFrame{"error", Cut{code, message}})
	if err != nil {
		return err
	}
	return c.explain(c.ws.Write(context.Background(), websocket.MessageText, text))
}

// Write sends p in messages.
func (c *Conn) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n := min(len(p), piece)
		if err := c.ws.Write(context.Background(), websocket.MessageBinary, p[:n]); err != nil {
			return written, c.explain(err)
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// CloseWrite ends our direction; the peer may still send.
func (c *Conn) CloseWrite() error {
	return c.explain(c.ws.Write(context.Background(), websocket.MessageBinary, nil))
}

// Close ends both directions.
func (c *Conn) Close() error {
	c.closing.Do(func() { _ = c.ws.Close(websocket.StatusNormalClosure, "") }) // the peer may be gone
	return nil
}

// explain tells a WebSocket that ended early from one whose deadline passed.
func (c *Conn) explain(err error) error {
	if err == nil {
		return nil
	}
	if c.expired.Load() {
		return os.ErrDeadlineExceeded
	}
	if websocket.CloseStatus(err) != -1 || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	return err
}

// LocalAddr names the sort of connection: addresses are the WebSocket's.
func (c *Conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr is as LocalAddr.
func (c *Conn) RemoteAddr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "websocket" }
func (addr) String() string  { return "websocket" }

// SetDeadline sets both deadlines. A deadline that passes breaks the connection.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets the deadline of reads; the zero time is none.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setTimer(0, t) }

// SetWriteDeadline sets the deadline of writes; the zero time is none.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setTimer(1, t) }

func (c *Conn) setTimer(which int, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.timers[which]; old != nil {
		old.Stop()
	}
	c.timers[which] = nil
	if !t.IsZero() {
		c.timers[which] = time.AfterFunc(time.Until(t), func() {
			c.expired.Store(true)
			_ = c.ws.CloseNow() // wakes what waits
		})
	}
	return nil
}
