package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/coder/websocket"

	"wrenn.dev/client/portstream"
)

// DialPort connects to a TCP port of a sandbox. The program may listen on any of
// the sandbox's addresses, including the loopback address. A paused sandbox with
// AutoResume is resumed first. The error's code is InvalidState when no program
// listens, or when the sandbox does not run. The connection breaks when the
// sandbox is paused or ends: a read then fails with io.ErrUnexpectedEOF, and an
// *Error, such as one of CutByPause, when the server says why. ctx covers only connecting; the caller closes the connection, which has a
// CloseWrite like that of net.TCPConn.
func (c *Client) DialPort(ctx context.Context, id string, port int) (net.Conn, error) {
	header := map[string][]string{}
	c.sign(header)
	path := fmt.Sprintf("/v1/sandboxes/%s/connect/%d", url.PathEscape(id), port)
	conn, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(c.address(path, nil), "http"), &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: header, Subprotocols: []string{portstream.Protocol},
	})
	if err == nil {
		return &portConn{portstream.New(conn)}, nil
	}
	if resp != nil && ctx.Err() == nil {
		defer resp.Body.Close()
		return nil, problem(resp)
	}
	return nil, c.broken(ctx, err)
}

// TrafficHeader carries Ports.Token in requests to private ports.
const TrafficHeader = "E2b-Traffic-Access-Token"

// SetPorts is who reaches the ports of a sandbox by HTTP, and how. It is set at
// create, and does not concern port 49983, which is the agent's.
type SetPorts struct {
	Private  bool     `json:"private,omitempty"`   // requests need a token, see Ports.Token
	MaskHost string   `json:"mask_host,omitempty"` // the Host that programs get, ${PORT} stands for the port; "" is that of the client
	HTTPS    []uint16 `json:"https,omitempty"`     // where programs speak TLS, with any certificate
}

// Ports is how the ports of a sandbox are reached by HTTP.
type Ports struct {
	URL      string   `json:"url"`             // in which {port} stands for the number; Client.PortURLOf reads it
	Private  bool     `json:"private"`         // requests need Token in TrafficHeader
	Token    string   `json:"token,omitempty"` // a secret; "" unless Private
	MaskHost string   `json:"mask_host,omitempty"`
	HTTPS    []uint16 `json:"https,omitempty"`
}

// portConn is a connection whose errors are those of this package.
type portConn struct{ *portstream.Conn }

func (c *portConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if cut, ok := errors.AsType[*portstream.Cut](err); ok {
		err = &cutError{&Error{Code: Code(cut.Code), Message: cut.Message}}
	}
	return n, err
}

// cutError says why the server has cut a connection.
type cutError struct{ why *Error }

func (c *cutError) Error() string   { return c.why.Message }
func (c *cutError) Unwrap() []error { return []error{c.why, io.ErrUnexpectedEOF} }

// PortURL returns the URL under which the server serves HTTP from a port of a
// sandbox, also without a domain. It needs no key: everyone who knows the URL has
// access, unless the ports are private. It ends with a slash.
func (c *Client) PortURL(id string, port int) string {
	return fmt.Sprintf("%s/p/%s/%d/", c.base, url.PathEscape(id), port)
}

// PortURLOf returns the URL for browsers and programs: below the server's domain if
// it has one, otherwise, and for a sandbox of a list, that of PortURL.
func (c *Client) PortURLOf(sb *Sandbox, port int) string {
	if sb.Ports == nil || !strings.HasPrefix(sb.Ports.URL, "https://") {
		return c.PortURL(sb.ID, port)
	}
	return strings.ReplaceAll(sb.Ports.URL, "{port}", strconv.Itoa(port))
}
