package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"

	"wrenn.dev"
	"wrenn.dev/client/settings"
	"wrenn.dev/internal/acme"
	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/cli/up"
	"wrenn.dev/internal/config"
	"wrenn.dev/internal/parts"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/run"
	"wrenn.dev/internal/tracing"
)

type upCommand struct {
	Install   bool            `xor:"service" help:"Make this a service of systemd, with the settings in /etc/wrenn/up.toml, start it and keep its key. Twice is allowed."`
	Uninstall bool            `xor:"service" help:"Stop and remove the service. Sandboxes that run are paused; the data stays."`
	Settings  kong.ConfigFlag `placeholder:"FILE" help:"A TOML file with these flags by their names; the command line wins."`

	State        string `default:"/var/lib/wrenn" type:"path" help:"Directory for all data: database, images, sandboxes, logs."`
	RunDir       string `name:"run" default:"/run/wrenn" type:"path" help:"Directory for sockets; its path must be short."`
	Images       string `type:"path" placeholder:"DIR" help:"Directory for guest images; default: images in --state."`
	Listen       string `default:"127.0.0.1:8080" help:"Address of the API."`
	PlainHTTP    bool   `name:"plain-http" help:"Allow --listen to be an address that other machines reach, without TLS: for a proxy in front that speaks TLS."`
	Domain       string `placeholder:"NAME[:PORT]" help:"Also serve with TLS: the API at api.NAME, ports of sandboxes at PORT-ID.NAME. sandbox.localhost:8443 needs no DNS."`
	DomainListen string `placeholder:"ADDRESS" help:"Address to serve the domain at; default: the port of --domain, on loopback only for names below localhost."`
	TLSCert      string `name:"tls-cert" type:"path" placeholder:"FILE" help:"A certificate for *.NAME, in PEM, which is read again when it changes; default: one signed by this machine's own authority, see wrenn cert."`
	TLSKey       string `name:"tls-key" type:"path" placeholder:"FILE" help:"The private key of --tls-cert, in PEM."`
	ACME         string `name:"acme" type:"path" placeholder:"FILE" help:"Get the certificate for *.NAME by ACME, such as from Let's Encrypt: a TOML file with the keys of [domain.acme], see docs/ports.md."`
	Metrics      string `placeholder:"ADDRESS" help:"Address to serve Prometheus /metrics of the control plane at, such as 127.0.0.1:9464; default: none."`
	AgentMetrics string `placeholder:"ADDRESS" help:"The same for the host agent, such as 127.0.0.1:49981; default: none."`
	Traces       string `placeholder:"URL" help:"Trace all requests, and send the traces by OTLP over HTTP to a collector, such as http://127.0.0.1:4318; default: none."`
	DatabaseURL  string `name:"database-url" env:"DATABASE_URL" placeholder:"URL" help:"An existing PostgreSQL; default: a private one in --state."`
	OnExit       string `enum:"keep,destroy" default:"keep" help:"What happens to the sandboxes when up stops: ${enum}. With keep they keep running, and the next up finds them."`
	Driver       string `enum:"auto,firecracker,qemu-kvm,qemu" default:"auto" help:"What runs the machines: ${enum}. qemu is software emulation; auto is the first that works."`
	Qemu         string `placeholder:"PATH" help:"QEMU; default: qemu-system-x86_64 in PATH."`
	Firecracker  string `placeholder:"PATH" help:"Firecracker; default: firecracker in PATH."`
	Jailer       string `placeholder:"PATH" help:"Firecracker's jailer; default: jailer in PATH."`
	NoDownload   bool   `help:"Do not download Firecracker: where KVM works and it is not installed, a pinned release is downloaded into --state."`
	Unjailed     bool   `help:"Allow Firecracker without its jailer: machines then run as root."`
	Kernel       string `type:"path" placeholder:"FILE" help:"Kernel of the guests, an uncompressed ELF file; default: the distribution's."`
	Initrd       string `type:"path" placeholder:"FILE" help:"The initramfs of --kernel."`
	HostAgent    string `type:"path" placeholder:"PATH" help:"The host agent; default: the one that is installed with this program."`
	NetRange     string `placeholder:"CIDR" help:"Private address range for the networks of sandboxes; default: 10.191.0.0/16."`
	NetPrefix    string `placeholder:"NAME" help:"Prefix of the names of network namespaces and links; default: wrenn."`
	Verbose      bool   `short:"v" help:"Also print the control plane's log."`

	WebhookAllow []netip.Prefix `name:"webhook-allow" placeholder:"CIDR" help:"Send events also to webhooks at these addresses, which need not be public, and by http; may be repeated. Default: by https to public addresses."`

	Command []string `arg:"" optional:"" passthrough:"partial" help:"Run this command with WRENN_API_URL and WRENN_API_KEY set. When it ends, destroy the sandboxes that it created, stop, and exit with its exit code. Default: serve until Ctrl-C."`
}

