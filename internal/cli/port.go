package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/run"
	"wrenn.dev/internal/tunnel"
)

type portCommand struct {
	ID   string `arg:"" complete:"sandbox" help:"The sandbox."`
	Port uint16 `arg:"" help:"The port in the sandbox, on which an HTTP server listens."`
}

// Help is shown below the usage.
func (*portCommand) Help() string {
	return `Below the domain of the server, if it has one, else below its own URL. Requests to
private ports need the token that "sandbox get" shows:

  curl -H "` + client.TrafficHeader + `: TOKEN" "$(wrenn sandbox port ID 8000)"`
}

// Run prints a URL. It does not check that a program listens: one may be started later.
func (c *portCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	sb, err := api.Sandbox(ctx, c.ID)
	if err != nil {
		return err
	}
	if sb.State == client.Stopped || sb.State == client.Failed {
		return fmt.Errorf("sandbox %s has ended", plain.Line(sb.ID))
	}
	result := struct {
		URL   string `json:"url"`
		Token string `json:"token,omitempty"`
	}{URL: api.PortURLOf(sb, int(c.Port))}
	if sb.Ports != nil && c.Port != wrenn.EnvdPort {
		result.Token = sb.Ports.Token
	}
	if result.Token != "" && !s.json() {
		fmt.Fprintf(s.Err, "the ports are private: send the token that \"wrenn sandbox get %s\" shows as %s\n", plain.Line(sb.ID), client.TrafficHeader)
	}
	return s.print(result, func(w io.Writer) { fmt.Fprintln(w, plain.Line(result.URL)) })
}

// portRules are the flags that say who reaches the ports of a new sandbox, and how.
type portRules struct {
	PrivatePorts bool     `help:"Refuse requests to its ports without the header E2b-Traffic-Access-Token, which has the token that \"sandbox get\" shows."`
	MaskHost     string   `placeholder:"HOST" help:"The Host header that its programs get instead of the client's, such as 'localhost:$${PORT}'; $${PORT} is replaced by the port."`
	HTTPSPorts   []uint16 `name:"https-port" placeholder:"PORT" sep:"none" help:"A port of the sandbox whose program speaks TLS; may be repeated."`
}

// ports returns the rules of the flags; nil if there are none.
func (r portRules) ports() *client.SetPorts {
	if !r.PrivatePorts && r.MaskHost == "" && len(r.HTTPSPorts) == 0 {
		return nil
	}
	return &client.SetPorts{Private: r.PrivatePorts, MaskHost: r.MaskHost, HTTPS: r.HTTPSPorts}
}

// portsLine is how ports are reached in one line of "sandbox get".
func portsLine(p *client.Ports) string {
	text := p.URL
	if p.Private {
		text += ", private: " + client.TrafficHeader + ": " + p.Token
	}
	if p.MaskHost != "" {
		text += ", host " + p.MaskHost
	}
	if len(p.HTTPS) > 0 {
		text += fmt.Sprintf(", https %v", p.HTTPS)
	}
	return plain.Line(text)
}

type portForwardCommand struct {
	Address string   `default:"127.0.0.1" placeholder:"ADDRESS" help:"Address to listen on; default: ${default}."`
	ID      string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Ports   []string `arg:"" placeholder:"[LOCAL:]PORT" help:"[LOCAL:]PORT: a port of the sandbox, and the port of this machine that leads to it; default: the same. With 0 a free port is chosen."`
}

// forwarding is a local listener and where its connections lead.
type forwarding struct {
	listener net.Listener
	port     int
}

// Run listens until it is interrupted.
func (c *portForwardCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	if _, err := api.Sandbox(ctx, c.ID); err != nil {
		return err
	}
	all, err := c.listen(ctx)
	if err != nil {
		return err
	}
	run.SurviveBrokenPipes()
	serving, ctx := errgroup.WithContext(ctx)
	for _, f := range all {
		fmt.Fprintf(s.Out, "%s -> port %d of %s\n", f.listener.Addr(), f.port, c.ID)
		serving.Go(func() error { return f.serve(ctx, s, api, c.ID) })
	}
	return serving.Wait()
}

// listen opens all local ports, or none.
func (c *portForwardCommand) listen(ctx context.Context) (all []forwarding, err error) {
	defer func() {
		if err != nil {
			for _, f := range all {
				_ = f.listener.Close() // nothing has connected
			}
		}
	}()
	for _, text := range c.Ports {
		local, port, err := parsePorts(text)
		if err != nil {
			return all, err
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(c.Address, strconv.Itoa(local)))
		if err != nil {
			return all, fmt.Errorf("%w: give another local port, as in %d:%d, or 0 for a free one", err, port+1, port)
		}
		all = append(all, forwarding{l, port})
	}
	return all, nil
}

// parsePorts reads PORT or LOCAL:PORT.
func parsePorts(text string) (local, port int, err error) {
	before, after, both := strings.Cut(text, ":")
	if !both {
		after = before
	}
	l, errLocal := strconv.ParseUint(before, 10, 16)
	p, errPort := strconv.ParseUint(after, 10, 16)
	if errLocal != nil || errPort != nil || p == 0 {
		return 0, 0, fmt.Errorf("%w: %q is not a port: give PORT or LOCAL:PORT, from 1 to 65535", run.ErrUsage, text)
	}
	return int(l), int(p), nil
}

// serve forwards connections until ctx ends.
func (f forwarding) serve(ctx context.Context, s *session, api *client.Client, id string) error {
	defer context.AfterFunc(ctx, func() { _ = f.listener.Close() })() // ends Accept
	var open sync.WaitGroup
	defer open.Wait()
	for {
		local, err := f.listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		open.Go(func() {
			if err := f.pass(ctx, local, api, id); err != nil && ctx.Err() == nil {
				fmt.Fprintf(s.Err, "port %d: %v\n", f.port, err)
			}
		})
	}
}

// pass forwards a local connection to the port. When ctx ends, it breaks the connection.
func (f forwarding) pass(ctx context.Context, local net.Conn, api *client.Client, id string) error {
	defer local.Close()
	remote, err := api.DialPort(ctx, id, f.port)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		local.Close()
		_ = remote.SetDeadline(time.Now()) // breaks it; Close would wait for the server
	})()
	explained := &explainedConn{Conn: remote}
	tunnel.Join(local, explained, nil)
	return explained.why
}

// explainedConn is a connection that remembers why the server cut it.
type explainedConn struct {
	net.Conn

	why error // for after Join; nil when the server did not say
}

func (c *explainedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if _, ok := errors.AsType[*client.Error](err); ok {
		c.why = err
	}
	return n, err
}

// CloseWrite ends the direction to the sandbox.
func (c *explainedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
