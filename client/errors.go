package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Code says what kind of failure an Error is. New ones may come: treat one
// that you do not know by its HTTP status.
type Code string

// The codes; api/openapi.yaml says what each means.
const (
	InvalidRequest       Code = "invalid_request"
	Unauthorized         Code = "unauthorized"
	Forbidden            Code = "forbidden"
	NotFound             Code = "not_found"
	MethodNotAllowed     Code = "method_not_allowed"
	Conflict             Code = "conflict"
	InvalidState         Code = "invalid_state"
	TooLarge             Code = "too_large"
	UnsupportedMediaType Code = "unsupported_media_type"
	RateLimited          Code = "rate_limited"
	LimitExceeded        Code = "limit_exceeded"
	Internal             Code = "internal"
	Unavailable          Code = "unavailable"
	Timeout              Code = "timeout"
)

// Error is a failure that the server told, or a failure to reach it.
type Error struct {
	Code       Code
	Message    string        // for people; says what to do when there is something to do
	Status     int           // of HTTP; 0 when there was no answer, or the failure came within a stream
	RequestID  string        // names the request in the server's log
	RetryAfter time.Duration // when trying again makes sense; 0 is unknown
	Err        error         // the cause, on this side; may be nil
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first Error in err's chain, and "" when there is none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// problem is the error that an answer tells. What answers with something else
// is no Wrenn, or a proxy before it.
func problem(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id")}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	var body struct {
		Error struct {
			Code    Code   `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err == nil {
		err = json.Unmarshal(text, &body)
	}
	if err == nil && body.Error.Code != "" {
		e.Code, e.Message = body.Error.Code, body.Error.Message
		return e
	}
	e.Code = Internal
	if resp.StatusCode >= http.StatusBadGateway {
		e.Code = Unavailable
	}
	e.Message = fmt.Sprintf("the server answers %s, and not as Wrenn does: is the address right?", resp.Status)
	return e
}

// broken is a connection that failed. The end of ctx is the caller's own doing
// and stays what it is.
func (c *Client) broken(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // the address is in the message
	}
	if errors.Is(err, io.EOF) { // which says of a stream or a file that it was all
		err = fmt.Errorf("%w: %s", io.ErrUnexpectedEOF, err.Error())
	}
	return &Error{Code: Unavailable, Message: "no connection to " + c.base.Redacted(), Err: err}
}
