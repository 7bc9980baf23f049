package envdclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
)

// meanings are what callers of the host learn from an error that a guest answered;
// any other code is GuestFailed. A guest may be hostile, so no answer of it becomes
// a code that says something about the caller's key (Unauthenticated), about the
// host's limits (Exhausted), about the sandbox's state (FailedPrecondition,
// AlreadyExists), or that asks callers to try again (Unavailable, Canceled,
// DeadlineExceeded).
var meanings = map[connect.Code]wrenn.Code{
	connect.CodeInvalidArgument:  wrenn.Invalid,
	connect.CodeOutOfRange:       wrenn.Invalid,
	connect.CodeUnauthenticated:  wrenn.Invalid, // envd's answer for a user that the guest does not have; the host's token is right
	connect.CodeNotFound:         wrenn.NotFound,
	connect.CodePermissionDenied: wrenn.PermissionDenied,
}

// statusMeanings is meanings for the statuses of plain HTTP.
var statusMeanings = map[int]wrenn.Code{
	http.StatusBadRequest:          wrenn.Invalid,
	http.StatusUnauthorized:        wrenn.Invalid, // see meanings
	http.StatusForbidden:           wrenn.PermissionDenied,
	http.StatusNotFound:            wrenn.NotFound,
	http.StatusInsufficientStorage: wrenn.NoSpace,
}

// answer is an error that the guest answered. It is a *wrenn.Error with a code of
// meanings for callers; this package also goes by the guest's own code.
type answer struct {
	err    *wrenn.Error
	code   connect.Code // of an RPC
	status int          // of plain HTTP
}

func (a *answer) Error() string { return a.err.Error() }
func (a *answer) Unwrap() error { return a.err }

// answered returns the guest's code, or its status, of an error that it answered; zeros for other errors.
func answered(err error) (code connect.Code, status int) {
	if a, ok := errors.AsType[*answer](err); ok {
		return a.code, a.status
	}
	return 0, 0
}

// errUnanswered is the message for callers when the guest's agent was not reached, or
// the connection to it broke. The cause has the guest's address.
const errUnanswered = "the sandbox's agent does not answer"

// fromRPC turns a Connect error into a *wrenn.Error, with envd's message if it is an
// answer. The only causes that it keeps are a canceled context and a deadline.
func fromRPC(doing string, err error) error {
	if err == nil {
		return nil
	}
	if gone := Gone(err); gone != nil {
		return gone
	}
	rpc, ok := errors.AsType[*connect.Error](err)
	switch {
	case errors.Is(err, context.Canceled):
		return &wrenn.Error{Code: wrenn.Canceled, Message: doing + ": canceled", Err: context.Canceled}
	case errors.Is(err, context.DeadlineExceeded):
		return &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: doing + ": the time was up", Err: context.DeadlineExceeded}
	case ok && connect.IsWireError(err):
		return &answer{err: wrenn.Errorf(meaning(rpc.Code()), "%s: %s", doing, clean(rpc.Message())), code: rpc.Code()}
	case isUnanswered(err):
		return wrenn.Errorf(wrenn.Unavailable, "%s: %s", doing, errUnanswered)
	case ok:
		return wrenn.Errorf(wrenn.GuestFailed, "%s: the sandbox's agent breaks its protocol: %s", doing, clean(rpc.Message()))
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
}

func meaning(code connect.Code) wrenn.Code {
	if known, ok := meanings[code]; ok {
		return known
	}
	return wrenn.GuestFailed
}

func statusMeaning(status int) wrenn.Code {
	if known, ok := statusMeanings[status]; ok {
		return known
	}
	return wrenn.GuestFailed
}

// isUnanswered reports whether there was no connection, or it broke.
func isUnanswered(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return true
	}
	_, ok := errors.AsType[net.Error](err)
	return ok
}

// deadlineSlack is how much earlier than the caller the guest may notice a deadline.
const deadlineSlack = 2 * time.Second

// believeDeadline turns the guest's answer that a deadline has passed into the error
// of a deadline, if the caller has one, zero for none, and it is over but for a
// little. An answer that comes earlier is the guest's invention.
func believeDeadline(deadline time.Time, err error) error {
	code, _ := answered(err)
	if code != connect.CodeDeadlineExceeded || deadline.IsZero() || time.Until(deadline) > deadlineSlack {
		return err
	}
	return &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: err.Error(), Err: context.DeadlineExceeded}
}

// deadlineOf returns the deadline of ctx; zero for none.
func deadlineOf(ctx context.Context) time.Time {
	deadline, _ := ctx.Deadline()
	return deadline
}
