package service

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/wake"
)

// transition is a move of a row from a state to another by a call to the host.
// The row is in via while the call runs.
type transition struct {
	from, via, to wrenn.State
	call          func(*core, context.Context, *hostclient.Client, wrenn.SandboxID) error
	moving        bool // it is paused to be moved
}

var (
	resuming = transition{from: wrenn.Paused, via: wrenn.Resuming, to: wrenn.Running, call: (*core).resumeOn}
	booting  = transition{from: wrenn.Paused, via: wrenn.Resuming, to: wrenn.Running, call: (*core).bootOn}
)

// pausing is the pause of a sandbox as the options say.
func pausing(options wrenn.PauseOptions) transition {
	pause := func(_ *core, ctx context.Context, host *hostclient.Client, id wrenn.SandboxID) error {
		return host.Pause(ctx, id, options)
	}
	return transition{from: wrenn.Running, via: wrenn.Pausing, to: wrenn.Paused, call: pause}
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
		sb, err := c.find(ctx, caller, id, t.from, t.to)
		if err != nil {
			return nil, err
		}
		var host *hostclient.Client
		if t.to == wrenn.Running {
			sb, host, err = c.placeToResume(ctx, caller, sb)
		} else {
			host, err = c.hosts.clientOf(sb)
		}
		var now *wrenn.Sandbox
		if err == nil {
			try := c.tryTransition
			if sb.State == t.to {
				try = c.confirm
			}
			now, err = try(ctx, caller, sb, host, t)
		}
		if !errors.Is(err, postgres.ErrConflict) && !c.movedSince(ctx, sb, err) || attempt == casAttempts {
			return now, err
		}
	}
}

