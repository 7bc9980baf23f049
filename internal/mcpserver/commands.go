package mcpserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/programs"
)

const (
	maxCommand = 64 << 10
	maxInput   = 1 << 20
	maxOutput  = 256 << 10 // of each output of one answer
	// defaultOutput is small: two such outputs are about as much as clients show a model.
	defaultOutput  = 16 << 10
	maxRunSeconds  = 3600
	maxWaitSeconds = 300
	maxPID         = 1 << 22 // of Linux on 64 bits
	maxPath        = 4095

	// killGrace is how long a canceled call may take to start its command and to kill it.
	killGrace = 30 * time.Second

	shell = "/bin/sh"
	// bashIfAny runs its argument by bash, which models write, or by sh.
	bashIfAny = `if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; else exec sh -c "$1"; fi`
	// root reads the outputs of programs of all users.
	root = "root"
)

func (s *Server) addCommandTools() error {
	return errors.Join(
		add(s, tool{
			name: "run_command", title: "Run a command", destroys: true, outside: true,
			text: "Runs a shell command in the sandbox and returns its output and exit code when it ends. Nothing of the shell stays for the next call: use cwd instead of cd. " +
				"A command that is still running after timeout_seconds is killed, and timed_out is true. For servers and for what takes long use start_program. A long output is cut in the middle.",
			bounds: bounds{
				"command": {min: 1, max: maxCommand}, "cwd": {max: maxPath}, "stdin": {max: maxInput},
				"timeout_seconds": {min: 1, max: maxRunSeconds, initial: 60}, "max_output_bytes": {min: 256, max: maxOutput, initial: defaultOutput},
			},
		}, runCommand),
		add(s, tool{
			name: "start_program", title: "Start a program in the background", destroys: true, outside: true,
			text: "Starts a shell command that keeps running, such as a server or a long build, and returns its program_id at once. read_output shows what it printed and whether it ended; stop_program ends it. " +
				"Its output goes to a file in the sandbox.",
			bounds: bounds{"command": {min: 1, max: maxCommand}, "cwd": {max: maxPath}},
		}, startProgram),
		add(s, tool{
			name: "read_output", title: "Read a program's output", reads: true,
			text: "Returns what a program printed that start_program started, standard output and errors together, and whether it still runs. Without offset it is the end of the output; " +
				"pass next_offset as offset to read what came after. wait_seconds waits until the program ends, at most so long.",
			bounds: bounds{
				"program_id": {min: 1, max: maxPID}, "offset": {min: 0, max: 1 << 40},
				"wait_seconds": {min: 0, max: maxWaitSeconds, initial: 0}, "max_bytes": {min: 256, max: maxOutput, initial: defaultOutput},
			},
		}, readOutput),
		add(s, tool{
			name: "stop_program", title: "Stop a program", destroys: true, repeats: true,
			text:   "Ends a program that start_program started, and what it started: first by SIGTERM, and if it does not end within grace_seconds by SIGKILL.",
			bounds: bounds{"program_id": {min: 1, max: maxPID}, "grace_seconds": {min: 0, max: 60, initial: 5}},
		}, stopProgram),
	)
}

type commandInput struct {
	target

	Command string            `json:"command" jsonschema:"run by bash, or by sh if the sandbox has no bash"`
	Cwd     string            `json:"cwd,omitempty" jsonschema:"working directory; default: the user's home"`
	Env     map[string]string `json:"env,omitempty" jsonschema:"environment variables"`
	User    string            `json:"user,omitempty" jsonschema:"the user that runs it, such as root; default: the template's user"`
}

// shellCommand returns the command that runs the agent's text.
func (in commandInput) shellCommand() client.Command {
	return client.Command{Cmd: shell, Args: []string{"-c", bashIfAny, "sh", in.Command}, Env: in.Env, Cwd: in.Cwd, User: in.User}
}

type runInput struct {
	commandInput

	Stdin          string `json:"stdin,omitempty" jsonschema:"standard input; default: empty"`
	TimeoutSeconds int    `json:"timeout_seconds,omitempty" jsonschema:"after which it is killed. Many clients give up earlier, often after 60"`
	MaxOutputBytes int    `json:"max_output_bytes,omitempty" jsonschema:"of each of the two outputs; what is more is cut in the middle"`
}

