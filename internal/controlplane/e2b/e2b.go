// Package e2b serves the REST surface of E2B's control plane, api/e2b.yaml, so that
// E2B's SDKs and command line work with Wrenn as they are. It is a second door to the
// use cases of package service: what one door creates the other sees. The data
// plane, commands and files, is envd's, which clients reach through the gateway.
//
// The routes are made from the document, and requests are checked against it. An
// operation without a function here is answered with 501.
//
// Clients are strict: the success code of a route is exactly the documented one, a
// list is never null, and every error is {"code": STATUS, "message": TEXT}.
// docs/e2b.md says what is built and what differs.
package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
	"wrenn.dev/api"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/controlplane/admission"
	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/tracing"
	"wrenn.dev/internal/wire"
)

const (
	// maxBody bounds a request's body.
	maxBody = 1 << 20
	// bodyCost is what a byte of it takes: as text, as checked values, and decoded.
	bodyCost = 6
	// retryAfter is what clients are told to wait when a part of the system is away.
	retryAfter = "2"
)

// Service is what the surface is of.
type Service interface {
	AccessToken(ctx context.Context, id wrenn.SandboxID) (string, error)
	TrafficToken(ctx context.Context, id wrenn.SandboxID) (string, error)
	Ingress(ctx context.Context, id wrenn.SandboxID) (wrenn.Ingress, error)

	CreateSandbox(context.Context, service.Caller, service.CreateSandbox) (*wrenn.Sandbox, error)
	CreateSandboxOnce(context.Context, service.Caller, service.RequestKey, service.CreateSandbox) (*wrenn.Sandbox, error)
	ListSandboxes(context.Context, service.Caller, service.ListSandboxes) (page []wrenn.Sandbox, next string, err error)
	CountSandboxes(context.Context, service.Caller, service.ListSandboxes) (int, error)
	Sandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	DeleteSandbox(context.Context, service.Caller, wrenn.SandboxID) error
	Record(service.AuditEntry)
	BootSandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	PauseSandboxBy(context.Context, service.Caller, wrenn.SandboxID, wrenn.PauseOptions) (*wrenn.Sandbox, error)
	ResumeSandbox(context.Context, service.Caller, wrenn.SandboxID) (*wrenn.Sandbox, error)
	SetTimeout(context.Context, service.Caller, wrenn.SandboxID, time.Duration) (*wrenn.Sandbox, error)
	SetNextTimeout(context.Context, service.Caller, wrenn.SandboxID, time.Duration) (*wrenn.Sandbox, error)
	MaxTimeout() time.Duration
	SetNetwork(context.Context, service.Caller, wrenn.SandboxID, wrenn.NetworkPolicy) (*wrenn.Sandbox, error)
	ForkSandbox(context.Context, service.Caller, wrenn.SandboxID, service.ForkSandbox) (*service.Forked, error)

	TeamName(context.Context, service.Caller) (string, error)
	SnapshotSandbox(ctx context.Context, c service.Caller, id wrenn.SandboxID, name string, diskOnly bool) (*wrenn.Template, error)
	ListSnapshots(context.Context, service.Caller, service.ListSnapshots) (page []wrenn.Template, more bool, err error)

	SandboxMetrics(ctx context.Context, c service.Caller, id wrenn.SandboxID, from, to time.Time) ([]wrenn.MetricsSample, error)
	// Logs reads the console; io.EOF is its end.
	Logs(ctx context.Context, c service.Caller, id wrenn.SandboxID, query wrenn.ConsoleQuery) (io.ReadCloser, error)
	LastMetrics(context.Context, service.Caller, []wrenn.SandboxID) (map[wrenn.SandboxID]wrenn.MetricsSample, error)

	ListTemplates(context.Context, service.Caller) ([]wrenn.Template, error)
	Template(ctx context.Context, c service.Caller, template string) (*wrenn.Template, error)
	DeleteTemplate(ctx context.Context, c service.Caller, template string) error
	Builds

	CreateVolume(context.Context, service.Caller, service.CreateVolume) (*wrenn.Volume, error)
	ListVolumes(context.Context, service.Caller) ([]wrenn.Volume, error)
	Volume(ctx context.Context, c service.Caller, name string) (*wrenn.Volume, error)
	DeleteVolume(ctx context.Context, c service.Caller, name string) error
	VolumeFiles
	Secrets
}

var _ Service = (*service.Service)(nil)

