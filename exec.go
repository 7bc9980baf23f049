package wrenn

import "time"

// ExecCommand is a program to run in a sandbox.
type ExecCommand struct {
	Cmd     string // looked up in PATH when it has no slash
	Args    []string
	Env     map[string]string // on top of the sandbox's
	Cwd     string            // "" is the user's default
	User    string            // "" is the template's default user
	Timeout time.Duration     // until it is killed; 0 is the default of who runs it
	Stdin   []byte            // the whole input; nil is none
}

// ExecResult is a command that ended.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int    // -1 when a signal ended it
	Status         string // "exit status 3", "signal: killed"
	Truncated      bool   // an output went on after its limit; the rest is lost
	Duration       time.Duration
}

// ExecStart is a command whose output is watched as it comes. Stdin of the
// command is unused: input comes by the stream. A Timeout of 0 is never.
type ExecStart struct {
	ExecCommand
	WantStdin bool
	PTY       *PTYSize    // a terminal instead of pipes
	Session   ExecSession // a start that is repeated with it follows what the first one started
}

// ExecAttach says which command to watch, and from where.
type ExecAttach struct {
	PID     int // 0: the one that has Session, which is resumed
	Session ExecSession
	// Offset is the position in the output to begin at; nil is where the session
	// acknowledged, or now.
	Offset *uint64
}

// ExecSession makes a stream one that can be resumed: when it is lost, output
// that was not acknowledged is kept for Hold, up to a size at which the command waits.
type ExecSession struct {
	ID   string        // random, chosen by the caller; "" is a stream that cannot be resumed
	Hold time.Duration // in whole seconds; 0 is a minute
}

// PTYSize is the size of a terminal in characters.
type PTYSize struct{ Cols, Rows int }

// ExecOutput is one thing that happened to a running command; exactly one
// field is set, and what is said to go with it.
type ExecOutput struct {
	Started             *ExecStarted // the first thing
	Stdout, Stderr, PTY []byte
	Offset              uint64    // of the first byte of output; of streams with a session or an offset
	Taken               *uint64   // how much of the session's input need not be sent again
	Exit                *ExecExit // the last thing
	Keepalive           bool      // nothing happened for a while
}

// ExecStarted says where a stream begins.
type ExecStarted struct {
	PID    int
	Offset uint64 // of the first byte of output that comes
	Lost   uint64 // how much of what was asked for is gone; it came right before
	Taken  uint64 // of the session's input
}

// ExecExit says how a command ended.
type ExecExit struct {
	Code   int // -1 when a signal ended it
	Status string
}
