package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/wake"
)

const (
	// watchList is how often list -w reads the sandboxes.
	watchList = 2 * time.Second
	// watchStats is how often stats -w does; hosts measure every 5 seconds.
	watchStats = 5 * time.Second
	// waitPoll is how often wait reads the sandbox.
	waitPoll = time.Second
)

// watch calls show again and again until ctx ends. On a terminal each result takes
// the place of the one before.
func (s *session) watch(ctx context.Context, every time.Duration, show func(context.Context) error) error {
	for {
		if terminal(s.Out) != nil && !s.json() {
			fmt.Fprint(s.Out, "\x1b[H\x1b[2J") // ECMA-48: to the first line, erase all
		}
		if err := show(ctx); err != nil {
			return err
		}
		if !wake.Sleep(ctx, every) {
			return context.Cause(ctx)
		}
	}
}

// line reads a line of input. The end of ctx ends it, though not the read.
func line(ctx context.Context, in io.Reader) (string, error) {
	type result struct {
		text string
		err  error
	}
	read := make(chan result, 1)
	go func() {
		text, err := bufio.NewReader(in).ReadString('\n')
		read <- result{text, err}
	}()
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case r := <-read:
		if errors.Is(r.err, io.EOF) {
			r.err = nil
		}
		return strings.TrimSpace(r.text), r.err
	}
}

type waitCommand struct {
	For     string `enum:"running,paused,ended" default:"ended" help:"What to wait for: ${enum}; default: ${default}."`
	Timeout span   `placeholder:"TIME" help:"Give up after this time, and exit with 124; default: never."`
	ID      string `arg:"" complete:"sandbox" help:"The sandbox."`
}

// Run fails when the sandbox has ended and something else was waited for.
func (c *waitCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	limited := ctx
	if c.Timeout.Duration > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, c.Timeout.Duration)
		defer cancel()
	}
	defer s.progress(func() string { return "waiting until " + c.ID + " is " + c.For })()
	for {
		sb, err := api.Sandbox(limited, c.ID)
		if err == nil {
			if done, err := c.done(sb); done || err != nil {
				return err
			}
			wake.Sleep(limited, waitPoll)
		}
		switch {
		case ctx.Err() == nil && limited.Err() != nil:
			return &coded{fmt.Errorf("sandbox %s is not %s after %v", c.ID, c.For, c.Timeout.Duration), codeTimeout}
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
	}
}

// done reports whether the sandbox is as wanted, or an error if it never will be.
func (c *waitCommand) done(sb *client.Sandbox) (bool, error) {
	ended := sb.State == client.Stopped || sb.State == client.Failed
	switch {
	case c.For == "ended" || !ended:
		return ended && c.For == "ended" || string(sb.State) == c.For, nil
	case sb.Reason != "":
		return false, fmt.Errorf("sandbox %s has ended: %s", sb.ID, sb.Reason)
	}
	return false, fmt.Errorf("sandbox %s has ended", sb.ID)
}
