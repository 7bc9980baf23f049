// Package e2b serves the REST surface of E2B's control plane, so that E2B's SDKs
// and command line work with Wrenn as they are. It is a second door to the use
// cases of package service: what one door creates the other sees. The data plane,
// commands and files, is envd's, which clients reach through the gateway.
//
// Clients are strict: the success code of a route is exactly the documented one, a
// list is never null, and every error is {"code": STATUS, "message": TEXT}.
// docs/e2b.md says what is built and what differs.
package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"wrenn"
	"wrenn/internal/controlplane/service"
)

const (
	// maxBody bounds a request's body.
	maxBody = 1 << 20
	// retryAfter is what clients are told to wait when a part of the system is away.
	retryAfter = "2"
)

// Service is what the surface is of.
type Service interface {
	Authenticate(ctx context.Context, secret string) (service.Caller, error)
	AccessToken(ctx context.Context, id wrenn.SandboxID) (string, error)

	CreateSandbox(context.Context, service.Caller, service.CreateSandbox) (*wrenn.Sandbox, error)
	ListSandboxes(context.Context, service.Caller, service.ListSandboxes) (page []wrenn.Sandbox, next string, err error)
	Sandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	DeleteSandbox(context.Context, service.Caller, wrenn.SandboxID) error
	PauseSandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	ResumeSandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	SetTimeout(context.Context, service.Caller, wrenn.SandboxID, time.Duration) (*wrenn.Sandbox, error)
	ForkSandbox(context.Context, service.Caller, wrenn.SandboxID, service.ForkSandbox) (*service.Forked, error)

	ListTemplates(context.Context, service.Caller) ([]wrenn.Template, error)
	Template(ctx context.Context, c service.Caller, template string) (*wrenn.Template, error)
	DeleteTemplate(ctx context.Context, c service.Caller, template string) error
}

var _ Service = (*service.Service)(nil)

// Config is what a Server needs; all fields.
type Config struct {
	Service Service
	// Count counts a request with a key, and returns how long the client must wait
	// when there were too many.
	Count func(key string) (wait time.Duration)
	Log   *slog.Logger
}

// Server is the surface.
type Server struct {
	service Service
	count   func(string) time.Duration
	log     *slog.Logger
	routes  http.Handler
}

// New returns the surface.
func New(cfg Config) *Server {
	s := &Server{service: cfg.Service, count: cfg.Count, log: cfg.Log}
	s.routes = s.router()
	return s
}

// prefixes are the first parts of the paths that are E2B's.
var prefixes = []string{"/sandboxes", "/v2/", "/v3/", "/snapshots", "/templates", "/default-templates", "/teams", "/secrets", "/volumes", "/volumecontent/"}

// InFrontOf returns a handler that gives api the requests that are not for E2B's paths.
func (s *Server) InFrontOf(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, prefix := range prefixes {
			if rest, ok := strings.CutPrefix(r.URL.Path, prefix); ok && (rest == "" || rest[0] == '/' || strings.HasSuffix(prefix, "/")) {
				s.routes.ServeHTTP(w, r)
				return
			}
		}
		api.ServeHTTP(w, r)
	})
}

// errNotBuilt answers for what E2B has and Wrenn does not have yet.
var errNotBuilt = &failure{http.StatusNotImplemented, "Wrenn has not built this part of E2B's API yet; docs/e2b.md lists what works"}

func (s *Server) router() http.Handler {
	root := chi.NewRouter()
	root.Use(s.observe)
	root.NotFound(s.handle(func(*http.Request, service.Caller) (int, any, error) { return 0, nil, errNotBuilt }))
	root.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, &failure{http.StatusMethodNotAllowed, "method " + r.Method + " is not allowed here"})
	})
	root.Post("/sandboxes", s.handle(s.create(v1Timeout)))
	root.Post("/v2/sandboxes", s.handle(s.create(v2Timeout)))
	root.Get("/sandboxes", s.handle(s.listRunning))
	root.Get("/v2/sandboxes", s.list)
	root.Route("/sandboxes/{id}", func(r chi.Router) {
		r.Get("/", s.handle(s.get))
		r.Delete("/", s.handle(s.kill))
		r.Post("/timeout", s.handle(s.setTimeout))
		r.Post("/refreshes", s.handle(s.refresh))
		r.Post("/connect", s.handle(s.connect))
		r.Post("/resume", s.handle(s.resume))
		r.Post("/pause", s.handle(s.pause))
		r.Post("/fork", s.handle(s.fork))
	})
	root.Post("/v2/sandboxes/{id}/connect", s.handle(s.connect))
	root.Get("/templates", s.handle(s.templates))
	root.Get("/templates/aliases/{alias}", s.handle(s.alias))
	root.Delete("/templates/{id}", s.handle(s.deleteTemplate))
	return root
}

