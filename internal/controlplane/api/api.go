// Package api serves the public API of the control plane over HTTP: /v1 as
// api/openapi.yaml describes it, its documentation, health and readiness. A
// handler decodes, calls the service once, and encodes.
//
// A request passes through: request id and log line, route, key, rate limit, the
// contract (types, limits, unknown fields), handler, service. The contract is
// compiled from the document that is served, so the two cannot differ.
package api

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
	"wrenn.dev/api"
	"wrenn.dev/internal/controlplane/admission"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/dashboard"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/framing"
)

// Sandboxes are the operations on a sandbox as a whole. Another team's sandbox is NotFound.
type Sandboxes interface {
	CreateSandbox(context.Context, service.Caller, service.CreateSandbox) (*wrenn.Sandbox, error)
	ListSandboxes(context.Context, service.Caller, service.ListSandboxes) (page []wrenn.Sandbox, next string, err error)
	Sandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	DeleteSandbox(context.Context, service.Caller, wrenn.SandboxID) error
	BootSandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	PauseSandboxBy(context.Context, service.Caller, wrenn.SandboxID, wrenn.PauseOptions) (*wrenn.Sandbox, error)
	ResumeSandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	SetTimeout(context.Context, service.Caller, wrenn.SandboxID, time.Duration) (*wrenn.Sandbox, error)
	// Network returns the policy that the sandbox follows, with those of its team and template.
	Network(context.Context, service.Caller, wrenn.SandboxID) (wrenn.NetworkPolicy, error)
	SetNetwork(context.Context, service.Caller, wrenn.SandboxID, wrenn.NetworkPolicy) (*wrenn.Sandbox, error)
	ChangeSandbox(context.Context, service.Caller, wrenn.SandboxID, service.ChangeSandbox) (*wrenn.Sandbox, error)
	SetMetadata(context.Context, service.Caller, wrenn.SandboxID, map[string]string) (*wrenn.Sandbox, error)
	EgressLog(ctx context.Context, c service.Caller, id wrenn.SandboxID, after uint64, wait time.Duration) (wrenn.EgressLog, error)
	ExplainEgress(ctx context.Context, c service.Caller, id wrenn.SandboxID, to string, port uint16) (wrenn.EgressExplanation, error)
	SandboxMetrics(ctx context.Context, c service.Caller, id wrenn.SandboxID, from, to time.Time) ([]wrenn.MetricsSample, error)
	// WatchSandboxes calls send with the caller's sandboxes that live, then with those
	// that change, and at least every 15 s, until ctx ends or send fails.
	WatchSandboxes(ctx context.Context, c service.Caller, send func(service.Changes) error) error
	// Logs reads the console; the reader returns io.EOF at the end of the console, never at a broken connection.
	Logs(ctx context.Context, c service.Caller, id wrenn.SandboxID, query wrenn.ConsoleQuery) (io.ReadCloser, error)
}

// Snapshots are copies and checkpoints of sandboxes.
type Snapshots interface {
	ForkSandbox(context.Context, service.Caller, wrenn.SandboxID, service.ForkSandbox) (*service.Forked, error)
	CreateCheckpoint(ctx context.Context, c service.Caller, id wrenn.SandboxID, name string) (*wrenn.Checkpoint, error)
	Checkpoints(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Checkpoints, error)
	RestoreCheckpoint(context.Context, service.Caller, wrenn.SandboxID, wrenn.CheckpointID) (*wrenn.Sandbox, error)
	DeleteCheckpoint(context.Context, service.Caller, wrenn.SandboxID, wrenn.CheckpointID) error
}

// Commands run programs in sandboxes. A stream ends with the context that it was started with.
type Commands interface {
	Exec(context.Context, service.Caller, wrenn.SandboxID, wrenn.ExecCommand) (*wrenn.ExecResult, error)
	// CheckExec returns the error that StartExec would return for the sandbox as it is now.
	CheckExec(context.Context, service.Caller, wrenn.SandboxID) error
	// AwaitRunning waits until a paused sandbox runs; FailedPrecondition if it is not resumed by its use, or has ended.
	AwaitRunning(context.Context, service.Caller, wrenn.SandboxID) error
	StartExec(context.Context, service.Caller, wrenn.SandboxID, wrenn.ExecStart) (service.ExecStream, error)
	AttachExec(context.Context, service.Caller, wrenn.SandboxID, wrenn.ExecAttach) (service.ExecStream, error)
	Processes(context.Context, service.Caller, wrenn.SandboxID) ([]wrenn.ProcessInfo, error)
	// SignalProcess is NotFound for a process that the API has not started, or that has ended.
	SignalProcess(ctx context.Context, c service.Caller, id wrenn.SandboxID, pid int, signal wrenn.Signal) error
}