// Run serves until it is interrupted, or the command ends.
func (c *upCommand) Run(ctx context.Context, s *session) error {
	if os.Geteuid() != 0 {
		return wrenn.Errorf(wrenn.PermissionDenied, "up needs root, for network namespaces and mounts: sudo wrenn up")
	}
	switch {
	case c.Install:
		return c.install(ctx, s)
	case c.Uninstall:
		return c.uninstall(ctx, s)
	}
	program, err := c.agent()
	if err != nil {
		return err
	}
	domain, err := c.domain()
	if err != nil {
		return err
	}
	authority, err := c.acme()
	if err != nil {
		return err
	}
	if err := (tracing.Export{Endpoint: c.Traces}).CheckEndpoint(); err != nil {
		return wrenn.Errorf(wrenn.Invalid, "--traces: %v", err)
	}
	run.SurviveBrokenPipes()
	ctx, lost := context.WithCancel(ctx)
	defer lost()
	if !signal.Ignored(syscall.SIGHUP) { // nohup(1) ignores it
		var stopNotify context.CancelFunc
		ctx, stopNotify = signal.NotifyContext(ctx, syscall.SIGHUP)
		defer stopNotify()
	}
	cfg := up.Config{
		StateDir: c.State, RunDir: c.RunDir, Listen: c.Listen, PlainHTTP: c.PlainHTTP, Metrics: c.Metrics, AgentMetrics: c.AgentMetrics, Traces: tracing.Export{Endpoint: c.Traces}, WebhookAllow: c.WebhookAllow,
		Domain: domain, DomainListen: c.DomainListen, Certificate: certs.Files{Certificate: c.TLSCert, Key: c.TLSKey}, ACME: authority, DatabaseURL: c.DatabaseURL,
		Team: "default", Destroy: c.OnExit == "destroy",
		Agent: up.AgentConfig{
			Program: program, Images: c.Images, Driver: c.Driver, QEMU: c.Qemu, Firecracker: c.Firecracker, Jailer: c.Jailer, Unjailed: c.Unjailed, NoDownload: c.NoDownload,
			Kernel: c.Kernel, Initrd: c.Initrd, Range: c.NetRange, Prefix: c.NetPrefix,
		},
		Say: func(line string) {
			if _, err := fmt.Fprintln(s.Err, s.paint(s.Err, faint, plain.Line(line))); readerGone(err) {
				lost() // stop as after Ctrl-C
			}
		},
	}
	if c.Verbose {
		cfg.Log = s.Err
	}
	command := afterDashes(c.Command)
	if len(command) == 0 {
		return up.Run(ctx, cfg, func(ctx context.Context, r *up.Running) error { return c.ready(ctx, s, r) })
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var ended error = exitCode(codeSignal + int(syscall.SIGINT)) // when the command was not started
	err = up.Run(ctx, cfg, func(ctx context.Context, r *up.Running) error {
		defer stop()
		ended = s.accompany(ctx, r, command)
		return nil
	})
	return cmp.Or(err, ended)
}

// domain reads the flags of the domain.
func (c *upCommand) domain() (wrenn.Domain, error) {
	switch {
	case c.Domain == "" && (c.DomainListen != "" || c.TLSCert != "" || c.TLSKey != "" || c.ACME != ""):
		return wrenn.Domain{}, fmt.Errorf("%w: --domain-listen, --tls-cert, --tls-key and --acme need --domain", run.ErrUsage)
	case c.TLSCert != "" && c.ACME != "":
		return wrenn.Domain{}, fmt.Errorf("%w: give --tls-cert or --acme", run.ErrUsage)
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return wrenn.Domain{}, fmt.Errorf("%w: give both --tls-cert and --tls-key", run.ErrUsage)
	case c.Domain == "":
		return wrenn.Domain{}, nil
	}
	return wrenn.ParseDomain(c.Domain)
}

// acme reads the file of --acme; the zero value without one.
func (c *upCommand) acme() (acme.Config, error) {
	if c.ACME == "" {
		return acme.Config{}, nil
	}
	return config.Load[acme.Config](c.ACME, acme.Config{State: filepath.Join(c.State, "acme")}, os.Getenv)
}

// readerGone reports whether a write failed because the other end of the pipe or the terminal is closed.
func readerGone(err error) bool { return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EIO) }

