package api

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/telemetry"
	"wrenn.dev/internal/tracing"
)

// observe wraps all other handlers: it gives the request an id, answers for a
// handler that panics, and logs and counts the request.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := requestID(r)
		ctx, span := tracing.Request(r, s.traces)
		ctx = telemetry.WithRequest(ctx, id)
		w.Header().Set("X-Request-Id", id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		rec := &recorder{ResponseWriter: w, control: http.NewResponseController(w), idle: s.times.idle}
		begun := time.Now()
		defer func() {
			fault := recover()
			if fault != nil && fault != http.ErrAbortHandler { //nolint:errorlint // compared as net/http does: a panic's value is not wrapped
				rec.err = fmt.Errorf("panic: %v\n%s", fault, debug.Stack())
				fault = s.answerFault(rec, r.WithContext(ctx))
			}
			if rec.status != http.StatusSwitchingProtocols {
				rec.allowRead(s.times.idle / 2) // net/http reads the rest of the body, and then has to write
			}
			s.record(ctx, r, rec, time.Since(begun))
			s.audit(r, rec, id, begun)
			endSpan(span, rec, id)
			if fault != nil {
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(rec, r.WithContext(ctx))
	})
}

// endSpan ends the span of a request that has ended.
func endSpan(span trace.Span, rec *recorder, id string) {
	if !span.IsRecording() {
		return
	}
	if rec.operation != nil {
		span.SetName(rec.operation.ID)
	}
	span.SetAttributes(attribute.String("wrenn.request", id))
	if rec.sandbox != "" {
		span.SetAttributes(attribute.String("wrenn.sandbox", string(rec.sandbox)))
	}
	if rec.caller.Team != "" {
		span.SetAttributes(attribute.String("wrenn.team", string(rec.caller.Team)))
	}
	tracing.Answered(span, rec.status)
}

// answerFault answers for a handler that panicked. It returns a value that is not
// nil if the answer had begun.
func (s *Server) answerFault(rec *recorder, r *http.Request) (broken any) {
	defer func() { broken = recover() }()
	s.refuse(rec, r, rec.err)
	return nil
}

// record logs and counts a request that has ended.
func (s *Server) record(ctx context.Context, r *http.Request, rec *recorder, took time.Duration) {
	gone := r.Context().Err() != nil
	s.metrics.done(ctx, rec, gone, took)
	level := slog.LevelInfo
	switch {
	case rec.status >= http.StatusInternalServerError && !gone:
		level = slog.LevelWarn
	case rec.operation != nil && rec.operation.Public:
		level = slog.LevelDebug // monitoring asks for these every few seconds
	}
	if rec.sandbox != "" {
		ctx = telemetry.WithSandbox(ctx, rec.sandbox)
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.Int("status", rec.status), slog.Duration("took", took), slog.String("client", contract.Address(r)),
	}
	if rec.operation != nil {
		attrs = append(attrs, slog.String("operation", rec.operation.ID))
	} else {
		attrs = append(attrs, slog.String("path", plain.Line(plain.Shorten(r.URL.Path, maxLoggedPath))))
	}
	if rec.caller.Key != "" {
		attrs = append(attrs, slog.String("key", rec.caller.Key))
	}
	if gone {
		attrs = append(attrs, slog.Bool("gone", true))
	}
	if rec.err != nil && rec.status/100 != 4 { // 4xx are the client's errors: the client has the text, which may repeat its secrets
		attrs = append(attrs, slog.String("err", rec.err.Error()))
	}
	s.log.LogAttrs(ctx, level, "request", attrs...)
}

// maxLoggedPath bounds what a log line has of a path that no operation has.
const maxLoggedPath = 200

// audit records a call of a known key that needed more than to read.
func (s *Server) audit(r *http.Request, rec *recorder, id string, begun time.Time) {
	if rec.operation == nil || rec.caller.Key == "" || rec.operation.Scope == wrenn.ScopeRead {
		return
	}
	s.service.Record(service.AuditEntry{
		Team: rec.caller.Team, Key: rec.caller.Key, At: begun, Address: contract.Address(r), RequestID: id,
		Operation: rec.operation.ID, Path: r.URL.Path, Status: rec.status,
	})
}

// requestID returns the id in the request's header, or a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	ok := len(id) > 0 && len(id) <= 64
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-", c) >= 0)
	}
	if !ok {
		return rand.Text()
	}
	return id
}