// Config is what a Server needs; all fields but Domain.
type Config struct {
	Service Service
	// Domain is where ports of sandboxes are, as in a URL; "" is where the client
	// thinks.
	Domain string
	// Admission lets requests in; it is that of all surfaces.
	Admission *admission.Door
	Log       *slog.Logger
	Traces    trace.TracerProvider // of the spans of requests; nil makes none
}

// Server is the surface.
type Server struct {
	service   Service
	admission *admission.Door
	log       *slog.Logger
	traces    trace.TracerProvider
	contract  *contract.Contract
	domain    *string // nil is none
	routes    chi.Router
}

// embedded is the contract. Servers share it, because nothing changes it.
var embedded = sync.OnceValues(func() (*contract.Contract, error) { return contract.Load(api.E2B) })

// New returns the surface. It fails when the embedded document is invalid.
func New(cfg Config) (*Server, error) {
	loaded, err := embedded()
	if err != nil {
		return nil, err
	}
	s := &Server{service: cfg.Service, admission: cfg.Admission, log: cfg.Log, traces: cfg.Traces, contract: loaded}
	if cfg.Domain != "" {
		s.domain = &cfg.Domain
	}
	s.routes, err = s.router()
	return s, err
}

// prefixes are the first parts of the paths that are E2B's.
var prefixes = []string{"/sandboxes", "/v2/", "/v3/", "/snapshots", "/templates", "/default-templates", "/teams", "/secrets", "/volumes", "/volumecontent/"}

// InFrontOf returns a handler that gives api the requests that are not for E2B's paths.
func (s *Server) InFrontOf(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if serves(r.URL.Path) {
			s.routes.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// serves reports whether a path is E2B's.
func serves(path string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool {
		rest, ok := strings.CutPrefix(path, prefix)
		return ok && (rest == "" || rest[0] == '/' || strings.HasSuffix(prefix, "/"))
	})
}

// errNotBuilt answers for what E2B has and Wrenn does not have yet.
var errNotBuilt = &failure{Status: http.StatusNotImplemented, Message: "Wrenn has not built this part of E2B's API yet; docs/e2b.md lists what works"}

func notBuilt(*http.Request, service.Caller) (int, any, error) { return 0, nil, errNotBuilt }

// operations are the functions of the document's operations, by their ids.
func (s *Server) operations() map[string]operation {
	return map[string]operation{
		"createSandboxV1":      s.create(v1Timeout),
		"createSandbox":        s.create(v2Timeout),
		"listRunningSandboxes": s.listRunning,
		"listSandboxes":        s.list,
		"getSandbox":           s.get,
		"killSandbox":          s.kill,
		"setSandboxTimeout":    s.setTimeout,
		"updateSandboxNetwork": s.setNetwork,
		"refreshSandbox":       s.refresh,
		"connectSandboxV1":     s.connect,
		"connectSandbox":       s.connect,
		"resumeSandbox":        s.resume,
		"pauseSandbox":         s.pause,
		"forkSandbox":          s.fork,
		"createSnapshot":       s.createSnapshot,
		"listSnapshots":        s.listSnapshots,
		"getSandboxMetrics":    s.metrics,
		"listSandboxMetrics":   s.lastMetrics,
		"getSandboxLogsV1":     s.logsV1,
		"getSandboxLogs":       s.logs,

		"listTemplates":        s.templates,
		"listTemplatesByPage":  s.templatePage,
		"listDefaultTemplates": s.defaultTemplates,
		"getTemplate":          s.template,
		"updateTemplate":       s.updateTemplate,
		"getTemplateTags":      s.templateTags,
		"countTemplateTags":    s.countTemplateTags,
		"findTemplateTag":      s.findTemplateTag,

		"listTemplateTagGroups":      s.tagGroups,
		"listTemplateTagAssignments": s.tagAssignments,

		"listTeams":        s.teams,
		"getTemplateAlias": s.alias,
		"deleteTemplate":   s.deleteTemplate,

		"requestTemplateBuild":   s.requestBuild,
		"startTemplateBuild":     s.startBuild,
		"getTemplateBuildStatus": s.buildStatus,
		"getTemplateUpload":      s.uploadLink,
		"getTemplateBuildLogs":   s.buildLogs,
		"assignTemplateTags":     s.assignTags,
		"removeTemplateTags":     s.removeTags,

		"createSecret": s.createSecret,
		"listSecrets":  s.listSecrets,
		"getSecret":    s.getSecret,
		"updateSecret": s.updateSecret,
		"deleteSecret": s.deleteSecret,

		"createVolume": s.createVolume,
		"listVolumes":  s.listVolumes,
		"getVolume":    s.getVolume,
		"deleteVolume": s.deleteVolume,
	}
}

// router returns the routes of the document.
func (s *Server) router() (chi.Router, error) {
	root := chi.NewRouter()
	root.Use(s.observe)
	root.NotFound(func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, &failure{Status: http.StatusNotFound, Message: "no such route; /docs lists them"})
	})
	root.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) { s.refuseMethod(root, w, r) })
	operations := s.operations()
	for _, op := range s.contract.Operations {
		if op.Public { // one that has its own proof of who calls
			root.Method(op.Method, op.Route, s.upload(op))
			continue
		}
		do, built := operations[op.ID]
		if file := s.contentOperations()[op.ID]; file != nil {
			root.Method(op.Method, op.Route, s.content(op, file))
			continue
		}
		if !built {
			do = notBuilt
		}
		delete(operations, op.ID)
		root.Method(op.Method, op.Route, s.handle(op, do))
	}
	for id := range operations {
		return nil, fmt.Errorf("the document has no operation %s", id)
	}
	return root, nil
}