// Files read and write files. WriteFile changes the file as a whole or not at
// all. The reader of ReadFile returns io.EOF at the end of the file, never at a
// broken connection.
type Files interface {
	WriteFile(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string, content io.Reader) error
	ReadFile(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string) (io.ReadCloser, error)

	StatFile(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string) (wrenn.FileEntry, error)
	ListFiles(context.Context, service.Caller, wrenn.SandboxID, service.ListFiles) (page []wrenn.FileEntry, next string, err error)
	// MakeDirectory is AlreadyExists for a directory that exists.
	MakeDirectory(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string) (wrenn.FileEntry, error)
	MoveFile(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, from, to string) (wrenn.FileEntry, error)
	RemoveFile(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string) error
	// WatchFiles watches a directory until ctx ends. The caller closes the watch.
	WatchFiles(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string, recursive bool) (service.FileWatch, error)
}

// Templates are what sandboxes start from. Another team's template is NotFound.
type Templates interface {
	BuildTemplate(context.Context, service.Caller, service.BuildTemplate) (*wrenn.Build, error)
	ListTemplates(context.Context, service.Caller) ([]wrenn.Template, error)
	Template(ctx context.Context, c service.Caller, template string) (*wrenn.Template, error)
	Build(ctx context.Context, c service.Caller, template string, id wrenn.BuildID, from int64) (*wrenn.Build, service.BuildLog, error)
	DeleteTemplate(ctx context.Context, c service.Caller, template string) error
	HasBuildFiles(ctx context.Context, c service.Caller, hash string) (bool, error)
	// PutBuildFiles stores nothing when content ends with an error other than io.EOF.
	PutBuildFiles(ctx context.Context, c service.Caller, hash string, content io.Reader) error
}

// Volumes are directories that sandboxes mount, by their names or ids. Another team's
// volume is NotFound.
type Volumes interface {
	CreateVolume(context.Context, service.Caller, service.CreateVolume) (*wrenn.Volume, error)
	ListVolumes(context.Context, service.Caller) ([]wrenn.Volume, error)
	Volume(ctx context.Context, c service.Caller, name string) (*wrenn.Volume, error)
	DeleteVolume(ctx context.Context, c service.Caller, name string) error

	SetSecret(context.Context, service.Caller, service.NewSecret) (secret *wrenn.Secret, created bool, err error)
	ListSecrets(ctx context.Context, c service.Caller, after string, limit int) ([]wrenn.Secret, error)
	Secret(ctx context.Context, c service.Caller, name string) (*wrenn.Secret, error)
	DeleteSecret(ctx context.Context, c service.Caller, name string) error
}

// Webhooks are URLs of the caller's team to which events are sent. Another team's is NotFound.
type Webhooks interface {
	CreateWebhook(context.Context, service.Caller, service.NewWebhook) (made *wrenn.Webhook, secret string, err error)
	ListWebhooks(context.Context, service.Caller) ([]wrenn.Webhook, error)
	Webhook(context.Context, service.Caller, wrenn.WebhookID) (*wrenn.Webhook, error)
	UpdateWebhook(context.Context, service.Caller, wrenn.WebhookID, service.ChangeWebhook) (*wrenn.Webhook, error)
	DeleteWebhook(context.Context, service.Caller, wrenn.WebhookID) error
	// TestWebhook returns nil also when the receiver did not accept the event.
	TestWebhook(context.Context, service.Caller, wrenn.WebhookID) (*wrenn.WebhookDelivery, error)
	WebhookDeliveries(ctx context.Context, c service.Caller, id wrenn.WebhookID, limit int) ([]wrenn.WebhookDelivery, error)
}

// Networks are the network policies of the caller's team and of its templates.
type Networks interface {
	TeamNetwork(context.Context, service.Caller) (wrenn.NetworkPolicy, error)
	SetTeamNetwork(context.Context, service.Caller, wrenn.NetworkPolicy) error
	TemplateNetwork(ctx context.Context, c service.Caller, template string) (wrenn.NetworkPolicy, error)
	SetTemplateNetwork(ctx context.Context, c service.Caller, template string, p wrenn.NetworkPolicy) error
}

