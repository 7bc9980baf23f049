package wrenn

import "regexp"

// Codes returns the closed set.
func Codes() []Code {
	return []Code{
		Invalid, NotFound, AlreadyExists, FailedPrecondition, Exhausted, PermissionDenied, Unauthenticated, Unavailable,
		DeadlineExceeded, Canceled, Internal, NoSpace, GuestFailed, CutByPause, NotResponding,
	}
}

// internals finds in a message what only operators understand: errors of the
// network and of RPC as Go words them, and addresses between a host and its guests.
// The patterns are narrow, because a message may quote what its caller sent.
var internals = regexp.MustCompile(`\b(?:dial|read|write) (?:tcp[46]?|udp[46]?|unix) \S|\b169\.254\.\d+\.\d+:\d+|incomplete envelope|protocol error: |` +
	`use of closed network connection|\bi/o timeout\b|context (?:deadline exceeded|canceled)|http2: |net/http: |\bqmp [a-z-]+: |\bQMP connection\b|` +
	`\bnetwork slot\b|\b(?:unexpected EOF|SQLSTATE|goroutine \d)`)

// generalMessages are what is shown instead of a message with internals.
var generalMessages = map[Code]string{
	Invalid:            "the request is not valid",
	NotFound:           "that does not exist",
	AlreadyExists:      "that exists already",
	FailedPrecondition: "the sandbox is not in a state that allows this",
	Exhausted:          "a limit is reached",
	PermissionDenied:   "that is not allowed",
	Unauthenticated:    "the request has no valid credentials",
	Unavailable:        "the sandbox or its host cannot be reached; try again in a moment",
	DeadlineExceeded:   "the time was up",
	Canceled:           "canceled",
	NoSpace:            "the sandbox's file system is full",
	GuestFailed:        "the sandbox's agent failed",
	CutByPause:         "the sandbox was paused",
	NotResponding:      "the sandbox does not answer",
}

// PublicMessage returns the message as users get it. One that has internals of the
// platform in it, by a mistake, is replaced by a general one for the code; Error and
// Message still have it for the log.
func (e *Error) PublicMessage() string {
	if e.Message != "" && !internals.MatchString(e.Message) {
		return e.Message
	}
	if general, ok := generalMessages[e.Code]; ok {
		return general
	}
	return "internal error"
}
