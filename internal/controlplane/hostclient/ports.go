package hostclient

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/tunnel"
	"wrenn.dev/internal/wire"
)

// DialPort connects to a TCP port of a sandbox. It returns wrenn.ErrPortClosed
// when no program listens there. The connection breaks when the sandbox is paused
// or ends, and with the host's agent; its method WhyCut(context.Context) error then
// says why. The caller closes it.
func (c *Client) DialPort(ctx context.Context, id wrenn.SandboxID, port uint16) (net.Conn, error) {
	dialing, cancel := context.WithTimeout(ctx, c.deadlines.Start)
	defer cancel()
	name := rand.Text()
	conn, err := c.ask(dialing, id, port, name)
	if err == nil {
		return &portConn{Conn: conn, c: c, why: tunnel.HostPath(string(id), port) + "?" + tunnel.CutParam + "=" + name}, nil
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
func (c *Client) ask(ctx context.Context, id wrenn.SandboxID, port uint16, name string) (net.Conn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host-agent"+tunnel.HostPath(string(id), port), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(tunnel.NameHeader, name)
	if c.epoch != 0 {
		req.Header.Set(hostwire.EpochHeader, hostwire.EpochText(c.epoch))
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	return tunnel.Ask(conn, req)
}

// portConn is a connection of DialPort.
type portConn struct {
	net.Conn

	c   *Client
	why string // path of the question why it was cut
}

// WhyCut returns why the host has cut the connection, which broke, such as
// CutByPause; nil when the host has not cut it, or does not say.
func (p *portConn) WhyCut(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, whyCutTimeout)
	defer cancel()
	why, err := p.c.askWhy(ctx, p.why)
	if err != nil || why.Code == "" { // a host that is gone, or of an older version
		return nil
	}
	return wire.FromResult(why.Code, hostwire.Text(why.Message))
}

// whyCutTimeout bounds the question why a connection was cut.
const whyCutTimeout = 5 * time.Second

func (c *Client) askWhy(ctx context.Context, path string) (why tunnel.Refused, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host-agent"+path, nil)
	if err != nil {
		return why, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return why, err
	}
	defer conn.Close()
	resp, _, err := tunnel.Exchange(conn, req, maxWhy)
	if err != nil {
		return why, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return why, nil
	}
	return why, json.NewDecoder(io.LimitReader(resp.Body, maxWhy)).Decode(&why)
}

// maxWhy bounds the answer.
const maxWhy = 16 << 10

// CloseWrite ends the direction to the program, where the connection can.
func (p *portConn) CloseWrite() error {
	if half, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// NetConn is the connection to the host.
func (p *portConn) NetConn() net.Conn { return p.Conn }
