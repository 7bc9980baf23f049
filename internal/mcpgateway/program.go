package mcpgateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/run"
)

const (
	tokenVariable = "GATEWAY_ACCESS_TOKEN"
	serveCommand  = "serve" // of the process that stays
	// startTimeout is less than the minute that E2B's SDKs wait, so that they show why.
	startTimeout = 55 * time.Second
	pullTimeout  = 10 * time.Minute
	stopTimeout  = 10 * time.Second
)

// Places are where the program keeps its files, and where it serves.
type Places struct {
	Token        string // the file with the token, which E2B's SDKs read as root
	Log          string // of the gateway and of its servers
	Repositories string // the directory of cloned servers
	Address      string // E2B's SDKs know the port
}

// DefaultPlaces are those of a sandbox.
var DefaultPlaces = Places{
	Token: "/etc/mcp-gateway/.token", Log: "/var/log/mcp-gateway.log", Repositories: "/opt/mcp-gateway", Address: ":50005",
}

// Main is the program:
//
//	mcp-gateway --config JSON   starts the gateway, and returns when it serves
//	mcp-gateway pull NAME…      starts servers of the catalog once, so that they are installed
//
// The token is in GATEWAY_ACCESS_TOKEN.
func (p Places) Main(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == serveCommand {
		return p.serve(ctx, os.Stdin, os.NewFile(reportFile, "report"))
	}
	if len(args) > 0 && args[0] == "pull" {
		return p.pull(ctx, args[1:])
	}
	flags := flag.NewFlagSet("mcp-gateway", flag.ContinueOnError)
	config := flags.String("config", "", "a JSON object: names of servers and their settings")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", run.ErrUsage, err)
	case *config == "" || flags.NArg() > 0:
		return fmt.Errorf("%w: mcp-gateway --config JSON, or mcp-gateway pull NAME…", run.ErrUsage)
	}
	if _, err := parseConfig([]byte(*config), p.Repositories); err != nil {
		return err
	}
	token := os.Getenv(tokenVariable)
	if token == "" {
		return fmt.Errorf("%s is not set: it is the token of those who use the gateway", tokenVariable)
	}
	return p.start(ctx, settings{Token: token, Servers: json.RawMessage(*config)})
}

// pull starts the servers once.
func (p Places) pull(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	config := map[string]entry{}
	for _, name := range names {
		config[name] = entry{Paths: []string{"/"}} // of those that need any
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	programs, err := parseConfig(text, p.Repositories)
	if err != nil {
		return err
	}
	g, err := open(ctx, programs, os.Stderr, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	g.close()
	return nil
}

// settings are what the process that stays reads: others can see its arguments.
type settings struct {
	Token   string
	Servers json.RawMessage
}

// reportFile is the descriptor at which the process that stays reports: a line that is
// started, or why it cannot serve.
const (
	reportFile = 3
	started    = "started"
)

// start starts the process that stays, and waits until it serves.
func (p Places) start(ctx context.Context, s settings) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	input, err := json.Marshal(s)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	report, reported, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	defer reported.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, serveCommand) //nolint:gosec // this program
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = strings.NewReader(string(input)), log, log, []*os.File{reported}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	reported.Close() // its end must be seen
	line, err := bufio.NewReader(io.LimitReader(report, 64<<10)).ReadString('\n')
	switch line = strings.TrimSuffix(line, "\n"); {
	case line == started:
		return cmd.Process.Release()
	case line != "":
		return errors.New(line)
	default:
		return fmt.Errorf("the gateway ended: see %s: %w", p.Log, errors.Join(err, cmd.Wait()))
	}
}

// serve starts the servers and serves them until ctx ends. It reports once.
func (p Places) serve(ctx context.Context, input io.Reader, report io.WriteCloser) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	l, g, token, err := p.prepare(ctx, input, log)
	message := started
	if err != nil {
		message = plain.Line(err.Error())
	}
	_, _ = fmt.Fprintln(report, message) // if it has no reader it is not needed
	_ = report.Close()
	if err != nil {
		return err
	}
	defer g.close()
	server := &http.Server{Handler: g.handler(token), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
	})
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// prepare listens, starts the servers, and writes the token.
func (p Places) prepare(ctx context.Context, input io.Reader, log *slog.Logger) (l net.Listener, g *gateway, token string, err error) {
	var s settings
	if err := json.NewDecoder(io.LimitReader(input, 2*maxConfig)).Decode(&s); err != nil {
		return nil, nil, "", err
	}
	programs, err := parseConfig(s.Servers, p.Repositories)
	if err != nil {
		return nil, nil, "", err
	}
	if l, err = new(net.ListenConfig).Listen(ctx, "tcp", p.Address); err != nil {
		return nil, nil, "", fmt.Errorf("%w: is a gateway running already?", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("the servers did not start within %v", startTimeout))
	defer cancel()
	if g, err = open(ctx, programs, os.Stderr, log); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, nil, "", errors.Join(err, l.Close())
	}
	if err := p.writeToken(s.Token); err != nil {
		g.close()
		return nil, nil, "", errors.Join(err, l.Close())
	}
	return l, g, s.Token, nil
}

func (p Places) writeToken(token string) error {
	if err := os.MkdirAll(filepath.Dir(p.Token), 0o700); err != nil {
		return err
	}
	return os.WriteFile(p.Token, []byte(token), 0o600)
}
