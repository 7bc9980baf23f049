package gateway

import (
	"bufio"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"wrenn.dev"
)

// programConn is a connection to a program that speaks HTTP/1.1, for one request
// after another.
type programConn struct {
	net.Conn

	to     portOf
	head   io.LimitedReader // below reader; bounds the head of a response
	reader *bufio.Reader
	writer *bufio.Writer
	expire *time.Timer // closes it while it is idle; nil before it was for the first time
}

// portOf is what a connection leads to.
type portOf struct {
	id   wrenn.SandboxID
	port uint16
}

func newProgramConn(conn net.Conn, to target) *programConn {
	c := &programConn{Conn: conn, to: portOf{to.id, to.port}, writer: bufio.NewWriter(conn)}
	c.head.R = conn
	c.reader = bufio.NewReader(&c.head)
	return c
}

// readResponse reads the head of the response to req, which may be an informational
// one (1xx).
func (c *programConn) readResponse(req *http.Request) (*http.Response, error) {
	c.head.N = maxHeader
	resp, err := http.ReadResponse(c.reader, req)
	c.head.N = math.MaxInt64 // the limit was of the head
	return resp, err
}

// stale reports whether the program has closed an idle connection, or sent what no
// request asked for.
func (c *programConn) stale() bool {
	if c.reader.Buffered() > 0 {
		return true
	}
	under := c.Conn
	for {
		outer, ok := under.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		under = outer.NetConn()
	}
	socket, ok := under.(syscall.Conn)
	if !ok {
		return true // it cannot be known
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	silent := false
	err = raw.Read(func(fd uintptr) (done bool) {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		silent = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err != nil || !silent
}

// idleConns are connections that wait for the next request. The zero value has none;
// it is safe for concurrent use.
type idleConns struct {
	mu    sync.Mutex // guards what follows
	count int
	all   map[portOf][]*programConn // the last one was used last
}

// take returns an idle connection to a target; nil when there is none.
func (i *idleConns) take(to target) *programConn {
	for {
		c := i.pop(portOf{to.id, to.port})
		if c == nil || !c.stale() {
			return c
		}
		_ = c.Close() // it is of no use
	}
}

func (i *idleConns) pop(to portOf) *programConn {
	i.mu.Lock()
	defer i.mu.Unlock()
	conns := i.all[to]
	if len(conns) == 0 {
		return nil
	}
	c := conns[len(conns)-1]
	i.remove(c)
	c.expire.Stop()
	return c
}

// put keeps a connection for a while. When there are too many it closes it.
func (i *idleConns) put(c *programConn) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.count >= maxIdle || len(i.all[c.to]) >= maxIdleEach {
		_ = c.Close() // nothing is in flight
		return
	}
	if i.all == nil {
		i.all = map[portOf][]*programConn{}
	}
	i.count++
	i.all[c.to] = append(i.all[c.to], c)
	if c.expire == nil {
		c.expire = time.AfterFunc(idleTimeout, func() { i.drop(c) })
	} else {
		c.expire.Reset(idleTimeout)
	}
}

// drop closes a connection that is idle still.
func (i *idleConns) drop(c *programConn) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.remove(c) {
		_ = c.Close() // as in put
	}
}

// remove reports whether c was idle. The caller must hold mu.
func (i *idleConns) remove(c *programConn) bool {
	conns := i.all[c.to]
	at := slices.Index(conns, c)
	if at < 0 {
		return false
	}
	i.count--
	if i.all[c.to] = slices.Delete(conns, at, at+1); len(conns) == 1 {
		delete(i.all, c.to)
	}
	return true
}