// Hosts are the machines that run sandboxes. NotFound for a host that no row has.
type Hosts interface {
	ListHosts(context.Context, service.Caller) ([]service.HostState, error)
	Host(context.Context, service.Caller, wrenn.HostID) (*service.HostState, error)
	CordonHost(context.Context, service.Caller, wrenn.HostID) (*service.HostState, error)
	UncordonHost(context.Context, service.Caller, wrenn.HostID) (*service.HostState, error)
	DrainHost(context.Context, service.Caller, wrenn.HostID) (*service.HostState, error)
	RemoveHost(context.Context, service.Caller, wrenn.HostID) (*service.HostState, error)
	LoseHost(context.Context, service.Caller, wrenn.HostID) (*service.HostState, error)
	ExplainPlacement(context.Context, service.Caller, wrenn.SandboxID) (*service.Placement, error)
	CreateHostToken(context.Context, service.Caller, service.NewHostToken) (*service.HostToken, error)
	// JoinHost and RenewHost prove by their arguments who calls.
	JoinHost(context.Context, service.JoinHost) (*service.HostCertificate, error)
	RenewHost(context.Context, service.RenewHost) (*service.HostCertificate, error)
}

// Ports are where programs in sandboxes listen.
type Ports interface {
	// ConnectPort connects to a TCP port; wrenn.ErrPortClosed when no program
	// listens. The caller closes the connection.
	ConnectPort(ctx context.Context, c service.Caller, id wrenn.SandboxID, port uint16) (net.Conn, error)
	// Ingress returns who reaches the ports of a sandbox of any team, and how;
	// NotFound when it has ended.
	Ingress(ctx context.Context, id wrenn.SandboxID) (wrenn.Ingress, error)
	// TrafficToken returns the token that clients of a private sandbox's ports must have.
	TrafficToken(ctx context.Context, id wrenn.SandboxID) (string, error)
}

// Keys are the API keys of a team.
type Keys interface {
	CreateKey(ctx context.Context, c service.Caller, want service.NewKey) (key service.Key, secret string, err error)
	ListKeys(context.Context, service.Caller) ([]service.Key, error)
	Record(service.AuditEntry)
	AuditLog(context.Context, service.Caller, service.ListAudit) (entries []service.AuditEntry, next string, err error)
	RevokeKey(ctx context.Context, c service.Caller, id string) error
}

// Accounts are what a team has used, and what it may use.
type Accounts interface {
	Usage(context.Context, service.Caller, service.UsageQuery) (*service.Usage, error)
	Limits(context.Context, service.Caller) ([]service.TeamLimit, error)
}

// Service is the control plane behind the API. An error whose message a user may
// see is a *wrenn.Error.
type Service interface {
	Sandboxes
	Snapshots
	Commands
	Files
	Templates
	Volumes
	VolumeFiles
	Ports
	Networks
	Webhooks
	Hosts
	Keys
	Accounts
	// Authenticate returns the caller with that secret: Unauthenticated when it is unknown.
	Authenticate(ctx context.Context, secret string) (service.Caller, error)
	// OpenSession signs a browser in as the caller.
	OpenSession(context.Context, service.Caller) (service.OpenedSession, error)
	// AuthenticateSession returns the caller that has signed in: Unauthenticated when it has not, or not any more.
	AuthenticateSession(ctx context.Context, cookie, proof string) (service.Caller, error)
	// EndSession signs a browser out. Twice is allowed.
	EndSession(ctx context.Context, cookie, proof string) error
	// Identify returns who the caller is.
	Identify(context.Context, service.Caller) (service.Identity, error)
	// Ready returns nil when requests can be served.
	Ready(context.Context) error
}

var _ Service = (*service.Service)(nil)

// Config is the configuration of a Server.
type Config struct {
	Service Service
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Traces  trace.TracerProvider // of the spans of requests; nil makes none
	Domain  string               // below which ports of sandboxes are served, as in URLs; "" is none

	// Admission lets requests in; default: one with its defaults.
	Admission     *admission.Door
	ShutdownGrace time.Duration // for requests in progress when the server stops; default 30 s
}

// maxStreams bounds the requests at a time on one connection of HTTP/2: clients
// have commands and watches that last for hours on one, and wait beyond the bound.
const maxStreams = 1000

// times are the time limits of connections.
type times struct {
	header     time.Duration // for the request's header
	request    time.Duration // for a body that is not an upload
	idle       time.Duration // without a byte of an upload or a download
	keepAlive  time.Duration // between two requests
	call       time.Duration // of a call of the service that has no own limit
	firstFrame time.Duration // from the upgrade to the client's first frame
	ping       time.Duration // between two pings of a stream
	slowClient time.Duration // until a client reads a message or answers a ping
	closing    time.Duration // from the end of a stream to that of its connection
	comment    time.Duration // between two comments of a stream of events
}

