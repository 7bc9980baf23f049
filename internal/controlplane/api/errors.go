package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"wrenn"
	"wrenn/internal/controlplane/api/internal/oapi"
	"wrenn/internal/telemetry"
)

// retryAfter is what clients are told to wait when a part of the system is
// away: a database or a host that restarts is back in about that time.
const retryAfter = 5 * time.Second

// failure is an error as /v1 tells it.
type failure struct {
	status     int
	code       oapi.ErrorCode
	message    string
	retryAfter time.Duration // 0 when trying again does not help
}

func (f *failure) Error() string { return f.message }

// byCode is how each of the product's codes is told. The codes of failures
// that only this package knows are beside the failures.
var byCode = map[wrenn.Code]failure{
	wrenn.Invalid:            {status: http.StatusBadRequest, code: oapi.ErrorCodeInvalidRequest},
	wrenn.Unauthenticated:    {status: http.StatusUnauthorized, code: oapi.ErrorCodeUnauthorized},
	wrenn.PermissionDenied:   {status: http.StatusForbidden, code: oapi.ErrorCodeForbidden},
	wrenn.NotFound:           {status: http.StatusNotFound, code: oapi.ErrorCodeNotFound},
	wrenn.AlreadyExists:      {status: http.StatusConflict, code: oapi.ErrorCodeConflict},
	wrenn.FailedPrecondition: {status: http.StatusConflict, code: oapi.ErrorCodeInvalidState},
	wrenn.Exhausted:          {status: http.StatusTooManyRequests, code: oapi.ErrorCodeLimitExceeded, retryAfter: retryAfter},
	wrenn.Unavailable:        {status: http.StatusServiceUnavailable, code: oapi.ErrorCodeUnavailable, retryAfter: retryAfter},
	wrenn.DeadlineExceeded:   {status: http.StatusGatewayTimeout, code: oapi.ErrorCodeTimeout},
	// Who canceled is gone, or the server stops and the client is welcome at the next one.
	wrenn.Canceled: {status: http.StatusServiceUnavailable, code: oapi.ErrorCodeUnavailable, retryAfter: retryAfter},
	wrenn.Internal: {status: http.StatusInternalServerError, code: oapi.ErrorCodeInternal},
}

// Failures that need no more than their text.
var (
	errNoRoute = &failure{status: http.StatusNotFound, code: oapi.ErrorCodeNotFound, message: "no such route; /docs lists them"}
	errNoKey   = &failure{
		status: http.StatusUnauthorized, code: oapi.ErrorCodeUnauthorized,
		message: "an API key is needed, in X-API-Key or as a bearer token",
	}
	errIdleBody = &failure{
		status: http.StatusBadRequest, code: oapi.ErrorCodeInvalidRequest,
		message: "the body stood still for too long and was cut off",
	}
)

// invalid is a request that is not what the contract asks for.
func invalid(format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, code: oapi.ErrorCodeInvalidRequest, message: fmt.Sprintf(format, args...)}
}

// tooLarge is a body over its limit.
func tooLarge(format string, args ...any) *failure {
	return &failure{status: http.StatusRequestEntityTooLarge, code: oapi.ErrorCodeTooLarge, message: fmt.Sprintf(format, args...)}
}

// brokenBody is an error of reading a body: the client's, whichever it is.
func brokenBody(err error) error {
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errIdleBody
	}
	return invalid("the body is broken or ended early: %s", shorten(err.Error()))
}

// failureOf is err as it is told. The text of an error that is not made for
// users stays in the log, under the request's id.
func failureOf(ctx context.Context, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if e, ok := errors.AsType[*wrenn.Error](err); ok && e.Message != "" {
		f, ok := byCode[e.Code]
		if !ok {
			f = byCode[wrenn.Internal]
		}
		f.message = e.Message
		return &f
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge("the body is over %d bytes", e.Limit)
	}
	f := byCode[wrenn.Internal]
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		f = byCode[wrenn.DeadlineExceeded]
		f.message = "the work took longer than its time limit"
	case errors.Is(err, context.Canceled):
		f = byCode[wrenn.Canceled]
		f.message = "the request was given up before it was answered: try again"
	default:
		f.message = "the server has a fault; its operator finds the cause under request " + telemetry.RequestID(ctx)
	}
	return &f
}

// refuse answers with err. An answer that has begun cannot be taken back: then
// the connection is broken, which no client takes for the end of a file.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	rec := recorderOf(w)
	rec.err = err
	if rec.status != 0 {
		panic(http.ErrAbortHandler)
	}
	f := failureOf(r.Context(), err)
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Del("Content-Length")
	header.Del("Content-Disposition")
	if f.retryAfter > 0 {
		// Rounded up: who comes back too early asks twice.
		header.Set("Retry-After", strconv.Itoa(int((f.retryAfter+time.Second-1)/time.Second)))
	}
	if f == errIdleBody {
		header.Set("Connection", "close") // else the server waits for the rest first
	}
	if f.status == http.StatusUnauthorized {
		header.Set("WWW-Authenticate", `Bearer realm="wrenn"`)
	}
	body := oapi.Error{}
	body.Error.Code, body.Error.Message = f.code, f.message
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(body) // a client that is gone
}

// refuseRequest answers a request that the generated server could not decode.
func (s *Server) refuseRequest(w http.ResponseWriter, r *http.Request, err error) {
	s.refuse(w, r, invalid("the request is broken: %s", shorten(err.Error())))
}

func (s *Server) refuseMethod(root chi.Router, w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		if root.Match(chi.NewRouteContext(), method, r.URL.Path) {
			allowed = append(allowed, method)
		}
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	s.refuse(w, r, &failure{
		status: http.StatusMethodNotAllowed, code: oapi.ErrorCodeMethodNotAllowed,
		message: fmt.Sprintf("this route takes %s, not %.16s", strings.Join(allowed, " and "), r.Method),
	})
}
