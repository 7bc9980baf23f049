package client

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/coder/websocket"

	"wrenn/api/portstream"
)

// DialPort connects to a TCP port of a sandbox. The program may listen on any of
// the sandbox's addresses, including the loopback address. A paused sandbox with
// AutoResume is resumed first. The error's code is InvalidState when no program
// listens, or when the sandbox does not run. The connection breaks when the
// sandbox is paused or ends: a read then fails with io.ErrUnexpectedEOF. ctx
// covers only connecting; the caller closes the connection, which has a
// CloseWrite like that of net.TCPConn.
func (c *Client) DialPort(ctx context.Context, id string, port int) (net.Conn, error) {
	header := map[string][]string{}
	c.sign(header)
	path := fmt.Sprintf("/v1/sandboxes/%s/connect/%d", url.PathEscape(id), port)
	conn, resp, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(c.address(path, nil), "http"), &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: header, Subprotocols: []string{portstream.Protocol},
	})
	if err == nil {
		return portstream.New(conn), nil
	}
	if resp != nil && ctx.Err() == nil {
		defer resp.Body.Close()
		return nil, problem(resp)
	}
	return nil, c.broken(ctx, err)
}

// PortURL returns the URL under which the server serves HTTP from a port of a
// sandbox. It needs no key: everyone who knows the URL has access. It ends with
// a slash.
func (c *Client) PortURL(id string, port int) string {
	return fmt.Sprintf("%s/p/%s/%d/", c.base, url.PathEscape(id), port)
}
