package service

import (
	"context"
	"errors"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/hostclient"
	"wrenn/internal/controlplane/postgres"
	"wrenn/internal/wake"
)

// transition is a move of a row from a state to another by a call to the host.
// The row is in via while the call runs.
type transition struct {
	from, via, to wrenn.State
	call          func(*core, context.Context, *hostclient.Client, wrenn.SandboxID) error
}

var (
	resuming = transition{wrenn.Paused, wrenn.Resuming, wrenn.Running, (*core).resumeOn}
	booting  = transition{wrenn.Paused, wrenn.Resuming, wrenn.Running, (*core).bootOn}
)

// pausing is the pause of a sandbox as the options say.
func pausing(options wrenn.PauseOptions) transition {
	pause := func(_ *core, ctx context.Context, host *hostclient.Client, id wrenn.SandboxID) error {
		return host.Pause(ctx, id, options)
	}
	return transition{wrenn.Running, wrenn.Pausing, wrenn.Paused, pause}
}

func (c *core) bootOn(ctx context.Context, host *hostclient.Client, id wrenn.SandboxID) error {
	token, err := c.tokens.of(ctx, id)
	if err != nil {
		return err
	}
	return host.Boot(ctx, id, token)
}

func (c *core) resumeOn(ctx context.Context, host *hostclient.Client, id wrenn.SandboxID) error {
	token, err := c.tokens.of(ctx, id)
	if err != nil {
		return err
	}
	return host.Resume(ctx, id, token)
}

// pollRow is how often a row is read that another request is about to move.
const pollRow = 100 * time.Millisecond

// transition brings a sandbox of the caller's team to t.to. One in that state
// already is confirmed with its host.
func (c *core) transition(ctx context.Context, caller Caller, id wrenn.SandboxID, t transition) (*wrenn.Sandbox, error) {
	for attempt := 1; ; attempt++ {
		sb, host, err := c.locate(ctx, caller, id, t.from, t.to)
		if err != nil {
			return nil, err
		}
		if t.to == wrenn.Running {
			if sb, host, err = c.placeToResume(ctx, caller, sb, host); err != nil {
				return nil, err
			}
		}
		try := c.tryTransition
		if sb.State == t.to {
			try = c.confirm
		}
		now, err := try(ctx, caller, sb, host, t)
		if !errors.Is(err, postgres.ErrConflict) || attempt == casAttempts {
			return now, err
		}
	}
}

// confirm asks the host to make a transition that the row shows as made: a host
// pauses and wakes sandboxes by itself, and the row follows a little later.
// ErrConflict when the row followed during the call.
func (c *core) confirm(ctx context.Context, _ Caller, sb *wrenn.Sandbox, host *hostclient.Client, t transition) (*wrenn.Sandbox, error) {
	if err := t.call(c, ctx, host, sb.ID); err != nil {
		return nil, c.markLostIfNotFound(ctx, sb, err)
	}
	now, err := c.store.Sandbox(ctx, sb.ID)
	if err == nil && now.State != t.to {
		return nil, postgres.Conflict()
	}
	return now, err
}

// tryTransition moves the row, asks the host, and moves the row again.
// ErrConflict when another request moved the row first.
func (c *core) tryTransition(ctx context.Context, caller Caller, sb *wrenn.Sandbox, host *hostclient.Client, t transition) (*wrenn.Sandbox, error) {
	ctx, cancel := detach(ctx, c.deadlines.Pause)
	defer cancel()
	moved, err := c.beginTransition(ctx, caller, sb, t)
	if err != nil {
		c.handToReconcilerIfUnsure(ctx, sb, err)
		return nil, err
	}
	sb = moved
	if err = t.call(c, ctx, host, sb.ID); err == nil {
		now, err := c.writeState(ctx, sb, t.to, caller.actor())
		c.handToReconcilerIfUnsure(ctx, sb, err)
		return now, err
	}
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil, c.markLostIfNotFound(ctx, sb, err)
	}
	// Back, even if the host may have done it: the reconciler sees what it did.
	if _, moveErr := c.store.MoveSandbox(ctx, sb, postgres.Move{To: t.from, Actor: caller.actor()}); moveErr != nil {
		c.handToReconciler(ctx, "move the row back after "+string(t.via), sb, moveErr)
	}
	c.reconciler.Notify(sb.Host)
	return nil, err
}

func (c *core) beginTransition(ctx context.Context, caller Caller, sb *wrenn.Sandbox, t transition) (*wrenn.Sandbox, error) {
	if t.to == wrenn.Running {
		return c.store.ResumeSandbox(ctx, sb, c.limits.Limits, caller.actor())
	}
	return c.store.MoveSandbox(ctx, sb, postgres.Move{To: t.via, Actor: caller.actor()})
}

// use returns the host of a sandbox that runs, and records that it is used. A
// paused sandbox with AutoResume is resumed: one caller moves its row, and the
// host merges the resumes of all callers. A row may say "running" of a sandbox
// that its host has paused since; then the host wakes it as well, or refuses.
func (c *core) use(ctx context.Context, caller Caller, id wrenn.SandboxID) (*hostclient.Client, error) {
	for {
		sb, host, err := c.locateUsable(ctx, caller, id)
		if err != nil {
			return nil, err
		}
		switch sb.State {
		case wrenn.Paused:
			if sb, host, err = c.placeToResume(ctx, caller, sb, host); err != nil {
				break
			}
			if err = c.allowTime(ctx, caller, sb, host); err == nil {
				_, err = c.tryTransition(ctx, caller, sb, host, resuming)
			}
		case wrenn.Resuming:
			err = c.resumeOn(ctx, host, id)
		case wrenn.Pausing:
			wake.Sleep(ctx, pollRow)
			if err = context.Cause(ctx); err == nil {
				continue
			}
		}
		if errors.Is(err, postgres.ErrConflict) { // another request was first
			continue
		}
		if err != nil {
			return nil, err
		}
		c.used.add(id)
		return host, nil
	}
}

// wakeTimeout is how long a sandbox with an absolute timeout runs at least after its
// use has resumed it, as at E2B: its timeout may have been set to end it at once.
const wakeTimeout = 5 * time.Minute

// allowTime sets the timeout of a paused sandbox that is about to be resumed by its
// use, if it is shorter than wakeTimeout.
func (c *core) allowTime(ctx context.Context, caller Caller, sb *wrenn.Sandbox, host *hostclient.Client) error {
	if !sb.Absolute || sb.Timeout == 0 || sb.Timeout >= wakeTimeout {
		return nil
	}
	changed, err := c.store.SetTimeout(ctx, sb, wakeTimeout, caller.actor())
	if err != nil {
		return err
	}
	*sb = *changed
	return host.Extend(ctx, sb.ID, wakeTimeout)
}

// locateUsable is locate for a sandbox that runs, or that use can bring to run.
func (c *core) locateUsable(ctx context.Context, caller Caller, id wrenn.SandboxID) (*wrenn.Sandbox, *hostclient.Client, error) {
	sb, host, err := c.locate(ctx, caller, id, wrenn.Running, wrenn.Pausing, wrenn.Paused, wrenn.Resuming)
	if err == nil && sb.State != wrenn.Running && !sb.AutoResume {
		err = wrongState(sb, wrenn.Running)
	}
	return sb, host, err
}
