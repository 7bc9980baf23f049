//go:build root

package livetest_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// user is a client that repeats calls, on the next control plane, until they are
// answered, and remembers what it was told of its one sandbox.
type user struct {
	fleet    *fleet
	random   *rand.Rand
	name     string
	calls    int
	repeated int // those that did not succeed at once

	id      string // "" is no sandbox
	want    client.State
	deleted []string
}

// work uses sandboxes until ctx ends. A call in progress is brought to its end.
func (u *user) work(t *testing.T, ctx context.Context) { //nolint:revive // t is first in tests
	t.Helper()
	for ctx.Err() == nil && !t.Failed() {
		if err := u.step(t.Context()); err != nil {
			t.Errorf("%s: sandbox %q: %v", u.name, u.id, err)
			return
		}
	}
}

// step does one operation that fits the sandbox's state.
func (u *user) step(ctx context.Context) error {
	switch n := u.random.IntN(10); {
	case u.id == "":
		return u.create(ctx)
	case n == 0:
		return u.delete(ctx)
	case u.want == client.Paused:
		return u.change(ctx, client.Running, func(c *client.Client) (*client.Sandbox, error) { return c.ResumeSandbox(ctx, u.id) })
	case n < 4:
		return u.change(ctx, client.Paused, func(c *client.Client) (*client.Sandbox, error) { return c.PauseSandbox(ctx, u.id) })
	default:
		return u.exec(ctx)
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

func (u *user) create(ctx context.Context) error {
	return u.until(ctx, func(ctx context.Context, c *client.Client) error {
		sb, err := c.CreateSandbox(ctx, client.CreateSandbox{Timeout: client.Never})
		if err == nil {
			u.id, u.want = sb.ID, client.Running
		}
		return err
	})
}

func (u *user) delete(ctx context.Context) error {
	err := u.until(ctx, func(ctx context.Context, c *client.Client) error { return c.DeleteSandbox(ctx, u.id) })
	if err == nil || code(err) == client.NotFound { // an earlier attempt may have deleted it
		u.deleted, u.id = append(u.deleted, u.id), ""
		return nil
	}
	return fmt.Errorf("delete: %w", err)
}

// change brings the sandbox into another state. An attempt whose answer was lost may
// have done so: then the state is what is asked for.
func (u *user) change(ctx context.Context, to client.State, call func(*client.Client) (*client.Sandbox, error)) error {
	err := u.until(ctx, func(ctx context.Context, c *client.Client) error {
		_, err := call(c)
		if err == nil || code(err) != client.InvalidState {
			return err
		}
		return is(ctx, c, u.id, to)
	})
	if err != nil {
		return fmt.Errorf("to %s: %w", to, err)
	}
	u.want = to
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

// exec has the guest add up bytes, and compares.
func (u *user) exec(ctx context.Context) error {
	content := make([]byte, 64<<10)
	for i := range content {
		content[i] = byte(u.random.Uint32())
	}
	want := fmt.Sprintf("%x  -\n", sha256.Sum256(content))
	return u.until(ctx, func(ctx context.Context, c *client.Client) error {
		got, err := c.Exec(ctx, u.id, client.Command{Cmd: "sha256sum", User: "root", Stdin: content})
		if err == nil && string(got.Stdout) != want {
			err = &client.Error{Code: client.Internal, Status: 200, Message: fmt.Sprintf("the checksum is %q, not %q: %+v", got.Stdout, want, got)}
		}
		return err
	})
}

// check compares what the control plane says with what the user was told, and runs a
// command in the sandbox.
func (u *user) check(t *testing.T) {
	t.Helper()
	c := u.fleet.planes[0].api
	for _, id := range u.deleted {
		testkit.WaitNoError(t, "a deleted sandbox has stopped", func() error {
			sb, err := c.Sandbox(t.Context(), id)
			if code(err) == client.NotFound {
				return nil
			}
			if err == nil && sb.State != client.Stopped {
				err = fmt.Errorf("it is %s", sb.State)
			}
			return err
		})
	}
	if u.id == "" {
		return
	}
	testkit.WaitNoError(t, u.name+"'s sandbox has its state", func() error { return is(t.Context(), c, u.id, u.want) })
	if u.want == client.Paused {
		_, err := c.ResumeSandbox(t.Context(), u.id)
		testkit.Must(t, err)
	}
	testkit.Must(t, u.exec(t.Context()))
}

func settled(s client.State) bool {
	switch s {
	case client.Running, client.Paused, client.Stopped, client.Failed:
		return true
	default:
		return false
	}
}

func code(err error) client.Code {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Code
	}
	return ""
}
