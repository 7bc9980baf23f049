//go:build root

package livetest_test

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmproc"
)

// maxModels bounds the sandboxes of a user.
const maxModels = 3

// user is a client that repeats calls, on the next control plane, until they are
// answered, and remembers what it was told of its sandboxes.
type user struct {
	fleet    *fleet
	random   *rand.Rand
	name     string
	calls    int
	repeated int // those that did not succeed at once

	models []*model
	ended  []string // sandboxes that were deleted
	failed []string // sandboxes that failed with their hosts
	// tries are the attempts to make a sandbox, by the label that it has; true are those that
	// were answered by a sandbox.
	tries map[string]bool
}

// newUser adds a user to the fleet.
func (f *fleet) newUser(i int, random *rand.Rand) *user {
	u := &user{fleet: f, random: random, name: "user " + strconv.Itoa(i), tries: map[string]bool{}}
	f.users = append(f.users, u)
	return u
}

// work uses sandboxes until ctx ends. A call in progress is brought to its end.
func (u *user) work(t *testing.T, ctx context.Context) { //nolint:revive // t is first in tests
	t.Helper()
	for ctx.Err() == nil && !t.Failed() {
		if err := u.safely(func() error { return u.step(t.Context()) }); err != nil {
			t.Errorf("%s: %v", u.name, err)
			return
		}
	}
}

// safely calls f while no host is declared lost.
func (u *user) safely(f func() error) error {
	u.fleet.calm.RLock()
	defer u.fleet.calm.RUnlock()
	return f()
}

// step does one operation that fits the state of one of the sandboxes.
func (u *user) step(ctx context.Context) error {
	if len(u.models) == 0 {
		return u.create(ctx)
	}
	m := u.models[u.random.IntN(len(u.models))]
	if err := u.use(ctx, m); err != nil {
		return fmt.Errorf("sandbox %s: %w", m.id, err)
	}
	return nil
}

func (u *user) use(ctx context.Context, m *model) error {
	n := u.random.IntN(100)
	switch {
	case n < 5:
		return u.delete(ctx, m)
	case m.rewound != nil: // before anything is made of it
		return u.wake(ctx, m)
	case n < 15 && len(u.models) < maxModels:
		return u.fork(ctx, m)
	case m.want == client.Paused:
		return u.wake(ctx, m)
	case n < 30:
		return u.change(ctx, m, client.Paused, func(ctx context.Context, c *client.Client) error {
			_, err := c.PauseSandbox(ctx, m.id)
			return err
		})
	case n < 40:
		return u.checkpoint(ctx, m)
	case n < 45 && len(m.checkpoints) > 0:
		return u.back(ctx, m)
	case n < 75:
		return u.write(ctx, m)
	default:
		return u.read(ctx, m)
	}
}

// until calls a control plane after the other until one answers, for at most
// testkit.Timeout. Answers that say that another attempt is no use end it.
func (u *user) until(ctx context.Context, call func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, testkit.Timeout)
	defer cancel()
	u.calls++
	first := u.random.IntN(planes)
	for i := first; ; i++ {
		attempt, done := context.WithTimeout(ctx, 20*time.Second) // a stopped process never answers
		err := call(attempt, u.fleet.planes[i%planes].api)
		done()
		if err == nil || !again(err) {
			return err
		}
		if i == first {
			u.repeated++
		}
		if !pause(ctx, 100*time.Millisecond) {
			return fmt.Errorf("no attempt succeeded; the last: %w", err)
		}
	}
}

// again reports whether a client repeats the call.
func again(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		return true // canceled by its own limit
	}
	switch e.Code {
	case client.Unavailable, client.Timeout, client.Conflict, client.LimitExceeded, client.RateLimited, client.CutByPause, client.NotResponding:
		return true
	default:
		return e.Status == 0 || e.Status >= 502
	}
}

// label names one attempt to make a sandbox: by it a sandbox is explained of which the
// user was not told.
const label = "try"

func (u *user) try() map[string]string {
	mark := crand.Text()
	u.tries[mark] = false
	return map[string]string{label: mark}
}

