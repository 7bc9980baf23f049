package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"wrenn.dev/client"
	"wrenn.dev/internal/mcpserver"
	"wrenn.dev/internal/run"
)

const (
	// destroyGrace bounds what --destroy does at the end of a session.
	destroyGrace = time.Minute
	// mcpHeaderTimeout is that of the API.
	mcpHeaderTimeout = 10 * time.Second
	mcpIdleTimeout   = 2 * time.Minute
	mcpStopGrace     = 5 * time.Second
)

type mcpCommand struct {
	Sandbox  string `complete:"sandbox" placeholder:"SANDBOX" help:"Let the agent use this sandbox alone; it cannot make others. Default: all of the team, and new ones."`
	ReadOnly bool   `help:"Offer no tool that changes something."`
	Network  string `enum:"internet,none" default:"internet" placeholder:"internet|none" help:"What sandboxes that the agent makes may reach: what it asks for, or nothing; default: internet."`
	Template string `short:"t" placeholder:"TEMPLATE" help:"What sandboxes start from if the agent does not say; default: base."`
	Timeout  span   `default:"30m" placeholder:"TIME" help:"Destroy sandboxes that the agent made after this time without use, if it does not say; default: ${default}."`
	Destroy  bool   `help:"Destroy the sandboxes that the agent made when the session ends. Default: they stay for their timeout."`

	Listen    string   `placeholder:"[ADDRESS]:PORT" help:"Serve HTTP at http://ADDRESS:PORT/mcp instead of standard input and output; ADDRESS is 127.0.0.1 by default. Callers send an API key as bearer token."`
	Host      []string `placeholder:"NAME" sep:"none" help:"With --listen, a name by which callers reach this server besides localhost; may be repeated."`
	PlainHTTP bool     `name:"plain-http" help:"Allow --listen on an address that other machines reach. API keys travel in the clear: use it behind a proxy that speaks TLS."`
}

// Help is shown below the usage.
func (*mcpCommand) Help() string {
	return `Programs start this by their configuration, for example Claude Code:

  claude mcp add wrenn -- wrenn mcp --destroy

or any program with a file of JSON:

  {"mcpServers": {"wrenn": {"command": "wrenn", "args": ["mcp", "--destroy"]}}}`
}

// Run serves until the client or this program is stopped.
func (c *mcpCommand) Run(ctx context.Context, s *session) error {
	cfg := mcpserver.Config{
		Sandbox: c.Sandbox, ReadOnly: c.ReadOnly, Offline: c.Network == "none", Template: c.Template, Timeout: c.Timeout.Duration, Version: version(),
		Log: slog.New(slog.NewTextHandler(s.Err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if c.Listen != "" {
		return c.serve(ctx, s, cfg)
	}
	if len(c.Host) > 0 || c.PlainHTTP {
		return fmt.Errorf("%w: --host and --plain-http need --listen", run.ErrUsage)
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	cfg.Client = api
	server, err := mcpserver.New(cfg)
	if err != nil {
		return fmt.Errorf("%w: %w", run.ErrUsage, err)
	}
	err = server.Run(ctx, &mcp.IOTransport{Reader: io.NopCloser(s.In), Writer: unclosed{s.Out}})
	return errors.Join(err, c.clean(ctx, s, server, api))
}

// unclosed is an output that stays open.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// clean does what --destroy says, also when ctx has ended.
func (c *mcpCommand) clean(ctx context.Context, s *session, server *mcpserver.Server, api *client.Client) error {
	if !c.Destroy {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyGrace)
	defer cancel()
	n, err := server.Destroy(ctx)
	if err != nil {
		return fmt.Errorf("destroy the sandboxes of the session: %w\nThe others end after their timeout. To try again: wrenn --url %s sandbox kill -l %s=%s",
			err, api.URL(), mcpserver.LabelSession, server.Session())
	}
	if n > 0 {
		fmt.Fprintf(s.Err, "sandboxes destroyed: %d\n", n)
	}
	return nil
}

// serve serves HTTP until ctx ends.
func (c *mcpCommand) serve(ctx context.Context, s *session, cfg mcpserver.Config) error {
	address, err := c.address()
	if err != nil {
		return err
	}
	to, _, err := s.server() // the key is the caller's
	if err != nil {
		return err
	}
	server, err := mcpserver.New(cfg)
	if err != nil {
		return fmt.Errorf("%w: %w", run.ErrUsage, err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%w: give another port by --listen", err)
	}
	fmt.Fprintf(s.Out, "http://%s%s\n", l.Addr(), mcpserver.Path)
	httpServer := &http.Server{
		Handler:           server.Handler(mcpserver.HTTPConfig{URL: to, Hosts: c.Host, UserAgent: "wrenn-mcp/" + version()}),
		ReadHeaderTimeout: mcpHeaderTimeout, IdleTimeout: mcpIdleTimeout, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
	}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), mcpStopGrace)
		defer cancel()
		if httpServer.Shutdown(stop) != nil {
			_ = httpServer.Close() // streams do not end by themselves
		}
	})()
	if err := httpServer.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}

// address checks --listen.
func (c *mcpCommand) address() (string, error) {
	if c.Destroy {
		return "", fmt.Errorf("%w: --destroy is not for --listen, whose callers do not say when they end: sandboxes stay for their timeout", run.ErrUsage)
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return "", fmt.Errorf("%w: --listen is ADDRESS:PORT or :PORT, not %q", run.ErrUsage, c.Listen)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if host != "localhost" && (err != nil || !ip.IsLoopback()) && !c.PlainHTTP {
		return "", fmt.Errorf("%w: other machines reach %s without TLS, so API keys would travel unencrypted: listen on 127.0.0.1 behind a proxy on this machine, or use --plain-http if a proxy elsewhere speaks TLS", run.ErrUsage, host)
	}
	return net.JoinHostPort(host, port), nil
}