// agent returns the path of the host agent.
func (c *upCommand) agent() (string, error) {
	if c.HostAgent != "" {
		return c.HostAgent, nil
	}
	path, err := parts.Find("host-agent")
	if err != nil {
		return "", fmt.Errorf("%w; or give its path by --host-agent", err)
	}
	return path, nil
}

// ready saves a key for the other commands and prints how to use the server.
func (c *upCommand) ready(ctx context.Context, s *session, r *up.Running) error {
	old, err := s.settings()
	if err != nil {
		return err
	}
	key, err := r.Key(ctx, old.Key, "wrenn up")
	if err != nil {
		return fmt.Errorf("make an API key: %w", err)
	}
	path, err := s.save(settings.File{URL: r.URL, Key: key, Contexts: withLocal(old.Contexts, settings.Server{URL: r.URL, Key: key})})
	if err != nil {
		return err
	}
	if socket := s.Environ("NOTIFY_SOCKET"); socket != "" { // a service, without a reader who wants to know how to use it
		fmt.Fprintf(s.Err, "Wrenn serves at %s; its API key is in %s\n", r.URL, path)
		return run.Notify(ctx, socket, "READY=1")
	}
	const hint = 8 // characters that identify a key
	result := struct {
		URL       string `json:"url"`
		Hint      string `json:"key_hint"`
		Config    string `json:"config"`
		Domain    string `json:"domain,omitempty"`
		Authority string `json:"authority,omitempty"` // that clients must trust
	}{URL: r.URL, Hint: key[:min(hint, len(key))], Config: path}
	if r.Domain != nil {
		result.Domain, result.Authority = r.Domain.String(), r.Domain.Authority
	}
	return s.print(result, func(w io.Writer) {
		fmt.Fprintf(w, `
Wrenn serves at %s (documentation: %s/docs)
The API key %s... is in %s

  CLI   wrenn sandbox exec $(wrenn sandbox create) -- uname -a
  curl  curl -H "X-API-Key: $(sed -n "s/^key = '\(.*\)'/\1/p" %s)" -X POST %s/v1/sandboxes
  Go    c, err := client.New(client.Config{URL: "%s", Key: os.Getenv("WRENN_API_KEY")})
  E2B   export E2B_API_URL=%s E2B_SANDBOX_URL=%s E2B_VOLUME_API_URL=%s E2B_API_KEY=$(sed -n "s/^key = '\(.*\)'/\1/p" %s)
%s
Ctrl-C stops it; sandboxes are %s (--on-exit)
`, s.paint(w, green, r.URL), r.URL, result.Hint, path, path, r.URL, r.URL, r.URL, r.URL, r.URL, path, domainHelp(ctx, r.Domain, path), map[string]string{"destroy": "destroyed then", "keep": "kept"}[c.OnExit])
	})
}
