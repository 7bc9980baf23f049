package service

import (
	"context"
	"log/slog"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/hostclient"
	"wrenn/internal/controlplane/postgres"
	"wrenn/internal/wake"
)

// pollStored is how often the row of a sandbox is read whose upload a caller waits for:
// an upload takes a second or more.
const pollStored = 500 * time.Millisecond

// awaitStored waits until a paused sandbox is stored. FailedPrecondition when its host
// does not store it, or it is not paused any more; the sandbox is paused in any case.
func (c *core) awaitStored(ctx context.Context, sb *wrenn.Sandbox) (*wrenn.Sandbox, error) {
	if len(sb.Volumes) > 0 {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox is paused, but sandboxes with volumes are not stored: they are on their host alone")
	}
	if m := c.hosts.member(sb.Host); m != nil {
		if up, info := m.known(); up && !info.HasStore {
			return nil, wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox is paused, but its host has no snapshot store: set store.url of its agent")
		}
	}
	for sb.Stored.Key == "" {
		if !wake.Sleep(ctx, pollStored) {
			return nil, &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: "the sandbox is paused, and will be stored; it was not yet when the request ended", Err: context.Cause(ctx)}
		}
		now, err := c.store.Sandbox(ctx, sb.ID)
		if err != nil {
			return nil, err
		}
		if sb = now; sb.State != wrenn.Paused {
			return nil, wrongState(sb, wrenn.Paused)
		}
	}
	return sb, nil
}

// placeToResume returns a sandbox that is about to be resumed with the host for it: its
// own or, for a paused and stored one whose host cannot be reached, another one, which
// fetches it and is its host then.
func (c *core) placeToResume(ctx context.Context, caller Caller, sb *wrenn.Sandbox, host *hostclient.Client) (*wrenn.Sandbox, *hostclient.Client, error) {
	if sb.State != wrenn.Paused || c.hosts.answers(ctx, sb.Host) {
		return sb, host, nil
	}
	if sb.Stored.Key == "" {
		return nil, nil, wrenn.Errorf(wrenn.Unavailable, "sandbox %s is on host %s alone, which cannot be reached; it was not stored elsewhere: try again when the host is back", sb.ID, sb.Host)
	}
	return c.moveStored(ctx, caller, sb)
}

// moveStored has another host fetch a paused and stored sandbox, and makes it its host.
func (c *core) moveStored(ctx context.Context, caller Caller, sb *wrenn.Sandbox) (*wrenn.Sandbox, *hostclient.Client, error) {
	ctx, cancel := detach(ctx, c.deadlines.Pause)
	defer cancel()
	place := c.hosts.restoring(ctx, sb)
	place.Except[sb.Host] = true
	var last error
	for {
		to, err := c.hosts.reserve(&place)
		if err != nil && last != nil {
			err = last // the message of a host says more
		}
		if err != nil {
			return nil, nil, err
		}
		place.Except[to.id] = true
		moved, err := c.fetchTo(ctx, to.member, sb, caller.actor())
		to.release(0) // its resume is counted by the host
		if err == nil {
			return moved, to.client, nil
		}
		if c := wrenn.CodeOf(err); c != wrenn.Unavailable && c != wrenn.Exhausted && c != wrenn.FailedPrecondition {
			return nil, nil, err
		}
		last = err
	}
}

// fetchTo has a host fetch a stored sandbox and moves its row there.
func (c *core) fetchTo(ctx context.Context, to *member, sb *wrenn.Sandbox, actor string) (*wrenn.Sandbox, error) {
	if err := to.client.Fetch(ctx, sb.ID, sb.Team, sb.Stored.Key); err != nil {
		return nil, err
	}
	// The policies of its team and template may be others than when it was stored.
	if err := c.tellPolicy(ctx, to.client, sb); err != nil {
		return nil, err
	}
	moved, err := c.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Paused, Host: to.id, Actor: actor, Reason: "moved from host " + string(sb.Host)})
	if err != nil {
		return nil, err
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "stored sandbox moved to another host", slog.String("sandbox", string(sb.ID)), slog.String("from", string(sb.Host)), slog.String("to", string(to.id)))
	return moved, nil
}

// answers reports whether a host is known and answers, after the first ping.
func (f *fleet) answers(ctx context.Context, id wrenn.HostID) bool {
	m := f.member(id)
	if m == nil {
		return false
	}
	timeout := time.NewTimer(firstPing)
	defer timeout.Stop()
	select {
	case <-m.pinged:
	case <-timeout.C:
	case <-ctx.Done():
	}
	up, _ := m.known()
	return up
}
