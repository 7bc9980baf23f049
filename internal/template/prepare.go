package template

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"wrenn"
	"wrenn/internal/envdclient"
)

const (
	// readyEvery is the pause between two tries of the ready command: there is
	// nothing to wait for but the command itself.
	readyEvery = 500 * time.Millisecond
	// maxTail bounds what of a command's output an error quotes.
	maxTail = 2 << 10
)

// preparation is what is done in a guest before its snapshot.
type preparation struct {
	start, ready string
	user, dir    string
	timeout      time.Duration
	out          io.Writer
}

// run starts the start command, waits for the ready command, and leaves the
// guest as every sandbox will find it: with a shell and the agent in its memory.
func (p *preparation) run(ctx context.Context, guest *envdclient.Client) error {
	var started *startCommand
	if p.start != "" {
		fmt.Fprintf(p.out, "starting: %s\n", p.start)
		var err error
		if started, err = p.begin(ctx, guest); err != nil {
			return err
		}
		defer started.stop()
	}
	if p.ready != "" {
		fmt.Fprintf(p.out, "waiting for: %s\n", p.ready)
		if err := p.wait(ctx, guest, started); err != nil {
			return err
		}
	}
	_, err := guest.Exec(ctx, p.shell("true"))
	return err
}

func (p *preparation) shell(command string) envdclient.Command {
	return envdclient.Command{Path: "/bin/sh", Args: []string{"-c", command}, User: p.user, Dir: p.dir}
}

// wait tries the ready command until it succeeds, the start command has failed
// or the time is up.
func (p *preparation) wait(ctx context.Context, guest *envdclient.Client, started *startCommand) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout,
		wrenn.Errorf(wrenn.DeadlineExceeded, "the ready command did not succeed within %v", p.timeout))
	defer cancel()
	for {
		result, err := guest.Exec(ctx, p.shell(p.ready))
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case result.Code == 0:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; at last: %s: %.500q", context.Cause(ctx), result.Status, result.Stderr)
		case <-started.failed():
			return started.err()
		case <-time.After(readyEvery):
		}
	}
}

// startCommand is the start command while its output is followed.
type startCommand struct {
	stop func()
	ends chan struct{} // closed when it failed, or cannot be followed any more

	mu  sync.Mutex
	why error
}

func (p *preparation) begin(ctx context.Context, guest *envdclient.Client) (*startCommand, error) {
	proc, err := guest.Start(context.WithoutCancel(ctx), p.shell(p.start)) // it is to outlive ctx
	if err != nil {
		return nil, fmt.Errorf("start command: %w", err)
	}
	s := &startCommand{ends: make(chan struct{})}
	var follower sync.WaitGroup
	follower.Go(func() { s.follow(proc, p.out) })
	s.stop = func() {
		proc.Close()
		follower.Wait()
	}
	return s, nil
}

// failed is closed when there is nothing to wait for any more.
func (s *startCommand) failed() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.ends
}

func (s *startCommand) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// follow passes on what the command prints. One that ends well has done its work.
func (s *startCommand) follow(proc *envdclient.Process, out io.Writer) {
	var tail bytes.Buffer
	for {
		event, err := proc.Next()
		if errors.Is(err, io.EOF) {
			if exit := proc.Exit(); exit.Code != 0 {
				s.fail(wrenn.Errorf(wrenn.FailedPrecondition, "the start command ended: %s: %q", exit.Status, strings.TrimSpace(tail.String())))
			}
			return
		}
		if err != nil {
			s.fail(fmt.Errorf("follow the start command: %w", err))
			return
		}
		for _, data := range [][]byte{event.Stdout, event.Stderr} {
			_, _ = out.Write(data) // for people
			if tail.Write(data); tail.Len() > maxTail {
				tail.Next(tail.Len() - maxTail)
			}
		}
	}
}

func (s *startCommand) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.why = err
	close(s.ends)
}
