// Package framing refuses HTTP/1 requests that say their length in two ways: with
// both Content-Length and Transfer-Encoding, or with Transfer-Encoding in HTTP/1.0.
// net/http serves the former as if only Transfer-Encoding were there, and a handler
// cannot see the difference. A proxy before the server may have read the request by
// its Content-Length, so what it takes for a body may be a second request here
// (request smuggling, RFC 9112, 6.1).
package framing

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// handshakeTimeout bounds a TLS handshake when the server has no ReadHeaderTimeout.
const handshakeTimeout = 10 * time.Second

// lingerTime is what net/http gives the answer to a head that is too large.
const lingerTime = 500 * time.Millisecond

// Guard returns a listener for server.Serve with the connections of l, plain or of
// tls.NewListener. A client that sends an ambiguous request gets status 400 from
// net/http, after the answers to its earlier requests, and the connection is closed.
// Connections that speak HTTP/2, and those that were hijacked, are not looked at.
// Closing the listener closes l. Guard changes the server's ConnState, which must be set
// before; call it before Serve. It may be called for several listeners.
func Guard(server *http.Server, l net.Listener) net.Listener {
	next := server.ConnState
	server.ConnState = func(c net.Conn, state http.ConnState) {
		if guarded, ok := c.(interface{ release() }); ok && state == http.StateHijacked {
			guarded.release()
		}
		if next != nil {
			next(c, state)
		}
	}
	timeout := server.ReadHeaderTimeout
	if timeout <= 0 {
		timeout = handshakeTimeout
	}
	return &listener{Listener: l, timeout: timeout, ready: make(chan accepted), closed: make(chan struct{})}
}

// listener returns connections whose handshake is over: which protocol is spoken must
// be known before net/http gets them.
type listener struct {
	net.Listener
	timeout time.Duration // of a handshake
	start   sync.Once
	ready   chan accepted
	end     sync.Once
	closed  chan struct{}
}

type accepted struct {
	conn net.Conn
	err  error
}

// Accept returns the next connection that is ready to be read.
func (l *listener) Accept() (net.Conn, error) {
	l.start.Do(func() { go l.accept() })
	select {
	case a := <-l.ready:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close closes the listener below. Twice is allowed.
func (l *listener) Close() (err error) {
	l.end.Do(func() {
		close(l.closed)
		err = l.Listener.Close()
	})
	return err
}

// accept takes connections until the listener is closed. After an error it waits
// for the next Accept.
func (l *listener) accept() {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			if !l.hand(accepted{err: err}) {
				return
			}
			continue
		}
		encrypted, ok := raw.(*tls.Conn)
		if !ok {
			l.hand(accepted{conn: &conn{Conn: raw}})
			continue
		}
		go func() { l.hand(accepted{conn: l.handshake(encrypted)}) }()
	}
}

// hand gives a to Accept. It reports false, and has closed the connection, when the
// listener was closed.
func (l *listener) hand(a accepted) bool {
	select {
	case l.ready <- a:
		return true
	case <-l.closed:
		if a.conn != nil {
			_ = a.conn.Close() // nothing was read from it
		}
		return false
	}
}

// handshake returns the connection itself when HTTP/2 is spoken or the handshake
// failed: net/http needs the former, and answers and logs the latter.
func (l *listener) handshake(encrypted *tls.Conn) net.Conn {
	_ = encrypted.SetDeadline(time.Now().Add(l.timeout)) // if it fails, so does the handshake
	if err := encrypted.HandshakeContext(context.Background()); err != nil {
		return encrypted
	}
	_ = encrypted.SetDeadline(time.Time{}) // as above
	if encrypted.ConnectionState().NegotiatedProtocol == "h2" {
		return encrypted
	}
	return &encryptedConn{conn{Conn: encrypted}}
}

// conn is a connection whose requests are looked at.
type conn struct {
	net.Conn
	released atomic.Bool
	refused  atomic.Bool
	scanner  scanner // of the reader
	err      error   // of the scanner; the reader's
}

// encryptedConn tells net/http about its TLS.
type encryptedConn struct{ conn }

// ConnectionState returns what the handshake had as its result.
func (c *encryptedConn) ConnectionState() tls.ConnectionState {
	return c.Conn.(*tls.Conn).ConnectionState()
}

// release ends looking at the requests.
func (c *conn) release() { c.released.Store(true) }

// Read reads, and fails where a refused head ends.
func (c *conn) Read(p []byte) (int, error) {
	if c.released.Load() {
		return c.Conn.Read(p)
	}
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.Conn.Read(p)
	ok, refused := c.scanner.scan(p[:n])
	if refused != nil {
		c.refused.Store(true)
		if c.err = refused; ok > 0 {
			return ok, nil
		}
		return 0, refused
	}
	return n, err
}

// Close closes the connection. The answer to a refused request gets lingerTime to arrive:
// closing resets a connection whose client has sent more, and its kernel then drops what
// the program has not read.
func (c *conn) Close() error {
	if c.refused.Load() && c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.Copy(io.Discard, c.Conn) // until the client closes, or the time is over
	}
	return c.Conn.Close()
}

// ReadFrom sends what r has, by the kernel if it can.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if to, ok := c.Conn.(io.ReaderFrom); ok {
		return to.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// CloseWrite ends what is sent. It does nothing where the connection cannot end one
// direction alone.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// NetConn is the connection below.
func (c *conn) NetConn() net.Conn { return c.Conn }
