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

	"wrenn"
	"wrenn/internal/controlplane/service"
	"wrenn/internal/telemetry"
)

// observe is around everything: it names the request, keeps a panic from
// taking the answer with it, and says what came of the request.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := requestID(r)
		ctx := telemetry.WithRequest(r.Context(), id)
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
				rec.allowRead(s.times.idle / 2) // the server reads what the handler left of the body, and then has to write
			}
			s.conclude(ctx, r, rec, time.Since(begun))
			if fault != nil {
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(rec, r.WithContext(ctx))
	})
}

// answerFault answers for a handler that panicked. What it returns is not nil when the answer had begun.
func (s *Server) answerFault(rec *recorder, r *http.Request) (broken any) {
	defer func() { broken = recover() }()
	s.refuse(rec, r, rec.err)
	return nil
}

// conclude logs and counts a request that is over.
func (s *Server) conclude(ctx context.Context, r *http.Request, rec *recorder, took time.Duration) {
	gone := r.Context().Err() != nil
	s.metrics.done(rec, gone, took)
	level := slog.LevelInfo
	switch {
	case rec.status >= http.StatusInternalServerError && !gone:
		level = slog.LevelWarn
	case rec.operation != nil && rec.operation.public:
		level = slog.LevelDebug // asked for every few seconds by whoever watches us
	}
	if rec.sandbox != "" {
		ctx = telemetry.WithSandbox(ctx, rec.sandbox)
	}
	attrs := []slog.Attr{slog.String("method", r.Method), slog.Int("status", rec.status), slog.Duration("took", took)}
	if rec.operation != nil {
		attrs = append(attrs, slog.String("operation", rec.operation.id))
	}
	if rec.key != "" {
		attrs = append(attrs, slog.String("key", rec.key))
	}
	if gone {
		attrs = append(attrs, slog.Bool("gone", true))
	}
	if rec.err != nil && rec.status/100 != 4 { // the client's faults are in its answer, and may repeat its secrets
		attrs = append(attrs, slog.String("error", rec.err.Error()))
	}
	s.log.LogAttrs(ctx, level, "request", attrs...)
}

// requestID is the id that the request came with, or a fresh one.
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

// callerOf is who asks; every handler of an operation that needs a key runs after authenticate.
func callerOf(ctx context.Context) service.Caller {
	c, _ := ctx.Value(callerKey{}).(service.Caller)
	return c
}

// operation finds what the contract says of the route.
func (s *Server) operation(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route := chi.RouteContext(r.Context()).RoutePattern()
		op, ok := s.contract.operations[r.Method+" "+route]
		if !ok { // a route without a contract is open to nobody
			s.refuse(w, r, errNoRoute)
			return
		}
		rec := recorderOf(w)
		rec.operation = op
		if strings.HasPrefix(route, "/v1/sandboxes/{id}") {
			// Only what is an id gets into log lines.
			if id, err := wrenn.ParseSandboxID(chi.URLParam(r, "id")); err == nil {
				rec.sandbox = id
				r = r.WithContext(telemetry.WithSandbox(r.Context(), id))
			}
		}
		next.ServeHTTP(w, r)
	})
}

// authenticate finds who asks, and whether they ask too often.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := recorderOf(w)
		if rec.operation.public {
			next.ServeHTTP(w, r)
			return
		}
		secret := secretOf(r)
		if secret == "" {
			s.refuse(w, r, errNoKey)
			return
		}
		caller, err := s.service.Authenticate(r.Context(), secret)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		rec.key = caller.Key
		if err := s.limiter.take(caller.Key, time.Now()); err != nil {
			s.refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
	})
}

// keyProtocol starts the WebSocket subprotocol that holds a key: browsers can set no header there.
const keyProtocol = "wrenn.key."

// secretOf is the API key that the request came with, or "".
func secretOf(r *http.Request) string {
	if key := r.Header.Get("X-API-Key"); key != "" {
		return key
	}
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	if !isUpgrade(r) {
		return ""
	}
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for protocol := range strings.SplitSeq(line, ",") {
			if key, ok := strings.CutPrefix(strings.TrimSpace(protocol), keyProtocol); ok {
				return key
			}
		}
	}
	return ""
}

// conform compares the request with the contract and bounds what is left to read and to do of it.
func (s *Server) conform(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := recorderOf(w)
		op := rec.operation
		if err := op.checkParameters(r); err != nil {
			s.refuse(w, r, err)
			return
		}
		if err := op.checkMedia(r); err != nil {
			s.refuse(w, r, err)
			return
		}
		if limit := op.maxBody; limit > 0 {
			if r.ContentLength > limit {
				s.refuse(w, r, tooLarge("the body is over %d bytes", limit))
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, limit)
		}
		if op.media == mediaForm { // an upload takes as long as it takes, if it moves
			r.Body = &patientBody{ReadCloser: r.Body, rec: rec, idle: s.times.idle}
			next.ServeHTTP(w, r)
			return
		}
		if op.body != nil {
			if err := op.checkJSON(r); err != nil {
				s.refuse(w, r, err)
				return
			}
		}
		rec.allowRead(0)
		next.ServeHTTP(w, r)
	})
}

// patientBody is the body of an upload, which may take as long as it moves.
type patientBody struct {
	io.ReadCloser
	rec  *recorder
	idle time.Duration
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.rec.allowRead(b.idle)
	n, err := b.ReadCloser.Read(p)
	b.rec.allowRead(0) // the time that the work takes is not the client's
	return n, err
}
