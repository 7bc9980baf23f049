package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"wrenn.dev/client"
	"wrenn.dev/internal/programs"
	"wrenn.dev/internal/run"
)

const (
	// killAfter is how long a command may take to end after SIGTERM.
	killAfter = 5 * time.Second
	// inputChunk is how many bytes of input are read at once.
	inputChunk = 64 << 10
	// codeSignal is what shells add to the number of the signal that ended a command.
	codeSignal = 128
)

type execFlags struct {
	Env  map[string]string `short:"e" placeholder:"NAME=VALUE" mapsep:"none" help:"An environment variable; may be repeated."`
	File []string          `name:"env-file" type:"path" sep:"none" placeholder:"FILE" help:"A file with a NAME=VALUE a line; # begins a comment. May be repeated; --env wins."`
	Cwd  string            `short:"C" placeholder:"DIR" help:"Its working directory; default: the user's home."`
	User string            `short:"u" placeholder:"USER" help:"The user that runs it; default: the template's default user."`
}

type execCommand struct {
	execFlags

	Interactive bool  `short:"i" hidden:"" help:"Input is always passed on."`
	Detach      bool  `short:"d" help:"Return when it runs, and print its process id. Its output goes to a file, which logs --program PID shows."`
	Tty         bool  `short:"t" help:"Give it a terminal; input and output are this terminal if there is one."`
	NoStdin     bool  `short:"n" help:"Give it no input. Needed in shell loops that read a list, because the command would read the list."`
	Timeout     span  `placeholder:"TIME" help:"Kill it after this time, such as 90s, and exit with 124; default: never."`
	Attach      count `placeholder:"PID" help:"Follow a command that is already running instead of starting one."`

	ID      string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Command []string `arg:"" optional:"" passthrough:"partial" help:"The command and its arguments. It is not run by a shell: use sh -c '...' for pipes."`
}

// Run ends with the command's exit code.
func (c *execCommand) Run(ctx context.Context, s *session) error {
	command := afterDashes(c.Command)
	if c.Detach && (c.Tty || c.Attach != 0) {
		return fmt.Errorf("%w: -d goes with neither -t nor --attach", run.ErrUsage)
	}
	if (len(command) == 0) == (c.Attach == 0) {
		return errors.New("give the command to run after the sandbox's id, or --attach PID")
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	if c.Tty && s.json() {
		return fmt.Errorf("%w: -o json is not for a command with a terminal: leave out -t", run.ErrUsage)
	}
	env, err := c.environment()
	if err != nil {
		return err
	}
	if c.Detach {
		return c.detach(ctx, s, api, client.Command{Cmd: command[0], Args: command[1:], Env: env, Cwd: c.Cwd, User: c.User, Timeout: c.Timeout.Duration})
	}
	p := &program{s: s, id: c.ID, tty: c.Tty, input: !c.NoStdin}
	if c.Attach != 0 {
		p.attached = true
		return p.follow(ctx, func(ctx context.Context) (*client.Stream, error) { return api.Attach(ctx, c.ID, int(c.Attach)) })
	}
	return p.start(ctx, api, client.Command{
		Cmd: command[0], Args: command[1:], Env: env, Cwd: c.Cwd, User: c.User, Timeout: c.Timeout.Duration,
	})
}

// loginShell is a command that runs bash, else sh.
func loginShell() []string {
	return []string{"/bin/sh", "-c", programs.LoginShell}
}

// afterDashes returns argv without a leading "--", which separates a command from wrenn's flags.
func afterDashes(argv []string) []string {
	if len(argv) > 0 && argv[0] == "--" {
		return argv[1:]
	}
	return argv
}

type shellCommand struct {
	execFlags

	ID    string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Shell []string `arg:"" optional:"" passthrough:"partial" help:"The shell; default: bash, else sh, as a login shell."`
}

// Run ends with the shell's exit code.
func (c *shellCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	shell := afterDashes(c.Shell)
	if len(shell) == 0 {
		shell = loginShell()
	}
	env, err := c.environment()
	if err != nil {
		return err
	}
	if s.json() {
		return fmt.Errorf("%w: -o json is not for shell: use exec", run.ErrUsage)
	}
	// Without a terminal, such as with a script as input, a terminal in the sandbox would never end its input.
	p := &program{s: s, id: c.ID, tty: terminal(s.In) != nil, input: true}
	return p.start(ctx, api, client.Command{Cmd: shell[0], Args: shell[1:], Env: env, Cwd: c.Cwd, User: c.User})
}

// program is a command in a sandbox that has this program's input and output.
type program struct {
	s     *session
	id    string
	tty   bool // the command has a terminal
	input bool // the command has input
	// attached means that another client started the command: the end of this input must not end the command's input.
	attached bool
}

func (p *program) start(ctx context.Context, api *client.Client, cmd client.Command) error {
	opts := client.StartOptions{Stdin: p.input && !p.tty}
	if p.tty {
		opts.PTY = new(p.size())
		if name := p.s.Environ("TERM"); name != "" && cmd.Env["TERM"] == "" {
			env := map[string]string{"TERM": name}
			maps.Copy(env, cmd.Env)
			cmd.Env = env
		}
	}
	return p.follow(ctx, func(ctx context.Context) (*client.Stream, error) {
		stream, err := api.Start(ctx, p.id, cmd, opts)
		return stream, p.unstarted(ctx, api, err)
	})
}

// Exit codes of shells for commands that could not be started.
const (
	codeNotFound      = 127
	codeNotExecutable = 126
)

// codeTimeout is that of timeout(1) for a command that it killed.
const codeTimeout = 124

// unstarted adds to the error of a command that could not be started the exit
// code that shells use, unless the sandbox itself is missing.
func (p *program) unstarted(ctx context.Context, api *client.Client, err error) error {
	code := map[client.Code]int{
		client.NotFound: codeNotFound, client.Forbidden: codeNotExecutable, client.InvalidRequest: codeNotExecutable,
	}[client.CodeOf(err)]
	if code == 0 {
		return err
	}
	if _, missing := api.Sandbox(ctx, p.id); missing != nil {
		return err
	}
	return &coded{err, code}
}

// coded is an error with an exit code for this program.
type coded struct {
	error
	code int
}

func (e *coded) ExitCode() int { return e.code }
func (e *coded) Unwrap() error { return e.error }

// size returns the terminal's size, or the classic 80 by 24.
func (p *program) size() client.Size {
	if f := terminal(p.s.Out); f != nil {
		if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
			return client.Size{Cols: cols, Rows: rows}
		}
	}
	return client.Size{Cols: 80, Rows: 24}
}