// observe logs a request and answers for one that panics.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun, seen := time.Now(), &recorder{ResponseWriter: w}
		defer func() {
			fault := recover()
			if fault != nil && fault != http.ErrAbortHandler { //nolint:errorlint // compared as net/http does: a panic's value is not wrapped
				s.log.LogAttrs(r.Context(), slog.LevelError, "request panicked", slog.Any("err", fault), slog.String("stack", string(debug.Stack())))
				s.refuse(seen, r, &failure{http.StatusInternalServerError, "the server has a fault; its log has the cause"})
			}
			s.log.LogAttrs(r.Context(), slog.LevelInfo, "request", slog.String("method", r.Method), slog.Int("status", seen.status),
				slog.String("operation", "e2b "+chi.RouteContext(r.Context()).RoutePattern()), slog.Duration("took", time.Since(begun)))
		}()
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // a cold boot takes longer than the listener allows
		next.ServeHTTP(seen, r)
	})
}

// recorder remembers the status of the answer.
type recorder struct {
	http.ResponseWriter

	status int
}

// WriteHeader is http.ResponseWriter's.
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// operation is a route: it returns the status and the body of the answer, nil for none.
type operation func(*http.Request, service.Caller) (status int, body any, err error)

// handle runs an operation for a caller with a key.
func (s *Server) handle(do operation) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		caller, ok := s.authenticate(w, r)
		if !ok {
			return
		}
		status, body, err := do(r, caller)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		answer(w, status, body)
	}
}

// authenticate finds the caller, or answers and returns false.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request) (service.Caller, bool) {
	secret := r.Header.Get("X-API-Key")
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && secret == "" && strings.EqualFold(scheme, "Bearer") {
		secret = strings.TrimSpace(token)
	}
	caller, err := s.service.Authenticate(r.Context(), secret)
	if err != nil {
		s.refuse(w, r, err)
		return caller, false
	}
	if wait := s.count(caller.Key); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		s.refuse(w, r, &failure{http.StatusTooManyRequests, "too many requests with this key: wait and try again"})
		return caller, false
	}
	return caller, true
}

func answer(w http.ResponseWriter, status int, body any) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails when the client has left
}

// failure is an error as clients get it.
type failure struct {
	Status  int    `json:"code"`
	Message string `json:"message"`
}

func (f *failure) Error() string { return f.Message }

// statuses are how the product's codes are told.
var statuses = map[wrenn.Code]int{
	wrenn.Invalid: http.StatusBadRequest, wrenn.Unauthenticated: http.StatusUnauthorized, wrenn.PermissionDenied: http.StatusForbidden,
	wrenn.NotFound: http.StatusNotFound, wrenn.AlreadyExists: http.StatusConflict, wrenn.FailedPrecondition: http.StatusConflict,
	wrenn.Exhausted: http.StatusTooManyRequests, wrenn.Unavailable: http.StatusServiceUnavailable,
	wrenn.DeadlineExceeded: http.StatusGatewayTimeout, wrenn.Canceled: http.StatusServiceUnavailable, wrenn.Internal: http.StatusInternalServerError,
	wrenn.NoSpace: http.StatusInsufficientStorage, wrenn.GuestFailed: http.StatusUnprocessableEntity, wrenn.CutByPause: http.StatusConflict,
}

// refuse answers with err. Clients of E2B repeat requests that were answered
// with 429, 502, 503 or 504, creates too. What may have been done must not be
// repeated: a timeout says so.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{statuses[wrenn.CodeOf(err)], "the server has a fault; its log has the cause"}
		if e, ok := errors.AsType[*wrenn.Error](err); ok {
			f.Message = e.Message
		}
	}
	h := w.Header()
	switch f.Status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if h.Get("Retry-After") == "" {
			h.Set("Retry-After", retryAfter)
		}
	case http.StatusGatewayTimeout:
		h.Set("Should-Retry", "false")
	case http.StatusInternalServerError:
		s.log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.Any("err", err))
	}
	answer(w, f.Status, f)
}

// decode reads the JSON body into out; no body is an empty object. Unknown
// fields are ignored: SDKs add some with every version.
func decode(r *http.Request, out any) error {
	text, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return &failure{http.StatusBadRequest, "the body is broken, or over 1 MiB"}
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return &failure{http.StatusBadRequest, "the body is not the JSON that is expected: " + err.Error()}
	}
	return nil
}
