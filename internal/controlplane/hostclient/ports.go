package hostclient

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"

	"wrenn"
	"wrenn/internal/hostwire"
	"wrenn/internal/tunnel"
	"wrenn/internal/wire"
)

// DialPort connects to a TCP port of a sandbox. It returns wrenn.ErrPortClosed
// when no program listens there. The connection breaks when the sandbox is paused
// or ends, and with the host's agent; the caller closes it.
func (c *Client) DialPort(ctx context.Context, id wrenn.SandboxID, port uint16) (net.Conn, error) {
	dialing, cancel := context.WithTimeout(ctx, c.deadlines.Start)
	defer cancel()
	conn, err := c.ask(dialing, id, port)
	if err == nil {
		return conn, nil
	}
	refusal, ok := errors.AsType[*tunnel.Refusal](err)
	if !ok {
		return nil, wire.FromConnect(c.peer, errors.Join(err, context.Cause(dialing)))
	}
	if refusal.Status == http.StatusBadGateway {
		return nil, wrenn.ErrPortClosed
	}
	var why tunnel.Refused
	if err := json.Unmarshal(refusal.Body, &why); err != nil || why.Code == "" {
		return nil, &wrenn.Error{Code: wrenn.Unavailable, Message: c.peer + " cannot connect to ports: its agent may be of an older version", Err: refusal}
	}
	return nil, wire.FromResult(why.Code, hostwire.Text(why.Message))
}

// ask opens a connection to the agent and turns it into a tunnel.
func (c *Client) ask(ctx context.Context, id wrenn.SandboxID, port uint16) (net.Conn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host-agent"+tunnel.HostPath(string(id), port), nil)
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	return tunnel.Ask(conn, req)
}