func (s *Server) refuseMethod(root chi.Router, w http.ResponseWriter, r *http.Request) {
	allowed := slices.DeleteFunc([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, func(method string) bool {
		// For /templates/tags the router also finds /templates/{templateID}, whose methods do not count.
		return !root.Match(chi.NewRouteContext(), method, r.URL.Path) || s.isRoute(r.URL.Path) && s.contract.Operations[method+" "+r.URL.Path] == nil
	})
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	s.refuse(w, r, &failure{
		Status: http.StatusMethodNotAllowed, Message: fmt.Sprintf("this route takes %s, not %.16s", strings.Join(allowed, " and "), r.Method),
	})
}

// isRoute reports whether a path is a route of the document that has no parameter.
func (s *Server) isRoute(path string) bool {
	for _, op := range s.contract.Operations {
		if op.Route == path {
			return true
		}
	}
	return false
}

// observe logs a request and answers for one that panics.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun, seen := time.Now(), &recorder{ResponseWriter: w}
		ctx, span := tracing.Request(r, s.traces)
		r = r.WithContext(ctx)
		defer func() {
			fault := recover()
			if fault != nil && fault != http.ErrAbortHandler { //nolint:errorlint // compared as net/http does: a panic's value is not wrapped
				s.log.LogAttrs(r.Context(), slog.LevelError, "request panicked", slog.Any("err", fault), slog.String("stack", string(debug.Stack())))
				s.refuse(seen, r, &failure{Status: http.StatusInternalServerError, Message: "the server has a fault; its log has the cause"})
			}
			s.log.LogAttrs(r.Context(), slog.LevelInfo, "request", slog.String("method", r.Method), slog.Int("status", seen.status),
				slog.String("operation", operationName(r)), slog.Duration("took", time.Since(begun)))
			endSpan(span, r, seen.status)
		}()
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // a cold boot takes longer than the listener allows
		next.ServeHTTP(seen, r)
	})
}

func operationName(r *http.Request) string {
	return "e2b " + chi.RouteContext(r.Context()).RoutePattern()
}

// endSpan ends the span of a request that has ended.
func endSpan(span trace.Span, r *http.Request, status int) {
	if !span.IsRecording() {
		return
	}
	span.SetName(r.Method + " " + operationName(r))
	if id, err := wrenn.ParseSandboxID(chi.URLParam(r, "sandboxID")); err == nil {
		span.SetAttributes(attribute.String("wrenn.sandbox", string(id)))
	}
	tracing.Answered(span, status)
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

// operation does the work of a route: it returns the status and the body of the
// answer, nil for none. A body that is a page has headers, too.
type operation func(*http.Request, service.Caller) (status int, body any, err error)

// page is the body of an answer with a part of a list.
type page struct {
	entries any    // a list
	next    string // the token of the next page; "" on the last
	running *int   // how many sandboxes of all pages run; nil is not told
}

// handle runs an operation for a caller with a key, if the request is as the
// document asks for it. The type of a body does not count: it is read as JSON.
func (s *Server) handle(op *contract.Operation, do operation) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		caller, leave, err := s.admission.Enter(r.Context(), r.RemoteAddr, contract.SecretIn(r))
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		defer leave()
		defer s.audit(op, w, r, caller, time.Now())
		budget.Of(r.Context()).SetOwner(string(caller.Team))
		if err := caller.Scopes.Check(op.Scope); err != nil {
			s.refuse(w, r, err)
			return
		}
		if err := check(op, r); err != nil {
			s.refuse(w, r, err)
			return
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // when it passes, net/http ends the request's context
		status, body, err := do(r, caller)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		answer(w, status, body)
	}
}

