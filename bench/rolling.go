package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"wrenn.dev/client"
)

const (
	rollingClients = 100
	rollingHosts   = 2
	rollingPlanes  = 2
	quiet          = slog.LevelError
	// lineSize is how many bytes a command prints every second. A line begins with its number.
	lineSize = 1000
)

// counterScript prints lines of lineSize bytes, numbered from 1.
const counterScript = `i=0; while sleep 1; do i=$((i+1)); printf '%0999d\n' $i; done`

// rolling restarts agents and control planes, one after the other, while each of 100
// clients has a sandbox with a stream of a command, and runs commands.
func rolling(ctx context.Context, b *bench) (_ []row, err error) {
	f, err := newFakeFleet(ctx, b, rollingHosts, rollingClients)
	if err != nil {
		return nil, errors.Join(err, f.closeAny(ctx))
	}
	defer func() { err = errors.Join(err, f.close(ctx)) }()
	more, err := f.addPlanes(ctx, rollingPlanes-1)
	if err != nil {
		return nil, err
	}
	at, err := (&front{servers: more.addresses()}).listen(ctx, f.stack)
	if err != nil {
		return nil, err
	}
	users, err := f.openUsers(ctx, at)
	if err != nil {
		return nil, err
	}
	loaded, stop := context.WithCancel(ctx)
	defer stop()
	var load sync.WaitGroup
	for _, u := range users {
		load.Go(func() { u.work(loaded, b.think) })
		load.Go(func() { u.follow(loaded) })
	}
	restarts, err := f.roll(ctx, b.lasts, more)
	for _, u := range users {
		err = errors.Join(err, u.goesOn(ctx))
	}
	stop()
	load.Wait()
	if err != nil {
		return nil, err
	}
	return rollingRows(ctx, restarts, users)
}

// closeAny closes a stack that may not exist.
func (f *fakeFleet) closeAny(ctx context.Context) error {
	if f == nil || f.stack == nil {
		return nil
	}
	return f.close(ctx)
}

// replicas are control planes that can be restarted.
type replicas []*replica

type replica struct {
	config, address string
	daemon          *daemon
}

func (r replicas) addresses() (all []string) {
	for _, one := range r {
		all = append(all, one.address)
	}
	return all
}

// addPlanes starts n more control planes, and returns them with the first one.
func (f *fakeFleet) addPlanes(ctx context.Context, n int) (replicas, error) {
	all := replicas{{config: f.planeConfig, address: strings.TrimPrefix(f.url, "http://"), daemon: f.plane}}
	for i := range n {
		address, err := freeAddress(ctx)
		if err != nil {
			return nil, err
		}
		r := &replica{address: address}
		if r.config, err = f.writePlane(fmt.Sprintf("plane%d.toml", i+2), address, f.configured); err != nil {
			return nil, err
		}
		if err := f.startReplica(ctx, r); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// startReplica starts a control plane and returns when it answers.
func (f *fakeFleet) startReplica(ctx context.Context, r *replica) (err error) {
	if r.daemon, err = f.start("bin/control-plane", "--config", r.config); err != nil {
		return err
	}
	c, err := client.New(client.Config{URL: "http://" + r.address, Key: f.key})
	if err != nil {
		return err
	}
	return r.daemon.wait(ctx, c.Ready)
}

// roll restarts one program after the other, and all of them again, for at least that long.
func (f *fakeFleet) roll(ctx context.Context, lasts time.Duration, planes replicas) (restarts int, err error) {
	for end := time.Now().Add(lasts); restarts == 0 || time.Now().Before(end); {
		for _, h := range f.hosts {
			if err := errors.Join(h.Stop(ctx), h.Start(ctx), pause(ctx, time.Second)); err != nil {
				return restarts, err
			}
			restarts++
		}
		for _, r := range planes {
			if err := errors.Join(r.daemon.stop(ctx), f.startReplica(ctx, r), pause(ctx, time.Second)); err != nil {
				return restarts, err
			}
			restarts++
		}
	}
	return restarts, nil
}

// rollingUser is a client with its sandbox and a stream of a command in it.
type rollingUser struct {
	api    *client.Client
	id     string
	stream *client.Stream

	mu       sync.Mutex // guards the following
	calls    int
	repeated int
	took     []float64
	errs     []error
	line     []byte // the beginning of a line
	lines    int
	gap      time.Duration // the longest time without a line
}

// openUsers makes the clients, with what they have.
func (f *fakeFleet) openUsers(ctx context.Context, url string) ([]*rollingUser, error) {
	users := make([]*rollingUser, rollingClients)
	for i := range users {
		api, err := client.New(client.Config{URL: url, Key: f.key})
		if err != nil {
			return nil, err
		}
		sb, err := api.CreateSandbox(ctx, client.CreateSandbox{Timeout: client.Never})
		if err != nil {
			return nil, fmt.Errorf("sandbox %d: %w", i, err)
		}
		u := &rollingUser{api: api, id: sb.ID}
		u.stream, err = api.Start(ctx, sb.ID, client.Command{Cmd: "sh", Args: []string{"-c", counterScript}, User: "root"}, client.StartOptions{Hold: 5 * time.Minute})
		if err != nil {
			return nil, fmt.Errorf("stream %d: %w", i, err)
		}
		users[i] = u
	}
	return users, nil
}

// work runs commands until ctx ends. The last one is brought to its end.
func (u *rollingUser) work(ctx context.Context, think time.Duration) {
	for pause(ctx, 2*think) == nil {
		var failed int
		took, err := timed(func() (err error) {
			failed, err = again(context.WithoutCancel(ctx), func(ctx context.Context) error {
				got, err := u.api.Exec(ctx, u.id, client.Command{Cmd: "echo", Args: []string{u.id}, User: "root"})
				if err == nil && string(got.Stdout) != u.id+"\n" {
					err = fmt.Errorf("the command printed %q", got.Stdout)
				}
				return err
			})
			return err
		})
		u.record(failed, took, err)
	}
}

func (u *rollingUser) record(failed int, took float64, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls++
	if failed > 0 {
		u.repeated++
	}
	u.took = append(u.took, took)
	if err != nil {
		u.errs = append(u.errs, fmt.Errorf("exec in %s: %w", u.id, err))
	}
}

// follow checks each byte of the stream until ctx ends.
func (u *rollingUser) follow(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = u.stream.Close() })()
	last := time.Now()
	for {
		event, err := u.stream.Receive()
		if ctx.Err() != nil {
			return
		}
		u.mu.Lock()
		u.gap = max(u.gap, time.Since(last))
		last = time.Now()
		if err == nil {
			err = u.output(event)
		}
		if err != nil {
			u.errs = append(u.errs, fmt.Errorf("stream of %s: %w", u.id, err))
		}
		u.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// goesOn returns when the stream has had another line, or has failed.
func (u *rollingUser) goesOn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, retryFor)
	defer cancel()
	lines, _ := u.state()
	for {
		if now, failed := u.state(); failed || now > lines {
			return nil
		}
		if err := pause(ctx, beat); err != nil {
			return fmt.Errorf("the stream of %s stands still after %d lines: %w", u.id, lines, err)
		}
	}
}

