// Package gateway passes requests from outside to ports of sandboxes: HTTP/1.1,
// HTTP/2, WebSocket and whatever else a request upgrades to. It stands in front
// of the API on the same listener and takes the requests that name a sandbox: by
// headers, by host name, or by path, see route.
//
// Nothing is buffered: a slow reader slows the program in the sandbox. A request
// for a sandbox that is in transition waits. One that is cut because the sandbox
// was paused or ended is broken off, never ended as if it were whole.
//
// Anybody who knows a sandbox's id reaches its ports, as E2B has it. envd alone,
// which may do everything in a sandbox, is open to holders of its access token only.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
	"wrenn.dev/internal/accesstoken"
	"wrenn.dev/internal/sessioncookie"
	"wrenn.dev/internal/tracing"
)

// Sandboxes are what the gateway reaches.
type Sandboxes interface {
	// DialPort connects to a port of a sandbox, of any team. It waits while the
	// sandbox is in transition and resumes one that may be resumed by its use.
	// NotFound and FailedPrecondition say that it does not run,
	// wrenn.ErrPortClosed that no program listens.
	DialPort(ctx context.Context, id wrenn.SandboxID, port uint16) (net.Conn, error)
	// Ingress returns who reaches the ports of a sandbox but envd's, and how. It
	// never changes. NotFound when there is no such sandbox.
	Ingress(ctx context.Context, id wrenn.SandboxID) (wrenn.Ingress, error)
	// TrafficToken returns the token that clients of a private sandbox must have.
	TrafficToken(ctx context.Context, id wrenn.SandboxID) (string, error)
	// Runs reports whether the sandbox runs, by its row.
	Runs(ctx context.Context, id wrenn.SandboxID) bool
	// Used records that the sandbox is used now.
	Used(id wrenn.SandboxID)
	// AccessToken returns the token that envd's callers must have.
	AccessToken(ctx context.Context, id wrenn.SandboxID) (string, error)
	// Tokens returns the access tokens of all sandboxes that have not ended. The
	// caller must not change it.
	Tokens(ctx context.Context) (map[wrenn.SandboxID]string, error)
}

// Config is what a Gateway needs; all fields.
type Config struct {
	Sandboxes Sandboxes
	Log       *slog.Logger
	Metrics   prometheus.Registerer
	Traces    trace.TracerProvider // of the spans of requests; nil makes none
}

// Gateway passes requests on to sandboxes.
type Gateway struct {
	sandboxes Sandboxes
	log       *slog.Logger
	metrics   *metrics
	proxy     *httputil.ReverseProxy
	dialer    *dialer
	idle      idleConns
	misses    *missing
	signers   *signers
	traces    trace.TracerProvider
}

// New returns a gateway. It fails when the metrics are registered already.
func New(cfg Config) (*Gateway, error) {
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	g := &Gateway{sandboxes: cfg.Sandboxes, log: cfg.Log, metrics: m, misses: newMissing(), signers: &signers{sandboxes: cfg.Sandboxes}, traces: cfg.Traces}
	g.dialer = &dialer{sandboxes: cfg.Sandboxes, reached: g.misses.reached}
	g.proxy = &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     newTransports(g.dialer),
		FlushInterval: -1, // each piece at once; never an empty one
		BufferPool:    &bodyBuffers,
		ModifyResponse: func(resp *http.Response) error {
			targetOf(resp.Request.Context()).isolate(resp.Header)
			g.sandboxes.Used(targetOf(resp.Request.Context()).id) // not before: anyone can make up ids
			return nil
		},
		ErrorHandler: g.failed,
		ErrorLog:     slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug), // of clients and programs that leave
	}
	return g, nil
}

type targetKey struct{}

func targetOf(ctx context.Context) target {
	to, _ := ctx.Value(targetKey{}).(target)
	return to
}

// InFrontOf returns a handler for all requests of a listener: api gets those that
// name no sandbox.
func (g *Gateway) InFrontOf(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, ok, err := route(r)
		switch {
		case ok:
		case isSigned(r):
			defer g.metrics.begin()()
			g.serveSigned(w, r)
			return
		default:
			api.ServeHTTP(w, r)
			return
		}
		defer g.metrics.begin()()
		g.serve(w, r, to, err)
	})
}

