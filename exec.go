package wrenn

import "time"

// ExecCommand is a program to run in a sandbox.
type ExecCommand struct {
	Cmd     string // looked up in PATH when it has no slash
	Args    []string
	Env     map[string]string // on top of the sandbox's
	Cwd     string            // "" is the user's default
	User    string            // "" is the template's default user
	Timeout time.Duration     // until it is killed; 0 is DefaultExecTimeout
	Stdin   []byte            // the whole input; nil is none
}

// ExecResult is how a command that was run to its end went.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int    // -1 when a signal ended it
	Status         string // "exit status 3", "signal: killed"
	Reason         EndReason
	Truncated      bool // an output exceeded its limit; the rest is lost
	Duration       time.Duration
}

// ExecStart is a command whose output is streamed. Stdin of the command is
// unused: input comes by the stream. A Timeout of 0 is never.
type ExecStart struct {
	ExecCommand
	WantStdin bool
	PTY       *PTYSize    // a terminal instead of pipes
	Session   ExecSession // a start that is repeated with it follows the command of the first one
}

// ExecAttach names a running command to follow, and where in its output to begin.
type ExecAttach struct {
	PID     int // 0: the command of Session, which is resumed
	Session ExecSession
	// Offset is the position in the output to begin at; nil is where the session
	// acknowledged, or now.
	Offset *uint64
}

// ExecSession makes a stream resumable: when it is lost, output that was not
// acknowledged is kept for Hold, up to a size at which the command waits.
type ExecSession struct {
	ID   string        // random, chosen by the caller; "" is a stream that cannot be resumed
	Hold time.Duration // in whole seconds; 0 is a minute
}

// PTYSize is the size of a terminal in characters.
type PTYSize struct{ Cols, Rows int }

// Signal is a signal that can be sent to a command's process group.
type Signal string

// The signals.
const (
	SIGTERM Signal = "SIGTERM"
	SIGKILL Signal = "SIGKILL"
)

// ExecInput is one event from the caller of a streamed command; exactly one
// field is set.
type ExecInput struct {
	Stdin      []byte
	CloseStdin bool // the end of the input
	Resize     *PTYSize
	Signal     Signal
	Ack        *uint64 // the caller has all output before this position
	Leave      bool    // the session is over: nothing is kept for it
}

// ExecOutput is one event of a streamed command; exactly one field is set, and
// Offset with output.
type ExecOutput struct {
	Started             *ExecStarted // the first event
	Stdout, Stderr, PTY []byte
	Offset              uint64    // of the first byte of output; 0 without a session or an offset
	Taken               *uint64   // how much of the session's input need not be sent again
	Exit                *ExecExit // the last event
	Keepalive           bool      // nothing happened for a while
}

// ExecStarted is where a stream begins.
type ExecStarted struct {
	PID    int
	Offset uint64 // of the first byte of output that comes
	Lost   uint64 // how much output right before Offset was asked for and is gone
	Taken  uint64 // how much of the session's input need not be sent again
}

// ExecExit is how a command ended.
type ExecExit struct {
	Code   int // -1 when a signal ended it
	Status string
	Reason EndReason
}

// EndReason is why a command ended. The API's document lists the same set.
type EndReason string

// The reasons.
const (
	EndUnknown     EndReason = ""              // what runs it is of an older version
	EndExited      EndReason = "exited"        // by itself
	EndSignaled    EndReason = "signaled"      // by a signal of a caller's
	EndTimeout     EndReason = "timeout"       // its Timeout passed, and it was killed
	EndOutOfMemory EndReason = "out_of_memory" // the kernel killed it, or what it started
)