func (u *rollingUser) state() (lines int, failed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.lines, len(u.errs) > 0
}

// output checks what the command printed. The caller holds mu.
func (u *rollingUser) output(event client.Event) error {
	if event.Exit != nil || event.Lost > 0 || len(event.Stderr) > 0 {
		return fmt.Errorf("it had %+v", event)
	}
	u.line = append(u.line, event.Stdout...)
	for len(u.line) >= lineSize {
		u.lines++
		if want := fmt.Appendf(nil, "%0*d\n", lineSize-1, u.lines); !bytes.Equal(u.line[:lineSize], want) {
			return fmt.Errorf("line %d is %q", u.lines, u.line[:lineSize])
		}
		u.line = u.line[lineSize:]
	}
	return nil
}

// rollingRows sums up, after a look at each sandbox.
func rollingRows(ctx context.Context, restarts int, users []*rollingUser) ([]row, error) {
	var errs []error
	var took []float64
	var gap time.Duration
	lost, calls, repeated, lines := 0, 0, 0, 0
	for _, u := range users {
		sb, err := u.api.Sandbox(ctx, u.id)
		if err != nil || sb.State != client.Running {
			lost++
			errs = append(errs, fmt.Errorf("%s is %+v: %w", u.id, sb, err))
		}
		errs, took, gap = append(errs, u.errs...), append(took, u.took...), max(gap, u.gap)
		calls, repeated, lines = calls+u.calls, repeated+u.repeated, lines+u.lines
	}
	what := func(text string) string { return "  " + text }
	return []row{
		{what: fmt.Sprintf("%d restarts of %d agents and %d control planes under %d clients: sandboxes lost", restarts, rollingHosts, rollingPlanes, len(users)), ours: fmt.Sprint(lost), limit: "0"},
		{what: what("calls and streams that failed for a client that repeats calls"), ours: fmt.Sprintf("%d of %d", len(errs)-lost, calls+len(users)), limit: "0"},
		{what: what("calls that were repeated"), ours: fmt.Sprint(repeated)},
		{what: what("a command, p50 p99 max"), ours: fmt.Sprintf("%s %s %s", ms(median(took)), ms(quantile(took, 0.99)), ms(quantile(took, 1)))},
		{what: what("bytes of streams, each compared; longest time without one"), ours: fmt.Sprintf("%d; %.1f s", lines*lineSize, gap.Seconds())},
	}, errors.Join(first(errs)...)
}
