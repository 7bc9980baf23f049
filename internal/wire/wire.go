// Package wire translates errors between the product's codes and those of
// Connect RPC, by one table, and into HTTP statuses, by another. The first is used
// at both ends of hostagent.v1, the second by the public APIs. A code that
// Connect does not have travels in a detail of the error, beside the code that is
// nearest to it, which older peers read.
package wire

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1" //nolint:depguard // the detail of an error that has the codes which RPCs lack
)

var codes = map[wrenn.Code]connect.Code{
	wrenn.Invalid:            connect.CodeInvalidArgument,
	wrenn.NotFound:           connect.CodeNotFound,
	wrenn.AlreadyExists:      connect.CodeAlreadyExists,
	wrenn.FailedPrecondition: connect.CodeFailedPrecondition,
	wrenn.Exhausted:          connect.CodeResourceExhausted,
	wrenn.PermissionDenied:   connect.CodePermissionDenied,
	wrenn.Unauthenticated:    connect.CodeUnauthenticated,
	wrenn.Unavailable:        connect.CodeUnavailable,
	wrenn.DeadlineExceeded:   connect.CodeDeadlineExceeded,
	wrenn.Canceled:           connect.CodeCanceled,
	wrenn.Internal:           connect.CodeInternal,
}

// nearest are the codes for older peers of those that Connect does not have.
var nearest = map[wrenn.Code]connect.Code{
	wrenn.NoSpace:       connect.CodeResourceExhausted,
	wrenn.GuestFailed:   connect.CodeFailedPrecondition,
	wrenn.CutByPause:    connect.CodeFailedPrecondition,
	wrenn.NotResponding: connect.CodeUnavailable,
}

// Code returns the product's code for a Connect code: Internal for those without
// a counterpart (unknown, unimplemented, data_loss, …).
func Code(c connect.Code) wrenn.Code {
	switch c {
	case connect.CodeAborted:
		return wrenn.Unavailable // Connect: "retry at a higher level"
	case connect.CodeOutOfRange:
		return wrenn.Invalid
	}
	for code, other := range codes {
		if other == c {
			return code
		}
	}
	return wrenn.Internal
}

// ToConnect returns err as a server sends it: with the code and the message for
// the user, never the cause, which the server logs. The message of an error
// without a code is "internal error".
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*wrenn.Error](err); ok {
		return withCode(e)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, errors.New("canceled"))
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New(timeUp))
	}
	return connect.NewError(connect.CodeInternal, errors.New("internal error"))
}

func withCode(e *wrenn.Error) error {
	code, known := codes[e.Code]
	if known {
		return connect.NewError(code, errors.New(e.PublicMessage()))
	}
	if code, known = nearest[e.Code]; !known {
		return connect.NewError(connect.CodeInternal, errors.New(e.PublicMessage()))
	}
	out := connect.NewError(code, errors.New(e.PublicMessage()))
	if detail, err := connect.NewErrorDetail(&pb.ErrorCode{Code: string(e.Code)}); err == nil { // it always is
		out.AddDetail(detail)
	}
	return out
}

// codeOf returns the product's code of an error that a server sent.
func codeOf(err *connect.Error) wrenn.Code {
	for _, detail := range err.Details() {
		if value, err := detail.Value(); err == nil {
			if named, ok := value.(*pb.ErrorCode); ok && nearest[wrenn.Code(named.GetCode())] != 0 {
				return wrenn.Code(named.GetCode())
			}
		}
	}
	return Code(err.Code())
}

// ToResult is like ToConnect, for one of several results in an answer. Both
// strings are empty for a nil error.
func ToResult(err error) (code, message string) {
	if err == nil {
		return "", ""
	}
	e, _ := errors.AsType[*connect.Error](ToConnect(err)) // always ok
	if own := codeOf(e); nearest[own] != 0 {
		return string(own), e.Message()
	}
	return e.Code().String(), e.Message()
}

// FromResult is the inverse of ToResult: nil when code is empty.
func FromResult(code, message string) error {
	if code == "" {
		return nil
	}
	if nearest[wrenn.Code(code)] != 0 {
		return &wrenn.Error{Code: wrenn.Code(code), Message: message}
	}
	var c connect.Code
	if err := c.UnmarshalText([]byte(code)); err != nil { // a code of a newer server
		c = connect.CodeInternal
	}
	return &wrenn.Error{Code: Code(c), Message: message}
}

// timeUp is a server's message when the caller's deadline has passed and the
// caller has not noticed yet. Older versions send the same text.
const timeUp = "the time was up"

// FromConnect returns an error as a client got it, with the server's code and
// message. If the connection failed or broke in the middle of a frame, the code is
// Unavailable and the message names peer.
func FromConnect(peer string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*wrenn.Error](err); ok {
		return err
	}
	rpc, ok := errors.AsType[*connect.Error](err)
	if ok && connect.IsWireError(err) && rpc.Message() != timeUp {
		return &wrenn.Error{Code: codeOf(rpc), Message: rpc.Message()}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return &wrenn.Error{Code: wrenn.Canceled, Message: "canceled", Err: err}
	case errors.Is(err, context.DeadlineExceeded), ok && rpc.Code() == connect.CodeDeadlineExceeded:
		return &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: peer + " did not answer in time", Err: err}
	case ok && rpc.Code() == connect.CodeResourceExhausted:
		return &wrenn.Error{Code: wrenn.Exhausted, Message: "the answer of " + peer + " is too large", Err: err}
	}
	return &wrenn.Error{Code: wrenn.Unavailable, Message: peer + " cannot be reached; try again in a moment", Err: err}
}
