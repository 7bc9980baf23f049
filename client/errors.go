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

// Code is the kind of failure of an Error. New codes may be added: judge an
// unknown one by its HTTP status.
type Code string

// The codes; api/openapi.yaml documents each.
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
	NoSpace              Code = "no_space"
	GuestFailed          Code = "guest_failed"
	CutByPause           Code = "paused"
	NotResponding        Code = "unresponsive"
)

// Error is a failure that the server reported, or a failure to reach it.
type Error struct {
	Code       Code
	Message    string        // for people; includes what to do next, where known
	Status     int           // HTTP status; 0 when there was no response, or the failure came within a stream
	RequestID  string        // identifies the request in the server's log
	RetryAfter time.Duration // wait this long before a retry; 0 means unknown
	Err        error         // the cause on the client's side; may be nil
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

// problem returns the error in a response. A response without one comes from
// another server, or from a proxy in front of Wrenn.
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
	e.Message = fmt.Sprintf("the server answers %s, and not as Wrenn does: check the address", resp.Status)
	return e
}

// broken returns the error of a failed connection. When ctx has ended it
// returns the cause of that instead, unchanged.
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
	if errors.Is(err, io.EOF) { // callers would take io.EOF for the regular end of a stream or a file
		err = fmt.Errorf("%w: %s", io.ErrUnexpectedEOF, err.Error())
	}
	return &Error{Code: Unavailable, Message: "no connection to " + c.base.Redacted(), Err: err}
}
