package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
)

// Programs are asked for as soon as they were started: a closed port is tried
// again this often, with these pauses in between, as E2B does.
var dialPauses = []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 400 * time.Millisecond, 400 * time.Millisecond}

const (
	// idleTimeout is shorter than that of common servers, such as the 5 s of
	// Node's: one that closes a connection just when a request is sent on it
	// fails that request.
	idleTimeout = 4 * time.Second
	maxIdle     = 4096 // connections that wait for the next request, of all sandboxes
	maxIdleEach = 128  // of one port
	maxHeader   = 256 << 10
)

// dialError says why there is no connection.
type dialError struct {
	to  target
	err error
}

func (e *dialError) Error() string {
	return fmt.Sprintf("connect to port %d of %s: %v", e.to.port, e.to.id, e.err)
}
func (e *dialError) Unwrap() error { return e.err }

// Texts that clients recognize; they must not change.
const (
	notFound   = "The sandbox was not found"
	portClosed = "The sandbox is running but port is not open"
)

// answer is the status and the message for clients.
func (e *dialError) answer() (status int, message string) {
	switch {
	case errors.Is(e.err, wrenn.ErrPortClosed):
		return http.StatusBadGateway, portClosed
	case wrenn.CodeOf(e.err) == wrenn.NotFound, wrenn.CodeOf(e.err) == wrenn.FailedPrecondition:
		return http.StatusBadGateway, notFound
	case wrenn.CodeOf(e.err) == wrenn.Exhausted:
		return http.StatusTooManyRequests, said(e.err)
	default:
		return http.StatusBadGateway, "The sandbox cannot be reached: " + said(e.err)
	}
}

// dialer connects to the ports of sandboxes.
type dialer struct {
	sandboxes Sandboxes
	reached   func(wrenn.SandboxID) // called with sandboxes that exist
}

// dial waits a moment for a program that does not listen yet. Its errors are *dialError.
func (d *dialer) dial(ctx context.Context, to target) (net.Conn, error) {
	for _, pause := range dialPauses {
		conn, err := d.sandboxes.DialPort(ctx, to.id, to.port)
		if err == nil || errors.Is(err, wrenn.ErrPortClosed) {
			d.reached(to.id)
		}
		if err == nil {
			return d.secure(ctx, &sandboxConn{Conn: conn, to: to, sandboxes: d.sandboxes})
		}
		if !errors.Is(err, wrenn.ErrPortClosed) {
			return nil, &dialError{to, err}
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, &dialError{to, context.Cause(ctx)}
		}
	}
	return nil, &dialError{to, wrenn.ErrPortClosed}
}

// secure speaks TLS to a program that does. Its certificate is not verified: nothing
// between here and the sandbox can be another program. By HTTP/1.1: gRPC over TLS has
// to be reached as a connection.
func (d *dialer) secure(ctx context.Context, conn *sandboxConn) (net.Conn, error) {
	if conn.to.port == EnvdPort {
		return conn, nil
	}
	ingress, err := d.sandboxes.Ingress(ctx, conn.to.id)
	if err == nil && !ingress.HTTPS(conn.to.port) {
		return conn, nil
	}
	if err == nil {
		secured := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) //nolint:gosec // as said above
		if err = secured.HandshakeContext(ctx); err == nil {
			return secured, nil
		}
		err = &wrenn.Error{Code: wrenn.Unavailable, Message: "the program at this HTTPS port does not speak TLS", Err: err}
	}
	_ = conn.Close() // the first error is the one that counts
	return nil, &dialError{conn.to, err}
}

// authority is the host and port by which a transport keeps the connections to a target apart.
func (t target) authority() string { return fmt.Sprintf("%s:%d", t.id, t.port) }

// dialAuthority is a transport's DialContext.
func (d *dialer) dialAuthority(ctx context.Context, _, authority string) (net.Conn, error) {
	id, port, _ := strings.Cut(authority, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	return d.dial(ctx, target{id: wrenn.SandboxID(id), port: uint16(n)})
}

// transports speak to programs in sandboxes: by HTTP/2 to those that are asked
// for gRPC, which has no other form, by HTTP/1.1 to all others.
type transports struct{ http1, http2 *http.Transport }

func newTransports(d *dialer) *transports {
	return &transports{http1: newTransport(d, false), http2: newTransport(d, true)}
}

func newTransport(d *dialer, http2 bool) *http.Transport {
	t := &http.Transport{
		DialContext:            d.dialAuthority,
		DisableCompression:     true, // what the client asks for is what it gets
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdleEach,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetUnencryptedHTTP2(http2)
	return t
}

func (t *transports) RoundTrip(r *http.Request) (*http.Response, error) {
	if isGRPC(r) {
		return t.http2.RoundTrip(r)
	}
	return t.http1.RoundTrip(r)
}

func isGRPC(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}