// serve passes a request on to its target, if err, which is of its route, is nil.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request, to target, err error) {
	if err != nil {
		g.answer(w, r, http.StatusBadRequest, to, said(err))
		return
	}
	ctx, span := tracing.Request(r, g.traces)
	span.SetName("port")
	span.SetAttributes(attribute.String("wrenn.sandbox", string(to.id)), attribute.Int("wrenn.port", int(to.port)))
	defer span.End()
	r = r.WithContext(ctx)
	if g.misses.refuses(r.RemoteAddr, to.id) {
		g.answer(w, r, http.StatusTooManyRequests, to, tooManyMisses)
		return
	}
	if status, message := g.refuse(r, &to); status != 0 {
		g.answer(w, r, status, to, message)
		return
	}
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex()           // HTTP/2 always is
	_ = control.SetReadDeadline(time.Time{}) // the listener's are the API's
	_ = control.SetWriteDeadline(time.Time{})
	r = r.WithContext(context.WithValue(r.Context(), targetKey{}, to))
	defer g.resetIfCut(w, r, to)
	switch {
	case upgrades(r):
		g.upgrade(w, r, to)
	case simple(r):
		g.exchange(w, r, to)
	default:
		g.proxy.ServeHTTP(w, r)
	}
}

// refuse returns the status and the message for a request that may not pass; 0 when
// it may. It finds the ingress of the target.
func (g *Gateway) refuse(r *http.Request, to *target) (status int, message string) {
	if r.Method == http.MethodConnect {
		return http.StatusMethodNotAllowed, "CONNECT is not served: ask for the port by an ordinary request"
	}
	if to.port != EnvdPort {
		return g.refuseTraffic(r, to)
	}
	inner := r
	if to.prefix != "" {
		inner = withoutPrefix(r, to.prefix)
	}
	if !public(inner.URL.Path) {
		return http.StatusNotFound, "not found"
	}
	if r.Method == http.MethodOptions { // envd answers what pages may send; it has no credentials
		return 0, ""
	}
	token, err := g.sandboxes.AccessToken(r.Context(), to.id)
	if err != nil {
		return http.StatusServiceUnavailable, said(err)
	}
	if reason := accesstoken.Refuse(inner, token, time.Now()); reason != "" {
		return http.StatusUnauthorized, reason
	}
	if inner.URL.Path == "/files" {
		// envd checks as well. The signature was made without the user that rewrite names.
		r.Header.Set(accesstoken.Header, token)
	}
	return 0, ""
}

// refuseTraffic is refuse for a program's port. A private sandbox is not woken by a
// request without its token, either.
func (g *Gateway) refuseTraffic(r *http.Request, to *target) (status int, message string) {
	ingress, err := g.sandboxes.Ingress(r.Context(), to.id)
	if err == nil && ingress.Private {
		var token string
		token, err = g.sandboxes.TrafficToken(r.Context(), to.id)
		if err == nil && !accesstoken.Equal(r.Header.Get(accesstoken.TrafficHeader), token) {
			return http.StatusForbidden, "the ports of this sandbox are private: send its traffic access token as e2b-traffic-access-token"
		}
	}
	switch {
	case wrenn.CodeOf(err) == wrenn.NotFound:
		g.misses.Count(r.RemoteAddr)
		return http.StatusBadGateway, notFound
	case err != nil:
		return http.StatusServiceUnavailable, said(err)
	}
	to.ingress = ingress
	return 0, ""
}

// publicPaths are those of envd that clients call. What else it answers is the
// host's alone to call, such as /init and /freeze.
var publicPaths = []string{"/health", "/metrics", "/envs", "/files"}

func public(name string) bool {
	if path.Clean(name) != name { // envd would redirect to what it means
		return false
	}
	return slices.Contains(publicPaths, name) ||
		strings.HasPrefix(name, "/process.Process/") || strings.HasPrefix(name, "/filesystem.Filesystem/")
}

// isolate keeps a page that a sandbox serves under the API's own origin from
// acting as that origin: it gets one of no use to anybody. Nor may it change what the
// browser keeps of that origin: who has signed in to the dashboard, or its storage.
func (to target) isolate(h http.Header) {
	if !to.shared {
		return
	}
	h.Set("Content-Security-Policy", "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads")
	h.Del("Clear-Site-Data")
	sessioncookie.Refuse(h)
}

// failed answers for a sandbox that did not.
func (g *Gateway) failed(w http.ResponseWriter, r *http.Request, err error) {
	to := targetOf(r.Context())
	if r.Context().Err() != nil { // the client has left
		panic(http.ErrAbortHandler)
	}
	if refusal, ok := errors.AsType[*dialError](err); ok {
		if wrenn.CodeOf(refusal.err) == wrenn.NotFound {
			g.misses.Count(r.RemoteAddr)
		}
		status, message := refusal.answer()
		g.answer(w, r, status, to, message)
		return
	}
	if !g.sandboxes.Runs(r.Context(), to.id) { // cut, as a client of a program that dies sees it
		panic(http.ErrAbortHandler)
	}
	g.log.LogAttrs(r.Context(), slog.LevelDebug, "a program in a sandbox did not answer", slog.String("sandbox", string(to.id)), slog.Any("err", err))
	g.answer(w, r, http.StatusBadGateway, to, "The program in the sandbox closed the connection before it answered")
}