func defaultTimes() times {
	return times{
		header: 10 * time.Second, request: time.Minute, idle: time.Minute, keepAlive: 2 * time.Minute, call: 10 * time.Minute,
		firstFrame: 10 * time.Second, ping: 30 * time.Second, slowClient: 5 * time.Minute, closing: 5 * time.Second,
		comment: 15 * time.Second,
	}
}

// Server serves the public API.
type Server struct {
	service   Service
	log       *slog.Logger
	domain    string
	contract  *checked
	admission *admission.Door
	metrics   *metrics
	traces    trace.TracerProvider // nil makes no spans
	times     times
	grace     time.Duration
	front     func(http.Handler) http.Handler

	streams  sync.WaitGroup
	stopping context.Context // done when streams must end
	stop     context.CancelFunc
}

// New returns a server. It fails when the embedded contract is invalid, or the
// metrics are registered already.
func New(cfg Config) (*Server, error) {
	contract, err := embedded()
	if err != nil {
		return nil, err
	}
	metrics, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	s := &Server{
		service: cfg.Service, log: cfg.Log, domain: cfg.Domain, contract: contract, metrics: metrics, traces: cfg.Traces, times: defaultTimes(),
		admission: cmp.Or(cfg.Admission, admission.New(admission.Config{Authenticate: cfg.Service.Authenticate, AuthenticateSession: cfg.Service.AuthenticateSession})),
		grace:     cmp.Or(cfg.ShutdownGrace, 30*time.Second),
		front:     func(api http.Handler) http.Handler { return api },
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// SetFront has front return the handler that stands before the API on its
// listener. Call it before Run.
func (s *Server) SetFront(front func(api http.Handler) http.Handler) { s.front = front }

// Run serves on all listeners until ctx ends, then lets requests in progress end
// within the grace and tells streams to reconnect. It closes the listeners.
func (s *Server) Run(ctx context.Context, all ...net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC to a sandbox has no other form
	server := &http.Server{
		Handler: s.front(s.Handler()), Protocols: protocols,
		ReadHeaderTimeout: s.times.header,
		ReadTimeout:       s.times.request, // handlers that read for longer extend it, see recorder
		WriteTimeout:      s.times.request, // restarted at the first byte of the answer
		IdleTimeout:       s.times.keepAlive,
		MaxHeaderBytes:    64 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // errors of clients' connections
	}
	served := make(chan error, len(all))
	guarded := make([]net.Listener, len(all))
	for i, l := range all {
		guarded[i] = framing.Guard(server, l)
	}
	for _, l := range guarded {
		go func() { served <- server.Serve(l) }()
	}
	select {
	case err := <-served:
		s.stop()
		_ = server.Close() // the listener's error is the one that counts
		s.streams.Wait()
		return err
	case <-ctx.Done():
	}
	s.stop()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.grace)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.WarnContext(ctx, "aborted requests that took longer than the grace", slog.Duration("grace", s.grace))
		err = server.Close()
	}
	s.streams.Wait() // each ends within times.closing
	return err
}

// Handler returns the API without a listener.
func (s *Server) Handler() http.Handler {
	root := chi.NewRouter()
	root.Use(s.observe)
	root.NotFound(func(w http.ResponseWriter, r *http.Request) { s.refuse(w, r, errNoRoute) })
	root.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) { s.refuseMethod(root, w, r) })
	root.Group(func(r chi.Router) {
		r.Use(s.operation, s.authenticate, s.conform)
		strict := oapi.NewStrictHandlerWithOptions(&handlers{s: s}, nil, oapi.StrictHTTPServerOptions{
			RequestErrorHandlerFunc:  s.refuseRequest,
			ResponseErrorHandlerFunc: s.refuse,
		})
		oapi.HandlerWithOptions(strict, oapi.ChiServerOptions{BaseRouter: r, ErrorHandlerFunc: s.refuseRequest})
		r.Get("/v1/sandboxes/{id}/exec/stream", s.execStream)
		r.Get("/v1/sandboxes/{id}/connect/{port}", s.connectPort)
		r.Post("/v1/session", s.signIn)
		r.Delete("/v1/session", s.signOut)
		r.Get("/v1/events", s.events)
		r.Get("/v1/sandboxes/{id}/files/watch", s.watchFiles)
		r.Get("/openapi.yaml", document(api.V1))
		r.Get("/e2b.yaml", document(api.E2B))
		r.Get("/docs", s.docs)
	})
	root.Get("/docs/", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "../docs", http.StatusMovedPermanently)
	})
	root.Get("/docs/{file}", s.docsFile)
	root.Get("/", dashboard.Serve)
	root.Get("/ui/{file}", dashboard.Serve)
	return root
}
