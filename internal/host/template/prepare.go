package template

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
)

const (
	// readyEvery is the pause between two runs of the ready command: no event says
	// when to run it again.
	readyEvery = 500 * time.Millisecond
	// settleFor is how long a start command without a ready command runs before the
	// snapshot.
	settleFor = 5 * time.Second
	// maxTail bounds the end of a command's output that an error quotes, in bytes.
	maxTail = 2 << 10
)

// preparation runs the commands of a template in a guest before its snapshot.
type preparation struct {
	start, ready string
	user, dir    string
	timeout      time.Duration
	settle       time.Duration
	out          *output
	// defaults, if set, make the user and the directory those of the sandboxes'
	// commands. The shell is a login shell then.
	defaults *envdclient.Init
	sh       []string // the program and arguments before a command
}

// run starts the start command and waits for the ready command. A shell runs last,
// so that every sandbox has it in memory.
func (p *preparation) run(ctx context.Context, guest *envdclient.Client) (err error) {
	if p.start != "" || p.ready != "" || p.defaults != nil {
		if p.user, err = userOf(ctx, guest, p.user); err != nil {
			return err
		}
	}
	p.sh = []string{"/bin/sh", "-c"}
	if p.defaults != nil {
		if err := p.setDefaults(ctx, guest); err != nil {
			return err
		}
	}
	var started *startCommand
	if p.start != "" {
		p.out.line("starting: %s", p.start)
		if started, err = p.begin(ctx, guest); err != nil {
			return err
		}
		defer started.stop()
	}
	if err := p.await(ctx, guest, started); err != nil {
		return err
	}
	_, err = guest.Exec(ctx, wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-c", "true"}, User: "root"})
	return err
}

// setDefaults sets the user and the directory of commands that name none. The agent
// keeps them in every sandbox: its memory is in the snapshot.
func (p *preparation) setDefaults(ctx context.Context, guest *envdclient.Client) (err error) {
	if p.sh, err = loginShell(ctx, guest); err != nil {
		return err
	}
	p.defaults.User, p.defaults.Workdir = p.user, p.dir
	return guest.Init(ctx, *p.defaults)
}

func (p *preparation) await(ctx context.Context, guest *envdclient.Client, started *startCommand) error {
	if p.ready != "" {
		p.out.line("waiting for: %s", p.ready)
		return p.wait(ctx, guest, started)
	}
	if started == nil {
		return nil
	}
	p.out.line("no ready command: waiting %v", p.settle)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-started.ended:
		return started.err
	case <-time.After(p.settle):
		return nil
	}
}

// shell returns a user's command line as a command.
func (p *preparation) shell(command string) wrenn.ExecCommand {
	return wrenn.ExecCommand{Cmd: p.sh[0], Args: append(p.sh[1:len(p.sh):len(p.sh)], command), User: p.user, Cwd: p.dir}
}

// wait runs the ready command until it succeeds, the start command fails, or the
// timeout ends.
func (p *preparation) wait(ctx context.Context, guest *envdclient.Client, started *startCommand) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout,
		wrenn.Errorf(wrenn.DeadlineExceeded, "the ready command did not succeed within %v", p.timeout))
	defer cancel()
	ctx, cancelCause := context.WithCancelCause(ctx)
	defer cancelCause(nil)
	defer started.onFailure(cancelCause)()
	last := ""
	for {
		result, err := guest.ExecUpTo(ctx, p.shell(p.ready), maxTail)
		if wrenn.CodeOf(err) == wrenn.DeadlineExceeded { // the guest noticed it first
			<-ctx.Done()
		}
		switch {
		case ctx.Err() != nil:
			return timeUp(ctx, last)
		case err != nil:
			return fmt.Errorf("ready command: %w", err)
		case result.ExitCode == 0:
			return nil
		}
		last = fmt.Sprintf("%s: %q", result.Status, strings.TrimSpace(string(result.Stderr)))
		select {
		case <-ctx.Done():
			return timeUp(ctx, last)
		case <-time.After(readyEvery):
		}
	}
}

// timeUp returns why a wait ended, with the last error of the ready command.
func timeUp(ctx context.Context, last string) error {
	cause := context.Cause(ctx)
	if wrenn.CodeOf(cause) != wrenn.DeadlineExceeded || last == "" {
		return cause
	}
	return wrenn.Errorf(wrenn.DeadlineExceeded, "%v; the last time: %s", cause, last)
}

// startCommand is the running start command, whose output is logged.
type startCommand struct {
	stop  func()
	ended chan struct{} // closed when it ended, or its stream broke
	err   error         // valid when ended is closed; nil: it ended with success
}

func (p *preparation) begin(ctx context.Context, guest *envdclient.Client) (*startCommand, error) {
	// The deadline of ctx must not become the command's.
	follow, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, cancel)
	proc, err := guest.Start(follow, wrenn.ExecStart{ExecCommand: p.shell(p.start)})
	if err != nil {
		unhook()
		cancel()
		return nil, fmt.Errorf("start command: %w", err)
	}
	s := &startCommand{ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		s.err = p.follow(proc)
	}()
	s.stop = func() {
		unhook()
		proc.Close()
		cancel()
		<-s.ended
	}
	return s, nil
}

// onFailure calls f when the command fails, unless stop was called before.
func (s *startCommand) onFailure(f context.CancelCauseFunc) (stop func()) {
	if s == nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-s.ended:
			if s.err != nil {
				f(s.err)
			}
		case <-done:
		}
	}()
	return func() { close(done) }
}

// follow logs what the command prints, until it ends. It is no error if the
// command ends with success.
func (p *preparation) follow(proc *envdclient.Process) error {
	var tail bytes.Buffer
	stdout, stderr := p.out.writer(), p.out.writer()
	defer stdout.end()
	defer stderr.end()
	for {
		event, err := proc.Next()
		if errors.Is(err, io.EOF) {
			if exit := proc.Exit(); exit.Code != 0 {
				return wrenn.Errorf(wrenn.FailedPrecondition, "the start command ended: %s: %q", exit.Status, strings.TrimSpace(tail.String()))
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("follow the start command: %w", err)
		}
		_, _ = stdout.Write(event.Stdout) // it never fails
		_, _ = stderr.Write(event.Stderr)
		for _, data := range [][]byte{event.Stdout, event.Stderr} {
			if tail.Write(data); tail.Len() > maxTail {
				tail.Next(tail.Len() - maxTail)
			}
		}
	}
}

// userOf returns the name of a container image's user, which may be a number and
// have a group after a colon: the guest's agent knows users by name.
func userOf(ctx context.Context, guest *envdclient.Client, user string) (string, error) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" || strings.Trim(user, "0123456789") != "" {
		return user, nil
	}
	if strings.Trim(user, "0") == "" {
		return "root", nil
	}
	const find = `while IFS=: read -r name _ id _; do [ "$id" = "$0" ] && { echo "$name"; exit; }; done < /etc/passwd; exit 1`
	result, err := guest.ExecUpTo(ctx, wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-c", find, user}, User: "root"}, maxTail)
	if err != nil {
		return "", fmt.Errorf("find the image's user: %w", err)
	}
	if result.ExitCode != 0 {
		return "", wrenn.Errorf(wrenn.FailedPrecondition, "the image runs as user %.20s, which is not in its /etc/passwd: commands need a user with a name", user)
	}
	return strings.TrimSpace(string(result.Stdout)), nil
}
