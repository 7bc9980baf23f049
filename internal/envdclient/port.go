package envdclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"syscall"

	"wrenn.dev"
	"wrenn.dev/internal/accesstoken"
	"wrenn.dev/internal/tunnel"
)

// DialPort connects to a TCP port of the guest: to a program that listens on the
// guest's address or, through envd, to one that listens on the loopback address
// alone. It returns wrenn.ErrPortClosed when there is neither. The connection
// breaks when the client is closed; the caller closes it.
func (c *Client) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	host, _, err := net.SplitHostPort(c.address)
	if err != nil {
		return nil, err
	}
	conn, err := c.conns.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return c.dialLoopback(ctx, port)
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, wrenn.ErrPortClosed // the guest drops the packets
	}
	if err != nil && ctx.Err() == nil && wrenn.CodeOf(err) == wrenn.Internal {
		err = &wrenn.Error{Code: wrenn.Unavailable, Message: fmt.Sprintf("the sandbox does not answer on port %d", port), Err: err}
	}
	return conn, err
}

// dialLoopback has envd connect to the port.
func (c *Client) dialLoopback(ctx context.Context, port uint16) (net.Conn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/connect?port=%d", c.base, port), nil)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set(accesstoken.Header, c.token)
	}
	conn, err := c.conns.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return nil, err
	}
	joined, err := tunnel.Ask(conn, req)
	if err == nil {
		return joined, nil
	}
	if refusal, ok := errors.AsType[*tunnel.Refusal](err); ok && refusal.Status == http.StatusBadGateway {
		return nil, wrenn.ErrPortClosed
	}
	if Gone(err) != nil || ctx.Err() != nil {
		return nil, fmt.Errorf("ask the guest's agent for port %d: %w", port, err)
	}
	return nil, &wrenn.Error{Code: wrenn.GuestFailed, Message: fmt.Sprintf("the sandbox's agent did not connect to port %d", port), Err: err}
}