type runOutput struct {
	ExitCode   int    `json:"exit_code" jsonschema:"-1 if a signal ended it"`
	Status     string `json:"status,omitempty" jsonschema:"how it ended, unless it exited with 0"`
	TimedOut   bool   `json:"timed_out,omitempty" jsonschema:"it was killed after timeout_seconds"`
	NoMemory   bool   `json:"out_of_memory,omitempty" jsonschema:"it was killed because the sandbox ran out of memory"`
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
	StdoutCut  int64  `json:"stdout_cut_bytes,omitempty" jsonschema:"how many bytes of the middle are not in stdout"`
	StderrCut  int64  `json:"stderr_cut_bytes,omitempty" jsonschema:"how many bytes of the middle are not in stderr"`
	DurationMS int64  `json:"duration_ms"`
}

// runCommand kills the command when ctx ends.
func runCommand(ctx context.Context, c call, in runInput) (runOutput, error) {
	cmd := in.shellCommand()
	cmd.Timeout = time.Duration(in.TimeoutSeconds) * time.Second
	stdout, stderr := newClip(in.MaxOutputBytes), newClip(in.MaxOutputBytes)
	began := time.Now()
	exit, err := c.run(ctx, in.SandboxID, cmd, in.Stdin, stdout, stderr)
	if err != nil {
		return runOutput{}, err
	}
	out := runOutput{
		ExitCode: exit.Code, TimedOut: exit.Reason == client.EndTimeout, NoMemory: exit.Reason == client.EndOutOfMemory, DurationMS: time.Since(began).Milliseconds(),
	}
	if exit.Code != 0 {
		out.Status = exit.Status
	}
	out.Stdout, out.StdoutCut = stdout.text()
	out.Stderr, out.StderrCut = stderr.text()
	return out, nil
}

// run runs a command to its end. When ctx ends, the command is killed.
func (c call) run(ctx context.Context, id string, cmd client.Command, input string, stdout, stderr io.Writer) (client.Exit, error) {
	// The stream must outlive ctx to kill the command, also if it is just being started.
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(killGrace, cancel) })()
	stream, err := c.Start(lasting, id, cmd, client.StartOptions{Stdin: input != ""})
	if err != nil {
		return client.Exit{}, err
	}
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer func() { _ = stream.Close() }()                                        // it cannot fail, and ends the helpers
	defer context.AfterFunc(ctx, func() { _ = stream.Signal(client.SIGKILL) })() // or it has ended
	if input != "" {
		helpers.Go(func() {
			if _, err := io.WriteString(stream, input); err == nil { // else it ended without reading all
				_ = stream.CloseStdin()
			}
		})
	}
	exit, err := stream.Copy(stdout, stderr)
	if ctx.Err() != nil {
		return client.Exit{}, context.Cause(ctx)
	}
	return exit, err
}

type programOutput struct {
	ProgramID int    `json:"program_id"`
	Log       string `json:"log" jsonschema:"the file in the sandbox that has its output"`
}

func startProgram(ctx context.Context, c call, in commandInput) (programOutput, error) {
	stream, err := c.Start(ctx, in.SandboxID, programs.Recorded(in.shellCommand()), client.StartOptions{})
	if err != nil {
		return programOutput{}, err
	}
	pid := stream.PID()
	return programOutput{ProgramID: pid, Log: programs.Log(pid)}, stream.Close()
}

type outputInput struct {
	target

	ProgramID   int    `json:"program_id" jsonschema:"as start_program returned it"`
	Offset      *int64 `json:"offset,omitempty" jsonschema:"where to begin, in bytes; default: max_bytes before the end"`
	WaitSeconds int    `json:"wait_seconds,omitempty" jsonschema:"wait until the program ends, at most so long"`
	MaxBytes    int    `json:"max_bytes,omitempty" jsonschema:"how much output to return at most"`
}

type outputOutput struct {
	Running    bool   `json:"running"`
	ExitCode   *int   `json:"exit_code,omitempty" jsonschema:"absent while it runs, and if a signal ended it"`
	Output     string `json:"output"`
	Offset     int64  `json:"offset" jsonschema:"where output begins"`
	NextOffset int64  `json:"next_offset" jsonschema:"where output ends: the next offset"`
	TotalBytes int64  `json:"total_bytes" jsonschema:"of all output until now"`
}