// movedSince reports whether a host may have refused a call, with err, because the sandbox
// has another epoch since its row was read. Then the caller reads it again.
func (c *core) movedSince(ctx context.Context, sb *wrenn.Sandbox, err error) bool {
	if sb == nil || wrenn.CodeOf(err) != wrenn.Unavailable {
		return false
	}
	now, err := c.store.Sandbox(ctx, sb.ID)
	return err == nil && now.Epoch != sb.Epoch
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

// tryTransition moves the row, asks the host, and moves the row again. A sandbox whose host
// has no room to resume it, or a stored one whose host does not have it any more, is resumed on
// another one. ErrConflict when another request moved the row first.
func (c *core) tryTransition(ctx context.Context, caller Caller, sb *wrenn.Sandbox, host *hostclient.Client, t transition) (*wrenn.Sandbox, error) {
	now, back, err := c.tryOnHost(ctx, caller, sb, host, t)
	if back == nil || t.to != wrenn.Running || wrenn.CodeOf(err) != wrenn.Exhausted && (wrenn.CodeOf(err) != wrenn.NotFound || back.Stored.Key == "") {
		return now, err
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "a host cannot resume its sandbox; trying another one", slog.String("sandbox", string(sb.ID)), slog.String("host", string(sb.Host)), slog.Any("err", err))
	moved, elsewhere, moveErr := c.moveStored(ctx, caller, back)
	if errors.Is(moveErr, postgres.ErrConflict) {
		return nil, moveErr
	}
	if moveErr != nil {
		return nil, err // the first host's message says more
	}
	now, _, err = c.tryOnHost(ctx, caller, moved, elsewhere, t)
	return now, err
}

// tryOnHost is tryTransition on one host. When that refuses, back is the row as it was
// moved back.
func (c *core) tryOnHost(ctx context.Context, caller Caller, sb *wrenn.Sandbox, host *hostclient.Client, t transition) (now, back *wrenn.Sandbox, err error) {
	ctx, cancel := detach(ctx, c.deadlines.Pause)
	defer cancel()
	moved, err := c.beginTransition(ctx, caller, sb, t)
	if err != nil {
		c.handToReconcilerIfUnsure(ctx, sb, err)
		return nil, nil, err
	}
	sb = moved
	if err = t.call(c, ctx, host, sb.ID); err == nil {
		now, err := c.writeState(ctx, sb, t.to, caller.actor())
		c.handToReconcilerIfUnsure(ctx, sb, err)
		return now, nil, err
	}
	if wrenn.CodeOf(err) == wrenn.NotFound && (sb.Stored.Key == "" || t.to != wrenn.Running) {
		return nil, nil, c.markLostIfNotFound(ctx, sb, err)
	}
	// Back, even if the host may have done it: the reconciler sees what it did.
	back, moveErr := c.store.MoveSandbox(ctx, sb, postgres.Move{To: t.from, Actor: caller.actor()})
	if moveErr != nil {
		c.handToReconciler(ctx, "move the row back after "+string(t.via), sb, moveErr)
	}
	c.reconciler.Notify(sb.Host)
	return nil, back, err
}

func (c *core) beginTransition(ctx context.Context, caller Caller, sb *wrenn.Sandbox, t transition) (*wrenn.Sandbox, error) {
	if t.to == wrenn.Running {
		return c.store.ResumeSandbox(ctx, sb, c.limits.Limits, caller.actor())
	}
	return c.store.MoveSandbox(ctx, sb, postgres.Move{To: t.via, Actor: caller.actor(), Moving: t.moving})
}

// use returns the host of a sandbox that runs, and records that it is used. A
// paused sandbox with AutoResume is resumed: one caller moves its row, and the
// host merges the resumes of all callers. A row may say "running" of a sandbox
// that its host has paused since; then the host wakes it as well, or refuses.
func (c *core) use(ctx context.Context, caller Caller, id wrenn.SandboxID) (*hostclient.Client, error) {
	for {
		sb, err := c.findUsable(ctx, caller, id)
		if err != nil {
			return nil, err
		}
		if sb.State == wrenn.Pausing {
			if !wake.Sleep(ctx, pollRow) {
				return nil, context.Cause(ctx)
			}
			continue
		}
		sb, host, err := c.placeToResume(ctx, caller, sb)
		switch {
		case err != nil:
		case sb.State == wrenn.Paused:
			if err = c.allowTime(ctx, caller, sb, host); err == nil {
				host, err = c.resumed(ctx, caller, sb, host)
			}
		case sb.State == wrenn.Resuming:
			err = c.resumeOn(ctx, host, id)
		}
		if errors.Is(err, postgres.ErrConflict) || c.movedSince(ctx, sb, err) { // another request was first
			if sb == nil && !wake.Sleep(ctx, pollRow) { // or its host, and the row follows
				return nil, context.Cause(ctx)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		c.used.add(id)
		return host, nil
	}
}

// onHost calls f with the client of the host on which a sandbox runs, as use returns it. A
// host that does not have the sandbox, because it was moved since its row was read, has done
// nothing: then f is called again with the next host.
func (c *core) onHost(ctx context.Context, caller Caller, id wrenn.SandboxID, f func(*hostclient.Client) error) error {
	for {
		host, err := c.use(ctx, caller, id)
		if err != nil {
			return err
		}
		if err = f(host); !c.leftHost(ctx, host, id, err) {
			return err
		}
	}
}

// leftHost reports whether a host does not have a sandbox, as err says, because it was moved
// to another one since its row was read.
func (c *core) leftHost(ctx context.Context, host *hostclient.Client, id wrenn.SandboxID, err error) bool {
	if wrenn.CodeOf(err) != wrenn.NotFound {
		return false
	}
	now, err := c.store.Sandbox(ctx, id)
	return err == nil && now.Epoch != host.Epoch()
}

// resumed resumes a paused sandbox, and returns its host then: another one, if its own had
// no room.
func (c *core) resumed(ctx context.Context, caller Caller, sb *wrenn.Sandbox, host *hostclient.Client) (*hostclient.Client, error) {
	now, err := c.tryTransition(ctx, caller, sb, host, resuming)
	if err != nil || now.Host == sb.Host {
		return host, err
	}
	return c.hosts.clientOf(now)
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

// findUsable is find for a sandbox that runs, or that use can bring to run. One that was
// to be moved ran.
func (c *core) findUsable(ctx context.Context, caller Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	sb, err := c.find(ctx, caller, id, wrenn.Running, wrenn.Pausing, wrenn.Paused, wrenn.Resuming)
	if err == nil && sb.State != wrenn.Running && !sb.AutoResume && !sb.Moving {
		err = wrongState(sb, wrenn.Running)
	}
	return sb, err
}