func (u *user) create(ctx context.Context) error {
	restore := u.random.IntN(2) == 0
	want := client.CreateSandbox{Timeout: client.Never}
	if restore {
		want.OnHostLoss = client.RestoreOnHostLoss
	}
	err := u.until(ctx, func(ctx context.Context, c *client.Client) error {
		want.Metadata = u.try()
		sb, err := c.CreateSandbox(ctx, want)
		if err == nil {
			u.made(sb, &model{content: newContent(), restore: restore})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	return nil
}

// made adds a sandbox that runs.
func (u *user) made(sb *client.Sandbox, m *model) {
	m.user, m.id, m.want = u, sb.ID, client.Running
	u.tries[sb.Metadata[label]] = true
	u.models = append(u.models, m)
}

// lost drops a sandbox that failed with its host.
func (u *user) lost(m *model) {
	u.failed = append(u.failed, m.id)
	u.drop(m)
}

func (u *user) drop(m *model) {
	u.models = slices.DeleteFunc(u.models, func(other *model) bool { return other == m })
}

func (u *user) delete(ctx context.Context, m *model) error {
	err := u.until(ctx, func(ctx context.Context, c *client.Client) error { return c.DeleteSandbox(ctx, m.id) })
	if err == nil || client.CodeOf(err) == client.NotFound { // an earlier attempt may have deleted it
		u.ended = append(u.ended, m.id)
		u.drop(m)
		return nil
	}
	return fmt.Errorf("delete: %w", err)
}

func (u *user) fork(ctx context.Context, m *model) error {
	err := u.until(ctx, func(ctx context.Context, c *client.Client) error {
		forked, err := c.ForkSandbox(ctx, m.id, client.Fork{Metadata: u.try()})
		if err != nil {
			return err
		}
		if len(forked.Sandboxes) == 0 {
			return &client.Error{Code: client.Unavailable, Message: fmt.Sprintf("no copy runs: %+v", forked.Errors)}
		}
		u.made(&forked.Sandboxes[0], &model{content: m.clone(), restore: m.restore})
		return nil
	})
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	return nil
}

// wake has a sandbox run, and checks what it has.
func (u *user) wake(ctx context.Context, m *model) error {
	err := u.change(ctx, m, client.Running, func(ctx context.Context, c *client.Client) error {
		_, err := c.ResumeSandbox(ctx, m.id)
		return err
	})
	if err != nil {
		return err
	}
	return u.read(ctx, m)
}

// change brings the sandbox into another state. An attempt whose answer was lost may
// have done so: then the state is what is asked for.
func (u *user) change(ctx context.Context, m *model, to client.State, call func(context.Context, *client.Client) error) error {
	err := u.until(ctx, func(ctx context.Context, c *client.Client) error {
		err := call(ctx, c)
		if err == nil || client.CodeOf(err) != client.InvalidState {
			return err
		}
		return is(ctx, c, m.id, to)
	})
	if err != nil {
		return fmt.Errorf("to %s: %w", to, err)
	}
	m.want = to
	return nil
}

// is returns nil when the sandbox has the state, and an error that again knows when it
// is on its way to one.
func is(ctx context.Context, c *client.Client, id string, want client.State) error {
	sb, err := c.Sandbox(ctx, id)
	if err != nil || sb.State == want {
		return err
	}
	if settled(sb.State) && sb.State != client.Running && sb.State != client.Paused {
		return &client.Error{Code: client.InvalidState, Status: 409, Message: fmt.Sprintf("the sandbox is %s, not %s: %+v", sb.State, want, sb)}
	}
	return &client.Error{Code: client.Unavailable, Message: fmt.Sprintf("the sandbox is %s, not yet %s", sb.State, want)}
}

func settled(s client.State) bool {
	switch s {
	case client.Running, client.Paused, client.Stopped, client.Failed:
		return true
	default:
		return false
	}
}

func (u *user) checkpoint(ctx context.Context, m *model) error {
	err := u.until(ctx, func(ctx context.Context, c *client.Client) error {
		made, err := c.CreateCheckpoint(ctx, m.id, "")
		if err == nil {
			m.checkpoints = append(m.checkpoints, &saved{made.ID, m.clone()})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// back takes the sandbox to one of its checkpoints.
func (u *user) back(ctx context.Context, m *model) error {
	to := m.checkpoints[u.random.IntN(len(m.checkpoints))]
	err := u.until(ctx, func(ctx context.Context, c *client.Client) error {
		_, err := c.RestoreCheckpoint(ctx, m.id, to.id)
		return err
	})
	if client.CodeOf(err) == client.NotFound && m.onlyStored {
		m.checkpoints = slices.DeleteFunc(m.checkpoints, func(s *saved) bool { return s == to })
		return u.read(ctx, m)
	}
	if err != nil {
		return fmt.Errorf("back to %s: %w", to.id, err)
	}
	m.content = to.clone()
	return u.read(ctx, m)
}

// write changes a block of the memory or of the disk.
func (u *user) write(ctx context.Context, m *model) error {
	w := change{file: vmproc.DiskFile, block: make([]byte, blockSize), mark: crand.Text()}
	w.at = (1 + u.random.IntN(diskBlocks)) * diskStride / blockSize
	if u.random.IntN(2) == 0 {
		w.file, w.at = vmproc.MemoryFile, 1+u.random.IntN(vmproc.MemoryBytes/blockSize-1)
	}
	for i := range w.block {
		w.block[i] = byte(u.random.Uint32())
	}
	w.was = m.mark(w.file)
	_, err := u.run(ctx, m, w.block, writeScript, w.file, strconv.Itoa(w.at), w.was, w.mark)
	if err != nil {
		return fmt.Errorf("write to %s: %w", w.file, err)
	}
	m.apply(w)
	return nil
}

// read compares what the sandbox has with what is known.
func (u *user) read(ctx context.Context, m *model) error {
	sums, err := u.run(ctx, m, nil, readScript, strconv.Itoa(diskSize))
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return m.found(sums)
}

// run runs a script until a run is answered, and returns its output.
func (u *user) run(ctx context.Context, m *model, stdin []byte, script string, args ...string) (out string, err error) {
	err = u.until(ctx, func(ctx context.Context, c *client.Client) error {
		got, err := c.Exec(ctx, m.id, client.Command{Cmd: "sh", Args: append([]string{"-c", script, "sh"}, args...), User: "root", Stdin: stdin})
		if err != nil {
			return err
		}
		if got.ExitCode != 0 {
			return &client.Error{Code: client.Internal, Status: 200, Message: fmt.Sprintf("the script ended with %+v: %s%s", got, got.Stdout, got.Stderr)}
		}
		out = string(got.Stdout)
		return nil
	})
	return out, err
}
