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

	"wrenn/client"
	"wrenn/internal/run"
)

const (
	// patience is how long a command may take to end itself after SIGTERM.
	patience = 5 * time.Second
	// inputChunk is what is read of the input at once.
	inputChunk = 64 << 10
	// codeSignal is what shells add to the signal that ended a command.
	codeSignal = 128
)

type execFlags struct {
	Env  map[string]string `short:"e" placeholder:"NAME=VALUE" mapsep:"none" help:"An environment variable; may be repeated."`
	Cwd  string            `short:"C" placeholder:"DIR" help:"Where it starts; default: the user's home."`
	User string            `short:"u" placeholder:"USER" help:"Who runs it; default: the template's user."`
}

type execCommand struct {
	execFlags

	Tty     bool          `short:"t" help:"Give it a terminal, this one when there is one."`
	NoStdin bool          `short:"n" help:"Give it no input; in loops of a shell, whose input it would take."`
	Timeout time.Duration `placeholder:"TIME" help:"Kill it after so long; default: never."`
	Attach  int           `placeholder:"PID" help:"Follow a command that runs already, instead of running one."`

	ID      string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Command []string `arg:"" optional:"" passthrough:"partial" help:"The command and its arguments. No shell is involved: use sh -c '...' for pipes."`
}

// Run ends with the command's exit code.
func (c *execCommand) Run(ctx context.Context, s *session) error {
	command := afterDashes(c.Command)
	if (len(command) == 0) == (c.Attach == 0) {
		return errors.New("give the command to run after the sandbox's id, or --attach PID")
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	p := &program{s: s, id: c.ID, tty: c.Tty, input: !c.NoStdin}
	if c.Attach != 0 {
		p.visits = true
		return p.follow(ctx, func(ctx context.Context) (*client.Stream, error) { return api.Attach(ctx, c.ID, c.Attach) })
	}
	return p.start(ctx, api, client.Command{
		Cmd: command[0], Args: command[1:], Env: c.Env, Cwd: c.Cwd, User: c.User, Timeout: c.Timeout,
	})
}

// afterDashes is a command without the "--" that may set it off from our flags.
func afterDashes(argv []string) []string {
	if len(argv) > 0 && argv[0] == "--" {
		return argv[1:]
	}
	return argv
}

type shellCommand struct {
	execFlags

	ID    string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Shell []string `arg:"" optional:"" passthrough:"partial" help:"The shell; default: bash, else sh, as at a login."`
}

// Run ends with the shell's exit code.
func (c *shellCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	shell := afterDashes(c.Shell)
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c", "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi"}
	}
	p := &program{s: s, id: c.ID, tty: true, input: true}
	return p.start(ctx, api, client.Command{Cmd: shell[0], Args: shell[1:], Env: c.Env, Cwd: c.Cwd, User: c.User})
}

// program is a command in a sandbox that has this program's input and output.
type program struct {
	s     *session
	id    string
	tty   bool // it has a terminal
	input bool // it has input
	// visits says that somebody else started it: the end of this input is not the end of its input.
	visits bool
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

// Exit codes of shells for commands that did not begin.
const (
	codeNotFound      = 127
	codeNotExecutable = 126
)

// unstarted gives the error of a command that could not begin the exit code
// that shells have for it, unless it is the sandbox that is missing.
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

// coded is an error that names the program's exit code.
type coded struct {
	error
	code int
}

func (e *coded) ExitCode() int { return e.code }
func (e *coded) Unwrap() error { return e.error }

// size is that of the terminal, or what terminals used to have.
func (p *program) size() client.Size {
	if f := terminal(p.s.Out); f != nil {
		if cols, rows, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 && rows > 0 {
			return client.Size{Cols: cols, Rows: rows}
		}
	}
	return client.Size{Cols: 80, Rows: 24}
}

// follow connects the command until it ends. The end of ctx ends the command.
func (p *program) follow(ctx context.Context, open func(context.Context) (*client.Stream, error)) error {
	// A reader that goes away, as head does, and a terminal that closes would
	// kill this program, and leave the command running without it.
	run.SurviveBrokenPipes()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)

	// Once the command runs, the end of ctx is a wish to end it, which needs the stream.
	lasting, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	started := context.AfterFunc(ctx, func() { giveUp(context.Cause(ctx)) })
	stop := func() {}
	if terminal(p.s.Err) != nil { // elsewhere standard error is the command's alone
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
		_ = stream.Signal(client.SIGKILL) // nobody could use it
		return err
	}
	defer restore()
	wanted, end := context.WithCancel(ctx) // its end is the wish that the command ends
	defer end()
	out, errOut := &sink{w: p.s.Out, end: end}, &sink{w: p.s.Err, end: end}
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
	_ = stream.Close() // wakes who sends
	helpers.Wait()
	restore()
	if ctx.Err() != nil && err == nil && exit.Code < 0 {
		return exitCode(codeSignal + int(syscall.SIGINT)) // it ended because of Ctrl-C, by whichever signal that was passed on
	}
	return p.result(exit, err, stream.PID(), errors.Join(out.err, errOut.err))
}

// result is how this program ends: err is of the stream, lost of the output here.
func (p *program) result(exit client.Exit, err error, pid int, lost error) error {
	switch {
	case errors.Is(lost, syscall.EPIPE):
		return exitCode(codeSignal + int(syscall.SIGPIPE))
	case lost != nil:
		return fmt.Errorf("print what the command prints: %w", lost)
	case client.CodeOf(err) == client.InvalidState, client.CodeOf(err) == client.NotFound:
		return err // the sandbox is gone, and the command with it
	case err != nil:
		return fmt.Errorf("%w\nIf the command still runs, follow it with: wrenn sandbox exec --attach %d %s", err, pid, p.id)
	}
	return exitOf(exit)
}

// sink is an output. When it is gone the command is to end: what it prints
// until then is dropped.
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

// raw hands every key to the command, Ctrl-C too. The function that it returns
// undoes that; twice is allowed.
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

// passInput sends what is read, and its end.
func (p *program) passInput(stream *client.Stream) {
	buffer := make([]byte, inputChunk)
	for {
		n, err := p.s.In.Read(buffer)
		if n > 0 {
			if _, err := stream.Write(buffer[:n]); err != nil {
				return // the command ended, or the stream, which Copy tells
			}
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			fmt.Fprintf(p.s.Err, "read the input: %v\r\n", err)
		}
		if !p.visits {
			_ = stream.CloseStdin() // as above
		}
		return
	}
}

// passSizes tells the command how large the terminal is now.
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
			_ = stream.Resize(p.size()) // a stream that broke is Copy's to tell
		}
	}
}

// endOn ends the command when ctx ends or the terminal is gone: first as a
// polite wish, then for good.
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
	case <-time.After(patience):
		_ = stream.Signal(client.SIGKILL)
	}
}

// exitOf is how this program ends for that end of the command.
func exitOf(exit client.Exit) error {
	if exit.Code == 0 {
		return nil
	}
	if exit.Code > 0 {
		return exitCode(exit.Code)
	}
	// As shells do: 128 and the signal, which is told by its name.
	name := strings.TrimSuffix(strings.TrimPrefix(exit.Status, "signal: "), " (core dumped)")
	for n := syscall.Signal(1); n < 32; n++ {
		if n.String() == name {
			return exitCode(codeSignal + int(n))
		}
	}
	return exitCode(codeSignal)
}
