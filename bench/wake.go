package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/client"
)

// callers is how many requests are made at once for a paused sandbox.
const callers = 100

// wake compares a request that wakes a paused sandbox with a resume by the API and
// then the request.
func wake(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := newStack(ctx, b, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	box, err := s.api.CreateSandbox(ctx, client.CreateSandbox{MemoryMB: boxMemoryMB, Timeout: client.Never, AutoResume: true})
	if err != nil {
		return nil, err
	}
	c := keepAlive(new(net.Dialer).DialContext)
	ask := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/p/%s/%d/health", s.url, box.ID, wrenn.EnvdPort), nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			return fmt.Errorf("the request was answered by %s", resp.Status)
		}
		return nil
	}
	paused := func(f func(context.Context) error) func(context.Context) (sample, error) {
		return func(ctx context.Context) (sample, error) {
			if _, err := s.api.PauseSandbox(ctx, box.ID); err != nil {
				return nil, err
			}
			return seconds(f)(ctx)
		}
	}
	figures, err := pairs(ctx, 3*b.rounds, paused(ask), paused(func(ctx context.Context) error {
		if _, err := s.api.ResumeSandbox(ctx, box.ID); err != nil {
			return err
		}
		return ask(ctx)
	}))
	if err != nil {
		return nil, err
	}
	f := figures[0]
	rows := []row{{"a request that wakes a paused sandbox; bare: resume by the API, then the request", ms(f.ours), ms(f.bare), f.ratio, "<= 1.1"}}
	if _, err := s.api.PauseSandbox(ctx, box.ID); err != nil {
		return rows, err
	}
	before, _, err := s.step(ctx, "resume")
	if err != nil {
		return rows, err
	}
	crowd, grouped := errgroup.WithContext(ctx)
	for range callers {
		crowd.Go(func() error { return ask(grouped) })
	}
	if err := crowd.Wait(); err != nil {
		return rows, err
	}
	after, _, err := s.step(ctx, "resume")
	return append(rows, row{what: fmt.Sprintf("  resumes for %d requests at once, all answered", callers), ours: fmt.Sprint(after - before), limit: "1"}), err
}

// sdkProgram creates a sandbox and runs a command for each line that it reads, and
// prints how long that took.
const sdkProgram = `
import sys, time
from e2b import Sandbox
for line in sys.stdin:
    began = time.monotonic()
    sandbox = Sandbox.create()
    sandbox.commands.run("true")
    print(time.monotonic() - began, flush=True)
    sandbox.kill()
    print("killed", flush=True)
`

// sdk compares E2B's SDK for Python, of an interpreter that has it, with our own API:
// from the create until the first command is done.
func sdk(ctx context.Context, b *bench) (_ []row, err error) {
	if b.python == "" {
		fmt.Fprintln(os.Stderr, "  skipped: name a Python that has the package e2b by -python")
		return nil, nil
	}
	s, err := newStack(ctx, b, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	cmd := exec.CommandContext(ctx, b.python, "-c", sdkProgram)
	cmd.Env = append(os.Environ(), "E2B_API_KEY="+s.key, "E2B_API_URL="+s.url, "E2B_SANDBOX_URL="+s.url)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.undo.Add(func(context.Context) error { return errors.Join(in.Close(), cmd.Wait()) })
	lines := bufio.NewReader(out)
	ours := func(context.Context) (sample, error) {
		if _, err := io.WriteString(in, "\n"); err != nil {
			return nil, err
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("the SDK's program has ended: %w", err)
		}
		took, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
		if err != nil {
			return nil, err
		}
		_, err = lines.ReadString('\n')
		return sample{took}, err
	}
	bare := func(ctx context.Context) (sample, error) {
		began := time.Now()
		box, err := s.api.CreateSandbox(ctx, client.CreateSandbox{Timeout: 5 * time.Minute}) // of the size that the SDK gets
		if err != nil {
			return nil, err
		}
		// The SDK runs commands by a login shell, which costs more than the command.
		_, err = s.api.Exec(ctx, box.ID, client.Command{Cmd: "/bin/bash", Args: []string{"-l", "-c", "true"}, Timeout: startWait})
		took := time.Since(began).Seconds()
		return sample{took}, errors.Join(err, s.api.DeleteSandbox(ctx, box.ID))
	}
	if _, err := pairs(ctx, 1, ours, bare); err != nil { // warms up
		return nil, err
	}
	figures, err := pairs(ctx, b.rounds, ours, bare)
	if err != nil {
		return nil, err
	}
	f := figures[0]
	return []row{{"create until the first command is done by E2B's SDK; bare: by our own API", ms(f.ours), ms(f.bare), f.ratio, "<= 1.1"}}, nil
}