func readOutput(ctx context.Context, c call, in outputInput) (outputOutput, error) {
	running, err := c.waitFor(ctx, in.SandboxID, in.ProgramID, time.Duration(in.WaitSeconds)*time.Second)
	if err != nil {
		return outputOutput{}, err
	}
	begin := int64(-1)
	if in.Offset != nil {
		begin = *in.Offset
	}
	out, found, err := c.output(ctx, in.SandboxID, in.ProgramID, begin, in.MaxBytes)
	if err == nil && !found && !running {
		return outputOutput{}, fmt.Errorf("there is no output of a program %d: use the program_id that start_program returned", in.ProgramID)
	}
	out.Running = running && out.ExitCode == nil
	return out, err
}

// output returns a part of a program's output, and reports whether it has any: one that
// has just started may have none yet.
func (c call) output(ctx context.Context, id string, pid int, begin int64, most int) (out outputOutput, found bool, err error) {
	result, err := c.Exec(ctx, id, client.Command{
		Cmd: shell, User: root,
		Args: []string{"-c", programs.ReadScript, "sh", programs.Log(pid), strconv.FormatInt(begin, 10), strconv.Itoa(most)},
	})
	if err != nil || result.ExitCode != 0 {
		return out, false, err
	}
	out, err = parseOutput(result.Stdout)
	return out, true, err
}

// parseOutput reads what programs.ReadScript prints.
func parseOutput(text []byte) (out outputOutput, err error) {
	header, rest, _ := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(header))
	if len(fields) < 2 || len(fields) > 3 {
		return out, errors.New("the sandbox has changed the shell or its tools: the output cannot be read")
	}
	var failed error
	if out.TotalBytes, failed = strconv.ParseInt(fields[0], 10, 64); failed != nil {
		err = failed
	}
	if out.Offset, failed = strconv.ParseInt(fields[1], 10, 64); failed != nil {
		err = failed
	}
	if len(fields) == 3 {
		code, failed := strconv.Atoi(fields[2])
		if failed != nil {
			err = failed
		}
		out.ExitCode = &code
	}
	out.Output, out.NextOffset = valid(rest), out.Offset+int64(len(rest))
	return out, err
}

// waitFor waits until a program ends, at most for d, and reports whether it still runs.
func (c call) waitFor(ctx context.Context, id string, pid int, d time.Duration) (running bool, err error) {
	stream, err := c.Attach(ctx, id, pid)
	if client.CodeOf(err) == client.NotFound {
		_, err := c.Sandbox(ctx, id) // or the sandbox is missing
		return false, err
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }() // it cannot fail
	return stillRuns(ctx, stream, d)
}

// stillRuns waits until the command of a stream ends, at most for d.
func stillRuns(ctx context.Context, stream *client.Stream, d time.Duration) (bool, error) {
	if d == 0 {
		return true, nil
	}
	late := make(chan struct{})
	timer := time.AfterFunc(d, func() {
		close(late)
		_ = stream.Close() // it cannot fail, and ends Copy
	})
	defer timer.Stop()
	_, err := stream.Copy(io.Discard, io.Discard)
	select {
	case <-late:
		return true, ctx.Err()
	default:
		return false, err
	}
}

type stopInput struct {
	target

	ProgramID    int `json:"program_id" jsonschema:"as start_program returned it"`
	GraceSeconds int `json:"grace_seconds,omitempty" jsonschema:"how long it may take to end after SIGTERM"`
}

type stopOutput struct {
	Stopped bool `json:"stopped" jsonschema:"false if it had already ended"`
}

func stopProgram(ctx context.Context, c call, in stopInput) (stopOutput, error) {
	if now, _, err := c.output(ctx, in.SandboxID, in.ProgramID, 0, 1); err != nil || now.ExitCode != nil {
		return stopOutput{}, err
	}
	stream, err := c.Attach(ctx, in.SandboxID, in.ProgramID)
	if client.CodeOf(err) == client.NotFound {
		_, err := c.Sandbox(ctx, in.SandboxID) // or the sandbox is missing
		return stopOutput{}, err
	}
	if err != nil {
		return stopOutput{}, err
	}
	defer func() { _ = stream.Close() }() // it cannot fail
	if err := stream.Signal(client.SIGTERM); err != nil {
		return stopOutput{}, err
	}
	kill := time.AfterFunc(time.Duration(in.GraceSeconds)*time.Second, func() { _ = stream.Signal(client.SIGKILL) })
	defer kill.Stop()
	_, err = stream.Copy(io.Discard, io.Discard)
	return stopOutput{Stopped: err == nil}, err
}
