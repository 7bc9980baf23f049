// Package guest is envd, the agent in a guest: it serves programs, files, the
// clock and the host's settings of the sandbox on one HTTP listener. It composes the
// packages below it.
package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev/internal/framing"
	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/auth"
	"wrenn.dev/internal/guest/clock"
	"wrenn.dev/internal/guest/filesystem"
	"wrenn.dev/internal/guest/freeze"
	"wrenn.dev/internal/guest/identity"
	"wrenn.dev/internal/guest/ports"
	"wrenn.dev/internal/guest/process"
	"wrenn.dev/internal/guest/settings"
	"wrenn.dev/proto/gen/envd/filesystem/filesystemconnect"
	"wrenn.dev/proto/gen/envd/process/processconnect"
)

// Version is the version of the E2B envd protocol that the agent speaks. The
// SDKs turn features on by it.
const Version = "0.6.13"

const (
	// maxMessage bounds one RPC message, compressed or not. StreamInput and /files carry more.
	maxMessage = 16 << 20
	// maxInit bounds the body of /init.
	maxInit = 1 << 20
	// headerTimeout bounds how long a request's header may take. Bodies and answers
	// have no limit of time: streams live for days.
	headerTimeout = 10 * time.Second
	// idleTimeout is longer than the 300 s for which Python's SDK keeps an idle
	// connection, so that the agent never closes it first.
	idleTimeout = 640 * time.Second
	// shutdownTimeout is how long calls have to finish when the agent is told to stop.
	shutdownTimeout = 2 * time.Second
)

// Config is what an Agent needs.
type Config struct {
	Accounts account.DB
	Machine  Machine      // needed
	Log      *slog.Logger // needed
	// DefaultUser is the user of requests that name none, until the host sets
	// another one; empty: root.
	DefaultUser string
	// Cgroups and Protect are process.Config's; the cgroups below Cgroups are frozen.
	Cgroups string
	Protect bool
	// RunDir and Root are identity.Config's.
	RunDir, Root string
}

// Machine is the kernel of a guest: Kernel, or a substitute of tests and of agents
// outside a guest.
type Machine interface {
	clock.Machine
	identity.Machine
	// StartDaemon starts what keeps the clock right, unless it runs, and returns when it is ready.
	StartDaemon(ctx context.Context) error
	// Sync writes the root file system's changes to its disk.
	Sync() error
	// MountNFS mounts the directory target, ADDRESS:/EXPORT, of an NFS server at path.
	// It makes path if it does not exist, and does nothing if target is mounted there.
	MountNFS(target, path string) error
	// GrowRoot grows the root file system to size bytes, once its disk is that large.
	GrowRoot(ctx context.Context, size int64) error
	// Trust has programs that start from now on trust certificates in PEM besides those
	// that they trust, in place of those of an earlier call, and returns the environment
	// variables that they need for that.
	Trust(certificates string) (env map[string]string, err error)
	// TrustInJava has each Java trust the certificates of Trust. It takes seconds.
	TrustInJava(ctx context.Context) error
}

// Agent is envd. Close it.
type Agent struct {
	log      *slog.Logger
	machine  Machine
	settings *settings.Settings
	clock    *clock.Clock
	identity *identity.Keeper
	process  *process.Service
	files    *filesystem.Service
	usage    *usage
	freezer  *freezer
	daemon   daemon
	conns    *connections
	user     string // the default user that /init goes back to
	handler  http.Handler
}

// New returns an agent that is ready to serve.
func New(cfg Config) *Agent {
	set := &settings.Settings{}
	set.Update(func(v *settings.Values) { v.User = cfg.DefaultUser })
	a := &Agent{
		log:      cfg.Log,
		machine:  cfg.Machine,
		settings: set,
		clock:    clock.New(cfg.Machine),
		identity: identity.New(identity.Config{Machine: cfg.Machine, Log: cfg.Log, RunDir: cfg.RunDir, Root: cfg.Root}),
		process: process.New(process.Config{
			Accounts: cfg.Accounts, Settings: set, Log: cfg.Log, Cgroups: cfg.Cgroups, Protect: cfg.Protect,
		}),
		files: filesystem.New(filesystem.Config{Accounts: cfg.Accounts, Settings: set, Log: cfg.Log}),
		usage: newUsage(),
		conns: newConnections(),
		user:  cfg.DefaultUser,
	}
	a.daemon = daemon{start: cfg.Machine.StartDaemon, log: cfg.Log, done: make(chan struct{})}
	a.freezer = newFreezer(freeze.New(cfg.Cgroups), a.process.Hold, cfg.Machine.Sync, cfg.Log)
	a.handler = cors(auth.Require(set, answerError, a.routes()))
	return a
}

// Handler returns the handler of all calls; see Serve for how a server should run it.
func (a *Agent) Handler() http.Handler { return a.handler }

// Close ends all programs and all watching of files. Call it once.
func (a *Agent) Close() {
	a.daemon.close()
	a.freezer.close()   // first: frozen programs would never end
	_ = a.files.Close() // never fails
	a.process.Close()
}

func (a *Agent) routes() http.Handler {
	// The wire is a memory copy: compression would only cost the guest's CPU.
	opts := []connect.HandlerOption{connect.WithReadMaxBytes(maxMessage), connect.WithCompressMinBytes(math.MaxInt)}
	mux := http.NewServeMux()
	mux.Handle(processconnect.NewProcessHandler(a.process, opts...))
	mux.Handle(filesystemconnect.NewFilesystemHandler(a.files, opts...))
	mux.Handle("/files", a.files.Files())
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /metrics", a.serveMetrics)
	mux.HandleFunc("GET /envs", a.serveEnvs)
	mux.HandleFunc("GET /settings", a.serveSettings)
	mux.Handle("GET /connect", ports.Handler(answerError))
	mux.HandleFunc("POST /init", a.serveInit)
	mux.HandleFunc("POST /freeze", a.serveFreeze)
	mux.HandleFunc("POST /thaw", a.serveThaw)
	mux.HandleFunc("POST /grow", a.serveGrow)
	mux.HandleFunc("POST /trust", a.serveTrust)
	return mux
}

// Serve answers on l, by HTTP/1.1 and unencrypted HTTP/2, until ctx ends; then it
// kills all programs and returns nil. It closes l and the agent.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           a.handler,
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ConnContext:       withConn,
		ConnState:         a.conns.track,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	guarded := framing.Guard(server, l)
	served := make(chan error, 1)
	go func() { served <- server.Serve(guarded) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	a.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		_ = server.Close() // the clients that are left do not read
	}
	if err == nil {
		err = <-served
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// cors lets pages of any origin call the agent: the token protects it, and no
// browser adds one by itself.
func cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Expose-Headers", "*")
		if r.Method != http.MethodOptions {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
		h.Set("Access-Control-Max-Age", "7200")
		// "*" does not cover Authorization, so the requested headers are allowed by name.
		if asked := r.Header.Values("Access-Control-Request-Headers"); len(asked) > 0 {
			h.Set("Access-Control-Allow-Headers", strings.Join(asked, ", "))
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

func answerJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails when the client has left
}

// answerError answers with an error in the form that the SDKs read.
func answerError(w http.ResponseWriter, status int, message string) {
	answerJSON(w, status, map[string]any{"code": status, "message": message})
}

func (a *Agent) serveEnvs(w http.ResponseWriter, _ *http.Request) {
	env := a.settings.Get().Env
	if env == nil {
		env = map[string]string{}
	}
	answerJSON(w, http.StatusOK, env)
}
