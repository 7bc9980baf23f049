package envdclient

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"
	"time"

	"wrenn.dev"
)

// Probe returns nil when envd answers a request before ctx ends, whatever it
// answers and also while the client is interrupted, and otherwise a *ProbeError. It
// has a connection that nothing else uses.
func (c *Client) Probe(ctx context.Context) error {
	failed := &ProbeError{}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { failed.connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := c.probe.Do(req)
	if err != nil {
		failed.err = err
		return failed
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // so that the connection can be reused
	return resp.Body.Close()
}

// ProbeError is the error of a Probe that envd did not answer.
type ProbeError struct {
	connected atomic.Bool // a late dial may still set it
	err       error
}

func (e *ProbeError) Error() string { return "probe: " + e.err.Error() }
func (e *ProbeError) Unwrap() error { return e.err }

// Silence describes for a user what does not answer.
func (e *ProbeError) Silence() string {
	switch {
	case errors.Is(e.err, syscall.ECONNREFUSED):
		return "its agent (envd) does not run"
	case e.connected.Load():
		return "its agent (envd) takes requests and does not answer"
	default:
		return "nothing in it answers on its network"
	}
}

// Heard returns when envd last sent a byte on any connection; the zero time when it
// has not sent any.
func (c *Client) Heard() time.Time {
	if ns := c.conns.heard.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// Interrupt makes every call fail at once with reason, until Continue: those that
// begin, and those whose connection heard nothing after since. Twice is allowed.
func (c *Client) Interrupt(reason *wrenn.Error, since time.Time) {
	c.conns.interrupt(&goneError{reason}, since)
}

// Continue takes Interrupt back. Twice is allowed.
func (c *Client) Continue() { c.conns.resume() }
