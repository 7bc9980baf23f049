package wrenn

import (
	"errors"
	"fmt"
)

// Code is the kind of an Error. The set is closed: RPC, HTTP and exit codes each
// translate it by one table.
type Code string

// The codes. All but the last four are named as Connect and gRPC name them.
const (
	Invalid            Code = "invalid_argument"
	NotFound           Code = "not_found"
	AlreadyExists      Code = "already_exists"
	FailedPrecondition Code = "failed_precondition"
	Exhausted          Code = "resource_exhausted"
	PermissionDenied   Code = "permission_denied"
	Unauthenticated    Code = "unauthenticated"
	Unavailable        Code = "unavailable"
	DeadlineExceeded   Code = "deadline_exceeded"
	Canceled           Code = "canceled"
	Internal           Code = "internal"
	// NoSpace means that a file system in the sandbox is full. Trying again does not
	// help. A full disk of the host is Exhausted.
	NoSpace Code = "no_space"
	// GuestFailed means that the sandbox's own system refused or failed; its
	// programs decide that, and the message may be theirs.
	GuestFailed Code = "guest_failed"
	// CutByPause means that a call or a stream ended because the sandbox was paused.
	// It can be resumed.
	CutByPause Code = "paused"
	// NotResponding means that the sandbox runs and its guest does not answer. Trying
	// again at once does not help; see Unresponsive.
	NotResponding Code = "unresponsive"
)

// Error is a failure with a message for the user and a cause for the operator. The
// message says what to do if the user can do something; it never contains secrets
// or paths of the host.
type Error struct {
	Code    Code
	Message string
	Err     error // the cause; may be nil
}

// Errorf makes an Error without a cause. The message is for the user.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first Error in err's chain; Internal when
// there is none, and "" for a nil err.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// ErrPortClosed means that no program in the running sandbox listens on the port.
var ErrPortClosed = Errorf(FailedPrecondition, "the port is not open: no program in the sandbox listens on it")
