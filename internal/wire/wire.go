// Package wire translates errors between the product's codes and those of
// Connect RPC, by one table. It is used at both ends of hostagent.v1.
package wire

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"wrenn"
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

// Code returns the product's code of a Connect code. Those that have none of
// their own (unknown, unimplemented, data_loss, …) are Internal.
func Code(c connect.Code) wrenn.Code {
	switch c {
	case connect.CodeAborted:
		return wrenn.Unavailable // "try the whole again"
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

// ToConnect is an error as a server answers it: the code and the message for
// the user, never the cause, which the server logs. Errors without a code say
// nothing but "internal error".
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*wrenn.Error](err); ok {
		code, known := codes[e.Code]
		if !known {
			code = connect.CodeInternal
		}
		return connect.NewError(code, errors.New(e.Message))
	}
	switch {
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, errors.New("canceled"))
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New(timeUp))
	}
	return connect.NewError(connect.CodeInternal, errors.New("internal error"))
}

// ToResult is ToConnect for one of several results in an answer; both are
// empty for nil.
func ToResult(err error) (code, message string) {
	if err == nil {
		return "", ""
	}
	e, _ := errors.AsType[*connect.Error](ToConnect(err)) // which it always is
	return e.Code().String(), e.Message()
}

// FromResult is what ToResult told: nil when code is empty.
func FromResult(code, message string) error {
	if code == "" {
		return nil
	}
	var c connect.Code
	if err := c.UnmarshalText([]byte(code)); err != nil { // a newer server's
		c = connect.CodeInternal
	}
	return &wrenn.Error{Code: Code(c), Message: message}
}

// timeUp is what a server says whose caller's deadline came before the caller
// saw that itself.
const timeUp = "the time was up"

// FromConnect is an error as a client got it. What the server said is the
// message. A connection that could not be made, or broke in the middle of a
// frame, is Unavailable, and peer says in the message who could not be reached.
func FromConnect(peer string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*wrenn.Error](err); ok {
		return err
	}
	rpc, ok := errors.AsType[*connect.Error](err)
	if ok && connect.IsWireError(err) && rpc.Message() != timeUp {
		return &wrenn.Error{Code: Code(rpc.Code()), Message: rpc.Message()}
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
