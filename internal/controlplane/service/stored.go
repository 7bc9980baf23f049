package service

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/wake"
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

// placeToResume returns the host of a sandbox. One that is about to be resumed gets
// another host, which fetches it, if its own takes no new sandboxes, or cannot be reached and
// it is stored. It stays on a host that only takes no new ones if no other fits.
func (c *core) placeToResume(ctx context.Context, caller Caller, sb *wrenn.Sandbox) (*wrenn.Sandbox, *hostclient.Client, error) {
	if sb.State == wrenn.Paused {
		answers := c.hosts.answers(ctx, sb.Host)
		if m := c.hosts.member(sb.Host); !answers || !m.schedulable() {
			moved, host, err := c.moveStored(ctx, caller, sb)
			if err == nil || !answers || errors.Is(err, postgres.ErrConflict) {
				return moved, host, err
			}
		}
	}
	host, err := c.hosts.clientOf(sb)
	return sb, host, err
}

// moveStored has another host fetch a paused sandbox, and makes it its host. One that is not
// stored yet comes from its own host, if that answers.
func (c *core) moveStored(ctx context.Context, caller Caller, sb *wrenn.Sandbox) (*wrenn.Sandbox, *hostclient.Client, error) {
	if sb.Stored.Key == "" && !c.hosts.answers(ctx, sb.Host) {
		return nil, nil, wrenn.Errorf(wrenn.Unavailable, "sandbox %s is on host %s alone, which cannot be reached; it was not stored elsewhere: try again when the host is back", sb.ID, sb.Host)
	}
	moved, on, err := c.moveAway(ctx, caller.actor(), sb)
	if err != nil {
		return nil, nil, err
	}
	on.release(0) // its resume is counted by the host
	return moved, on.client.At(moved.Epoch), nil
}

// moveAway moves a paused sandbox, which is stored or on a host that answers, to another host, which has its memory
// reserved then; the caller releases that. While its own host answers, that one holds it
// and removes its copy in the end. ErrConflict when the sandbox is not as its row says.
func (c *core) moveAway(ctx context.Context, actor string, sb *wrenn.Sandbox) (*wrenn.Sandbox, *reservation, error) {
	ctx, cancel := detach(ctx, c.deadlines.Pause)
	defer cancel()
	from := &origin{}
	if c.hosts.answers(ctx, sb.Host) {
		var err error
		from, err = c.hold(ctx, sb)
		switch {
		case wrenn.CodeOf(err) == wrenn.Unavailable && c.hosts.status(sb.Host) == wrenn.HostLost: // its next pings will fail, too
			from = &origin{}
		case err != nil:
			return nil, nil, err
		}
	}
	if sb.Stored.Key == "" && from.client == nil {
		return nil, nil, wrenn.Errorf(wrenn.Unavailable, "sandbox %s is not stored, and its host %s does not have it", sb.ID, sb.Host)
	}
	place := c.hosts.restoring(ctx, sb)
	if place.Except[sb.Host] = true; from.lost {
		delete(place.Except, sb.Host)
		place.Origin = ""
	}
	var last error
	for {
		to, err := c.hosts.reserve(&place)
		if err != nil {
			return nil, nil, cmp.Or(last, err) // the message of a host says more
		}
		place.Except[to.id] = true
		moved, err := c.fetchTo(ctx, to.member, sb, actor, from.client)
		if err == nil {
			return moved, to, nil
		}
		to.release(0)
		code := wrenn.CodeOf(err)
		if errors.Is(err, postgres.ErrConflict) || code != wrenn.Unavailable && code != wrenn.Exhausted && code != wrenn.FailedPrecondition && code != wrenn.AlreadyExists {
			return nil, nil, err
		}
		last = err
	}
}

// origin is the host that a sandbox is moved from.
type origin struct {
	client *hostclient.Client // nil when it does not answer, or does not have the sandbox
	lost   bool               // it answers, and does not have the sandbox
}

// hold has the host of a paused and stored sandbox keep it paused, although it may be used there.
func (c *core) hold(ctx context.Context, sb *wrenn.Sandbox) (*origin, error) {
	host, err := c.hosts.clientOf(sb)
	if err != nil {
		return nil, err
	}
	found, err := isStoredOn(ctx, host, sb)
	switch {
	case err != nil:
		return nil, err
	case !found:
		return &origin{lost: true}, nil
	}
	return &origin{client: host}, host.Pause(ctx, sb.ID, wrenn.PauseOptions{Hold: true})
}