type callerKey struct{}

// callerOf returns the caller that authenticate found; it is zero for an operation
// that needs no key.
func callerOf(ctx context.Context) service.Caller {
	c, _ := ctx.Value(callerKey{}).(service.Caller)
	return c
}

// operation finds the operation of the route in the contract.
func (s *Server) operation(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route := chi.RouteContext(r.Context()).RoutePattern()
		op, ok := s.contract.Operations[r.Method+" "+route]
		if !ok { // a route that the contract does not have is not served
			s.refuse(w, r, errNoRoute)
			return
		}
		rec := recorderOf(w)
		rec.operation = op
		if strings.HasPrefix(route, "/v1/sandboxes/{id}") {
			// Only valid ids get into log lines.
			if id, err := wrenn.ParseSandboxID(chi.URLParam(r, "id")); err == nil {
				rec.sandbox = id
				r = r.WithContext(telemetry.WithSandbox(r.Context(), id))
			}
		}
		next.ServeHTTP(w, r)
	})
}

// authenticate finds the caller and enforces the limits of its team.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := recorderOf(w)
		if rec.operation.Public {
			next.ServeHTTP(w, r)
			return
		}
		caller, leave, err := s.admit(r)
		rec.caller = caller
		budget.Of(r.Context()).SetOwner(string(caller.Team))
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		defer leave()
		if err := caller.Scopes.Check(rec.operation.Scope); err != nil {
			s.refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
	})
}

// admit finds the caller by the key in the request or, without one, by its session.
func (s *Server) admit(r *http.Request) (service.Caller, func(), error) {
	if secret := secretOf(r); secret != "" {
		return s.admission.Enter(r.Context(), r.RemoteAddr, secret)
	}
	cookie, proof, err := sessionOf(r)
	if err != nil {
		return service.Caller{}, nil, err
	}
	return s.admission.EnterSession(r.Context(), r.RemoteAddr, cookie, proof)
}

// keyProtocol is the prefix of the WebSocket subprotocol with a key: browsers cannot
// set a header for a WebSocket.
const keyProtocol = "wrenn.key."

// secretOf returns the API key in the request, or "".
func secretOf(r *http.Request) string {
	if secret := contract.SecretIn(r); secret != "" || !isUpgrade(r) {
		return secret
	}
	return offered(r, keyProtocol)
}

// offered returns what follows the prefix in the first WebSocket subprotocol that has it, or "".
func offered(r *http.Request, prefix string) string {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for protocol := range strings.SplitSeq(line, ",") {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(protocol), prefix); ok {
				return rest
			}
		}
	}
	return ""
}

// conform validates the request against the contract and bounds the body.
func (s *Server) conform(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := recorderOf(w)
		op := rec.operation
		if err := op.CheckParameters(r); err != nil {
			s.refuse(w, r, err)
			return
		}
		if strings.HasPrefix(op.Route, "/v1/") {
			if err := op.CheckNames(r); err != nil {
				s.refuse(w, r, err)
				return
			}
		}
		if err := op.CheckMedia(r); err != nil {
			s.refuse(w, r, err)
			return
		}
		if limit := maxBody(op); limit > 0 {
			if r.ContentLength > limit {
				s.refuse(w, r, tooLarge("the body is over %d bytes", limit))
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, limit)
		}
		if op.Media == mediaForm || op.Media == mediaFile { // an upload has no limit as a whole, but between two pieces
			r.Body = &uploadBody{ReadCloser: r.Body, rec: rec, idle: s.times.idle}
			next.ServeHTTP(w, r)
			return
		}
		r.Body = budget.Body(r.Context(), r.Body, budget.Of(r.Context()), bodyCost)
		if err := op.CheckJSON(r); err != nil {
			s.refuse(w, r, brokenBody(err))
			return
		}
		rec.allowRead(0)
		next.ServeHTTP(w, r)
	})
}

// uploadBody is the body of an upload: a read has the time limit idle, all reads
// together have none.
type uploadBody struct {
	io.ReadCloser
	rec  *recorder
	idle time.Duration
}

func (b *uploadBody) Read(p []byte) (int, error) {
	b.rec.allowRead(b.idle)
	n, err := b.ReadCloser.Read(p)
	b.rec.allowRead(0) // the time until the next read is the server's
	return n, err
}