// follow connects this program's streams to the command until it ends. When ctx
// ends, follow ends the command.
func (p *program) follow(ctx context.Context, open func(context.Context) (*client.Stream, error)) error {
	// Without this, a reader that exits early, such as head, or a terminal that
	// closes would kill this program and leave the command running.
	run.SurviveBrokenPipes()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)

	// Once the command runs, the end of ctx must end the command, which needs the
	// stream: the stream's context ends with ctx only until then.
	lasting, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	started := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	stop := func() {}
	if terminal(p.s.Err) != nil { // otherwise standard error must have only the command's output
		stop = p.s.progress(func() string { return "starting the command" })
	}
	stream, err := open(lasting)
	stop()
	started()
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // it cannot fail
	restore, err := p.raw()
	if err != nil {
		_ = stream.Signal(client.SIGKILL) // the command is useless without its terminal
		return err
	}
	defer restore()
	wanted, end := context.WithCancel(ctx) // when it ends, endOn ends the command
	defer end()
	stdout, stderr := p.outputs()
	out, errOut := &sink{w: stdout, end: end}, &sink{w: stderr, end: end}
	ended := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() { p.passSizes(stream, ended) })
	helpers.Go(func() { p.endOn(wanted, signals, stream, ended) })
	if p.input {
		// Nothing wakes a read of a terminal: this goroutine ends with the program.
		go p.passInput(stream)
	}
	exit, err := stream.Copy(out, errOut)
	close(ended)
	_ = stream.Close() // ends Resize and Signal
	helpers.Wait()
	restore()
	if err == nil {
		err = p.report(exit, stdout, stderr)
	}
	if ctx.Err() != nil && err == nil && exit.Code < 0 {
		return exitCode(codeSignal + int(syscall.SIGINT)) // it ended because of Ctrl-C, whichever signal was sent for that
	}
	return p.result(exit, err, stream.PID(), errors.Join(out.err, errOut.err))
}