// isStoredOn reports whether the host has the sandbox paused as it was stored: false when
// it does not have it, or an old copy, and ErrConflict when it has it otherwise.
func isStoredOn(ctx context.Context, host *hostclient.Client, sb *wrenn.Sandbox) (bool, error) {
	inv, err := host.Inventory(ctx)
	if err != nil {
		return false, err
	}
	for i := range inv.Sandboxes {
		if seen := &inv.Sandboxes[i]; seen.ID == sb.ID && !seen.State.Ended() && (seen.Epoch == 0 || seen.Epoch >= sb.Epoch) {
			same := sb.Stored.Key == "" || seen.Stored.Key == sb.Stored.Key // else it comes from this host, in the state that this host has
			if seen.State != wrenn.ObservedPaused || !same {
				return false, postgres.Conflict()
			}
			return true, nil
		}
	}
	return false, nil
}

// fetchTo has a host fetch a stored sandbox and moves its row there. The host from, nil
// for none, has it still, and removes it then; what is left there is removed by the
// reconciler. ErrConflict when it has changed.
func (c *core) fetchTo(ctx context.Context, to *member, sb *wrenn.Sandbox, actor string, from *hostclient.Client) (*wrenn.Sandbox, error) {
	as := wrenn.StoredSandbox{Team: sb.Team, Key: sb.Stored.Key, Epoch: sb.Epoch + 1}
	var err error
	if as.Key != "" || from == nil {
		err = to.client.Fetch(ctx, sb.ID, as)
	} else {
		err = from.TransferTo(ctx, to.client, sb.ID, as, mostMoved(sb))
	}
	if err != nil {
		return nil, err
	}
	fetched := to.client.At(sb.Epoch + 1)
	// The policies of its team and template may be others than when it was stored.
	if err := c.tellPolicy(ctx, fetched, sb); err != nil {
		return nil, err
	}
	moved, err := c.moveRow(ctx, to, sb, actor, from)
	if err != nil {
		if now, readErr := c.store.Sandbox(ctx, sb.ID); errors.Is(err, postgres.ErrConflict) && readErr == nil && now.Host != to.id {
			c.dropCopy(ctx, fetched, sb, to.id)
		}
		return nil, err
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "stored sandbox moved to another host", slog.String("sandbox", string(sb.ID)), slog.String("from", string(sb.Host)), slog.String("to", string(to.id)))
	if from != nil && to.id != sb.Host {
		c.dropCopy(ctx, from, sb, sb.Host)
	}
	return moved, nil
}

// mostMoved bounds the bytes that one host sends another of a sandbox: twice its memory and
// disk, because compression and the layers of its template come on top.
func mostMoved(sb *wrenn.Sandbox) int64 {
	return 2 * int64(sb.MemoryMiB+cmp.Or(sb.DiskMiB, wrenn.DefaultDiskMiB)) << 20
}

func (c *core) moveRow(ctx context.Context, to *member, sb *wrenn.Sandbox, actor string, from *hostclient.Client) (*wrenn.Sandbox, error) {
	if from != nil { // it may have been resumed there before it was held
		if _, err := isStoredOn(ctx, from, sb); err != nil {
			return nil, err
		}
	}
	return c.store.MoveSandbox(ctx, sb, postgres.Move{
		To: wrenn.Paused, Host: to.id, Actor: actor, Reason: "moved from host " + string(sb.Host), MovedKey: sb.Stored.Key,
	})
}

// dropCopy removes the copy of a stored sandbox from a host that its row does not name.
func (c *core) dropCopy(ctx context.Context, host *hostclient.Client, sb *wrenn.Sandbox, id wrenn.HostID) {
	if err := host.Destroy(ctx, sb.ID); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "cannot remove the copy of a sandbox that another host has now", slog.String("sandbox", string(sb.ID)), slog.String("host", string(id)), slog.Any("err", err))
	}
}

// status returns the status of a host, "" if it is not known.
func (f *fleet) status(id wrenn.HostID) wrenn.HostStatus {
	m := f.member(id)
	if m == nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.row.Status
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
