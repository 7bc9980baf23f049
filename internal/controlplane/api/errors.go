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

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/admission"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/telemetry"
	"wrenn.dev/internal/wire"
)

// retryAfter is the wait that clients are told while a part of the system cannot be
// reached: a database or a host restarts in about that time.
const retryAfter = 5 * time.Second

// failure is an error as /v1 answers it.
type failure struct {
	status     int
	code       oapi.ErrorCode
	message    string
	retryAfter time.Duration // 0 if trying again does not help
}

func (f *failure) Error() string { return f.message }

// byCode has the answer for each of the product's codes. Failures that only this
// package knows have their own.
var byCode = withStatus(map[wrenn.Code]failure{
	wrenn.Invalid:            {code: oapi.ErrorCodeInvalidRequest},
	wrenn.Unauthenticated:    {code: oapi.ErrorCodeUnauthorized},
	wrenn.PermissionDenied:   {code: oapi.ErrorCodeForbidden},
	wrenn.NotFound:           {code: oapi.ErrorCodeNotFound},
	wrenn.AlreadyExists:      {code: oapi.ErrorCodeConflict},
	wrenn.FailedPrecondition: {code: oapi.ErrorCodeInvalidState},
	wrenn.Exhausted:          {code: oapi.ErrorCodeLimitExceeded, retryAfter: retryAfter},
	wrenn.Unavailable:        {code: oapi.ErrorCodeUnavailable, retryAfter: retryAfter},
	wrenn.DeadlineExceeded:   {code: oapi.ErrorCodeTimeout},
	// The client is gone, or the server is stopping and another replica can answer.
	wrenn.Canceled:      {code: oapi.ErrorCodeUnavailable, retryAfter: retryAfter},
	wrenn.Internal:      {code: oapi.ErrorCodeInternal},
	wrenn.NoSpace:       {code: oapi.ErrorCodeNoSpace},
	wrenn.GuestFailed:   {code: oapi.ErrorCodeGuestFailed},
	wrenn.CutByPause:    {code: oapi.ErrorCodePaused},
	wrenn.NotResponding: {code: oapi.ErrorCodeUnresponsive},
})

// withStatus sets the HTTP status of each answer.
func withStatus(answers map[wrenn.Code]failure) map[wrenn.Code]failure {
	for code, f := range answers {
		f.status = wire.HTTPStatus(code)
		answers[code] = f
	}
	return answers
}

// Failures with a fixed text.
var (
	errNoRoute = &failure{status: http.StatusNotFound, code: oapi.ErrorCodeNotFound, message: "no such route; /docs lists them"}
	errNoKey   = &failure{
		status: http.StatusUnauthorized, code: oapi.ErrorCodeUnauthorized,
		message: "an API key is needed, in X-API-Key or as a bearer token",
	}
	errIdleBody = &failure{
		status: http.StatusBadRequest, code: oapi.ErrorCodeInvalidRequest,
		message: "no byte of the body came for too long: send it again",
	}
)

// invalid returns the failure of a request that violates the contract.
func invalid(format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, code: oapi.ErrorCodeInvalidRequest, message: fmt.Sprintf(format, args...)}
}

// violation returns the failure of a request that the contract refuses.
func violation(v *contract.Violation) *failure {
	if v.Status == http.StatusUnsupportedMediaType {
		return &failure{status: v.Status, code: oapi.ErrorCodeUnsupportedMediaType, message: v.Message}
	}
	if message := named[v.InPath]; message != "" {
		return &failure{status: http.StatusNotFound, code: oapi.ErrorCodeNotFound, message: message}
	}
	return invalid("%s", v.Message)
}

// named has the messages for parameters of paths that name something: what cannot be a
// name or an id does not exist.
var named = map[string]string{
	"id": "nothing has that id", "checkpoint": "there is no such checkpoint", "volume": "there is no such volume",
	"template": "there is no such template", "generation": "there is no such build", "pid": "there is no such process",
}

// tooLarge returns the failure of a body over its limit.
func tooLarge(format string, args ...any) *failure {
	return &failure{status: http.StatusRequestEntityTooLarge, code: oapi.ErrorCodeTooLarge, message: fmt.Sprintf(format, args...)}
}

// brokenBody returns the failure for an error of reading a body, which is the client's.
func brokenBody(err error) error {
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	if _, ok := errors.AsType[*contract.Violation](err); ok {
		return err
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return err
	}
	if wrenn.CodeOf(err) == wrenn.Exhausted { // no memory for it
		return err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errIdleBody
	}
	return invalid("the body is broken or ended early: %s", shorten(err.Error()))
}

// failureOf returns the failure for err. The text of an error that is not meant for
// users stays in the log, under the request's id.
func failureOf(ctx context.Context, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if v, ok := errors.AsType[*contract.Violation](err); ok {
		return violation(v)
	}
	if r, ok := errors.AsType[*admission.Refused](err); ok {
		return &failure{status: http.StatusTooManyRequests, code: oapi.ErrorCodeRateLimited, message: r.Message, retryAfter: r.After}
	}
	if e, ok := errors.AsType[*wrenn.Error](err); ok && e.Message != "" {
		f, ok := byCode[e.Code]
		if !ok {
			f = byCode[wrenn.Internal]
		}
		f.message = e.PublicMessage()
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
		f.message = "the request was canceled before it was answered: try again"
	default:
		f.message = "internal error; the operator finds the cause in the log under request " + telemetry.RequestID(ctx)
	}
	return &f
}

// refuse answers with err. If the answer has begun it breaks the connection, which
// no client mistakes for the end of a file.
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
		// Rounded up: a client that is early is refused again.
		header.Set("Retry-After", strconv.Itoa(int((f.retryAfter+time.Second-1)/time.Second)))
	}
	if f == errIdleBody {
		header.Set("Connection", "close") // else net/http waits for the rest of the body
	}
	if f.status == http.StatusUnauthorized {
		header.Set("WWW-Authenticate", `Bearer realm="wrenn"`)
	}
	body := oapi.Error{}
	body.Error.Code, body.Error.Message = f.code, f.message
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(body) // fails if the client is gone
}

// refuseRequest answers a request that the generated server could not decode.
func (s *Server) refuseRequest(w http.ResponseWriter, r *http.Request, err error) {
	s.refuse(w, r, invalid("the request cannot be decoded: %s", shorten(err.Error())))
}

func (s *Server) refuseMethod(root chi.Router, w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
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