// audit records a call of a key that needed more than to read.
func (s *Server) audit(op *contract.Operation, w http.ResponseWriter, r *http.Request, c service.Caller, begun time.Time) {
	if op.Scope == wrenn.ScopeRead || c.Key == "" {
		return
	}
	status := 0
	if rec, ok := w.(*recorder); ok {
		status = rec.status
	}
	s.service.Record(service.AuditEntry{
		Team: c.Team, Key: c.Key, At: begun, Address: contract.Address(r), Operation: op.ID, Path: r.URL.Path, Status: status,
	})
}

// check checks a request against the document.
func check(op *contract.Operation, r *http.Request) error {
	r.Body = budget.Body(r.Context(), http.MaxBytesReader(nil, r.Body, maxBody), budget.Of(r.Context()), bodyCost)
	err := op.CheckParameters(r)
	if err == nil {
		err = op.CheckJSON(r)
	}
	return violation(err)
}

// violation returns the failure of a request that the document does not allow.
func violation(err error) error {
	if v, ok := errors.AsType[*contract.Violation](err); ok {
		return invalid("%s", v.Message)
	}
	if wrenn.CodeOf(err) == wrenn.Exhausted { // no memory for it
		return err
	}
	if err != nil {
		return invalid("the body is broken, or over 1 MiB")
	}
	return nil
}

func answer(w http.ResponseWriter, status int, body any) {
	if body == nil {
		w.WriteHeader(status)
		return
	}
	if p, ok := body.(page); ok {
		body = p.entries
		if p.next != "" {
			w.Header().Set("X-Next-Token", p.next)
		}
		if p.running != nil {
			w.Header().Set("X-Total-Running", strconv.Itoa(*p.running))
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails when the client has left
}

// failure is an error as clients get it.
type failure struct {
	Status  int    `json:"code"`
	Message string `json:"message"`
	Code    string `json:"error_code,omitempty"` // for programs

	retry bool          // another try will be answered
	final bool          // another try soon will not help
	after time.Duration // until another try; 0 is not known
}

func (f *failure) Error() string { return f.Message }

// failureOf returns err as clients get it. The text of an error that is not meant
// for users stays in the log.
func failureOf(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if r, ok := errors.AsType[*admission.Refused](err); ok {
		return &failure{Status: http.StatusTooManyRequests, Message: r.Message, after: r.After}
	}
	f := &failure{Status: wire.HTTPStatus(wrenn.CodeOf(err)), Message: "the server has a fault; its log has the cause"}
	if e, ok := errors.AsType[*wrenn.Error](err); ok {
		f.Message = e.PublicMessage()
	}
	switch {
	case errors.Is(err, service.ErrKeyReused):
		f.Code = "idempotency_request_mismatch"
	case errors.Is(err, service.ErrCreateInProgress):
		f.Code, f.retry = "idempotency_in_progress", true
	case wrenn.CodeOf(err) == wrenn.NotResponding:
		f.final = true
	}
	return f
}

// refuse answers with err. Clients of E2B repeat requests that were answered
// with 429, 502, 503 or 504, creates too. What may have been done must not be
// repeated: a timeout says so.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	f := failureOf(err)
	h := w.Header()
	if f.retry {
		h.Set("Should-Retry", "true")
		h.Set("Retry-After", "1")
	}
	if f.after > 0 {
		h.Set("Retry-After", strconv.Itoa(int(f.after/time.Second)+1))
	}
	switch {
	case f.final || f.Status == http.StatusGatewayTimeout:
		h.Set("Should-Retry", "false")
	case f.Status == http.StatusTooManyRequests || f.Status == http.StatusServiceUnavailable:
		if h.Get("Retry-After") == "" {
			h.Set("Retry-After", retryAfter)
		}
	case f.Status == http.StatusInternalServerError:
		s.log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.Any("err", err))
	}
	answer(w, f.Status, f)
}

// decode reads the JSON body, which was checked, into out; no body is an empty object.
func decode(r *http.Request, out any) error {
	err := json.NewDecoder(r.Body).Decode(out)
	if err != nil && !errors.Is(err, io.EOF) {
		return invalid("the body is not the JSON that is expected: %s", contract.Shorten(err.Error()))
	}
	return nil
}

// invalid returns the failure of a request that is not as it must be.
func invalid(format string, args ...any) error {
	return &failure{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}
