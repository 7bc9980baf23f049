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
	PTY       *PTYSize // a terminal instead of pipes
}

// PTYSize is the size of a terminal in characters.
type PTYSize struct{ Cols, Rows int }

// ExecOutput is one thing that happened to a running command; exactly one
// field is set.
type ExecOutput struct {
	PID                 int // the first thing
	Stdout, Stderr, PTY []byte
	Exit                *ExecExit // the last thing
	Keepalive           bool      // nothing happened for a while
}

// ExecExit says how a command ended.
type ExecExit struct {
	Code   int // -1 when a signal ended it
	Status string
}