// result returns the error with which this program ends. err is the stream's
// error, lost that of this program's output.
func (p *program) result(exit client.Exit, err error, pid int, lost error) error {
	switch {
	case errors.Is(lost, syscall.EPIPE):
		return exitCode(codeSignal + int(syscall.SIGPIPE))
	case lost != nil:
		return fmt.Errorf("print the command's output: %w", lost)
	case client.CodeOf(err) == client.InvalidState, client.CodeOf(err) == client.NotFound:
		return err // the sandbox is gone, and the command with it
	case err != nil:
		return fmt.Errorf("%w\nIf the command still runs, follow it with: wrenn sandbox exec --attach %d %s", err, pid, p.id)
	case exit.Reason == client.EndTimeout:
		return &coded{errors.New("the command did not end in time and was killed: give it a longer --timeout"), codeTimeout}
	case exit.Reason == client.EndOutOfMemory:
		fmt.Fprintln(p.s.Err, "the command was killed because the sandbox ran out of memory")
	}
	return exitOf(exit)
}

// sink is an output of this program. When a write fails, sink calls end to end
// the command, and drops what the command prints until then.
type sink struct {
	w   io.Writer
	end func()
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.err == nil {
		if _, s.err = s.w.Write(p); s.err != nil {
			s.end()
		}
	}
	return len(p), nil
}

// raw passes every key to the command, including Ctrl-C. The function that it
// returns undoes that; twice is allowed.
func (p *program) raw() (restore func(), err error) {
	f := terminal(p.s.In)
	if !p.tty || f == nil {
		return func() {}, nil
	}
	before, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("use the terminal: %w", err)
	}
	return sync.OnceFunc(func() { _ = term.Restore(int(f.Fd()), before) }), nil
}

// passInput sends the input to the command, and its end.
func (p *program) passInput(stream *client.Stream) {
	buffer := make([]byte, inputChunk)
	last := byte('\n')
	for {
		n, err := p.s.In.Read(buffer)
		if n > 0 {
			if _, err := stream.Write(buffer[:n]); err != nil {
				return // the command or the stream ended, which Copy reports
			}
			last = buffer[n-1]
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			fmt.Fprintf(p.s.Err, "read the input: %v\r\n", err)
		}
		if !p.attached {
			p.endInput(stream, last) // as for Write above
		}
		return
	}
}

// endOfInput is what a terminal takes for the end of its input, see termios(3), VEOF.
const endOfInput = "\x04"

// endInput ends the command's input. last is the last byte of it.
func (p *program) endInput(stream *client.Stream, last byte) {
	if !p.tty {
		_ = stream.CloseStdin()
		return
	}
	end := endOfInput
	if last != '\n' {
		end += endOfInput // the first one ends the line
	}
	_, _ = io.WriteString(stream, end)
}

// passSizes resizes the command's terminal with this one.
func (p *program) passSizes(stream *client.Stream, ended <-chan struct{}) {
	if !p.tty {
		return
	}
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	defer signal.Stop(changes)
	for {
		select {
		case <-ended:
			return
		case <-changes:
			_ = stream.Resize(p.size()) // Copy reports a broken stream
		}
	}
}

// endOn ends the command when ctx ends or the terminal is gone: first by SIGTERM,
// after killAfter by SIGKILL.
func (p *program) endOn(ctx context.Context, signals <-chan os.Signal, stream *client.Stream, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	case <-signals:
	}
	_ = stream.Signal(client.SIGTERM)
	select {
	case <-ended:
	case <-time.After(killAfter):
		_ = stream.Signal(client.SIGKILL)
	}
}

// exitOf returns the error with which this program ends after the command's exit.
func exitOf(exit client.Exit) error {
	if exit.Code == 0 {
		return nil
	}
	if exit.Code > 0 {
		return exitCode(exit.Code)
	}
	// As in shells: 128 plus the signal's number. The server sends the signal's name.
	name := strings.TrimSuffix(strings.TrimPrefix(exit.Status, "signal: "), " (core dumped)")
	for n := syscall.Signal(1); n < 32; n++ {
		if n.String() == name {
			return exitCode(codeSignal + int(n))
		}
	}
	return exitCode(codeSignal)
}
