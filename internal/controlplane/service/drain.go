package service

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/scheduler"
	"wrenn.dev/internal/wake"
)

const (
	// parallelMoves bounds the sandboxes that are moved at a time: each is paused while
	// it is, and a host stores two at a time.
	parallelMoves = 4
	// lookToMove is how often rows are looked for that are to be moved, and lookSoon
	// while there are some.
	lookToMove, lookSoon = 2 * time.Second, 500 * time.Millisecond
	// storeWait bounds how long a sandbox that ran stays paused until it is stored. The
	// first of a template on a host sends the template as well.
	storeWait = 10 * time.Minute
	// directWait is how long it waits for that before it is moved without the store.
	directWait = 30 * time.Second
	// moveAgain is how long a sandbox that could not be moved is left alone.
	moveAgain = 5 * time.Minute
)

// DrainHost cordons a host and has its sandboxes moved to others, until it has none or is
// uncordoned. It returns at once; Host shows the progress. FailedPrecondition when
// nothing could be moved: without a snapshot store. Twice is allowed, and tries those
// again that could not be moved.
func (s *HostAdmin) DrainHost(ctx context.Context, c Caller, id wrenn.HostID) (*HostState, error) {
	if err := s.checkDrain(ctx, id); err != nil {
		return nil, err
	}
	if _, err := s.store.Drain(ctx, id); err != nil {
		return nil, err
	}
	s.hosts.refreshOrLog(ctx) // otherwise the notification does
	return s.Host(ctx, c, id)
}

// checkDrain finds out whether the host has sandboxes that no store lets go.
func (s *HostAdmin) checkDrain(ctx context.Context, id wrenn.HostID) error {
	if _, err := s.store.Host(ctx, id); err != nil {
		return err
	}
	has, err := s.store.HostContents(ctx, id)
	if err != nil || has.Sandboxes == 0 {
		return err
	}
	s.hosts.waitForPings(ctx)
	others := false
	for _, h := range s.hosts.candidates(false) {
		if h.ID == id && h.Reachable && !h.HasStore {
			return wrenn.Errorf(wrenn.FailedPrecondition, "host %s has no snapshot store, by which its sandboxes could be moved: set url of [store] in the configuration of all host agents, or cordon the host and wait until its sandboxes have ended", id)
		}
		others = others || h.ID != id && h.HasStore && h.Reachable && (h.Status == "" || h.Status == wrenn.HostActive)
	}
	if !others {
		return wrenn.Errorf(wrenn.FailedPrecondition, "no other host that takes sandboxes has a snapshot store: add a host, uncordon one, or set url of [store] in the configuration of its agent")
	}
	return nil
}

// drainer moves the sandboxes of hosts that are drained, whenever no other replica does.
// What it does is in the rows: another replica continues.
type drainer struct {
	*core

	mu    sync.Mutex // guards what follows
	busy  map[wrenn.SandboxID]bool
	after map[wrenn.SandboxID]time.Time // those that could not be moved: when they are tried again
}

func newDrainer(c *core) *drainer {
	return &drainer{core: c, busy: map[wrenn.SandboxID]bool{}, after: map[wrenn.SandboxID]time.Time{}}
}

func (d *drainer) run(ctx context.Context) error {
	for ctx.Err() == nil {
		lead, err := d.store.TryLead(ctx, "drain")
		if lead != nil {
			err = d.lead(ctx, lead)
			lead.Close(context.WithoutCancel(ctx))
		}
		if err != nil && ctx.Err() == nil {
			d.log.LogAttrs(ctx, slog.LevelWarn, "cannot lead the drains of hosts; will retry", slog.Any("err", err))
		}
		wake.Sleep(ctx, lookToMove)
	}
	return nil
}

// lead moves sandboxes until the lead or ctx ends.
func (d *drainer) lead(ctx context.Context, lead *postgres.Lead) error {
	ctx, cancel := context.WithCancel(ctx)
	var moves errgroup.Group
	defer func() { cancel(); _ = moves.Wait() }()
	moves.SetLimit(parallelMoves)
	for {
		if err := lead.Held(ctx); err != nil {
			return err
		}
		wait := lookToMove
		if d.round(ctx, &moves) {
			wait = lookSoon
		}
		if !wake.Sleep(ctx, wait) {
			return nil
		}
	}
}

// round starts to move as many sandboxes as it may, and reports whether there are any.
func (d *drainer) round(ctx context.Context, moves *errgroup.Group) bool {
	rows, err := d.store.SandboxesToMove(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.log.LogAttrs(ctx, slog.LevelWarn, "cannot look for sandboxes to move; will retry", slog.Any("err", err))
		}
		return false
	}
	d.forget(rows)
	slices.SortFunc(rows, func(a, b wrenn.Sandbox) int { // those that wait first, then the idle ones
		return cmp.Or(cmp.Compare(boolInt(b.Moving), boolInt(a.Moving)), a.LastActiveAt.Compare(b.LastActiveAt), cmp.Compare(a.ID, b.ID))
	})
	for i := range rows {
		sb := &rows[i]
		if !d.claim(sb) {
			continue
		}
		if !moves.TryGo(func() error { d.move(ctx, sb); return nil }) {
			d.release(sb.ID, 0)
			break
		}
	}
	return len(rows) > 0
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// forget drops what is known of sandboxes that are not to be moved any more.
func (d *drainer) forget(rows []wrenn.Sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	left := map[wrenn.SandboxID]time.Time{}
	for i := range rows {
		if at, ok := d.after[rows[i].ID]; ok {
			left[rows[i].ID] = at
		}
	}
	d.after = left
}

// claim reports whether a sandbox is to be worked on now. The caller releases it then.
func (d *drainer) claim(sb *wrenn.Sandbox) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.busy[sb.ID] || time.Now().Before(d.after[sb.ID]) || sb.State != wrenn.Running && sb.State != wrenn.Paused {
		return false
	}
	d.busy[sb.ID] = true
	return true
}

// release ends a claim; the sandbox is left alone for so long.
func (d *drainer) release(id wrenn.SandboxID, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, id)
	if wait > 0 {
		d.after[id] = time.Now().Add(wait)
	}
}

// move moves a claimed sandbox, and shows why it could not.
func (d *drainer) move(ctx context.Context, sb *wrenn.Sandbox) {
	err := d.moveOff(ctx, sb)
	if err == nil || ctx.Err() != nil || errors.Is(err, postgres.ErrConflict) {
		d.release(sb.ID, 0)
		return
	}
	d.release(sb.ID, moveAgain)
	d.log.LogAttrs(ctx, slog.LevelWarn, "cannot move a sandbox off its host", slog.String("sandbox", string(sb.ID)), slog.String("host", string(sb.Host)), slog.Any("err", err))
	if err := d.store.SetMovingNote(ctx, sb.ID, messageOf(err, "internal error; the control plane's log has the details")); err != nil {
		d.log.LogAttrs(ctx, slog.LevelWarn, "cannot show why a sandbox was not moved", slog.String("sandbox", string(sb.ID)), slog.Any("err", err))
	}
}

// drains reports whether the host is being drained.
func (d *drainer) drains(id wrenn.HostID) bool { return d.hosts.status(id) == wrenn.HostDraining }

// moveOff moves a sandbox off its host. One that ran runs in the end, wherever it is
// then: on another host, or where it was if that cannot be.
func (d *drainer) moveOff(ctx context.Context, sb *wrenn.Sandbox) error {
	caller := Caller{Team: sb.Team}
	draining := d.drains(sb.Host)
	var err error
	if draining {
		err = d.movable(ctx, sb)
	}
	if err == nil && draining && sb.State == wrenn.Running {
		if sb, err = d.pauseToMove(ctx, caller, sb); err != nil {
			return err
		}
	}
	if sb.State != wrenn.Paused {
		return err
	}
	var on *reservation
	if err == nil && draining {
		sb, on, err = d.storeAndMove(ctx, caller, sb)
	}
	if sb.Moving {
		err = errors.Join(err, d.resume(ctx, caller, sb))
	}
	if on != nil {
		on.release(0) // its host counts it
	}
	return err
}

// movable returns why a sandbox cannot be moved, before it is paused for nothing.
func (d *drainer) movable(ctx context.Context, sb *wrenn.Sandbox) error {
	if len(sb.Volumes) > 0 {
		return wrenn.Errorf(wrenn.FailedPrecondition, "it has a volume, which is on this host alone")
	}
	m := d.hosts.member(sb.Host)
	up, info := m.known()
	switch {
	case !up:
		return wrenn.Errorf(wrenn.Unavailable, "its host does not answer")
	case !info.HasStore:
		return wrenn.Errorf(wrenn.FailedPrecondition, "its host has no snapshot store: set url of [store] in the configuration of its agent")
	case sb.State == wrenn.Paused && !sb.Moving:
		return nil // no request waits for it
	}
	place := d.hosts.restoring(ctx, sb)
	place.Except[sb.Host] = true
	_, err := scheduler.Pick(d.hosts.candidates(true), &place)
	return err
}

// pauseToMove pauses a sandbox that runs, and marks it as one that shall run again.
func (d *drainer) pauseToMove(ctx context.Context, caller Caller, sb *wrenn.Sandbox) (*wrenn.Sandbox, error) {
	host, err := d.hosts.clientOf(sb)
	if err != nil {
		return nil, err
	}
	pause := pausing(wrenn.PauseOptions{Hold: true})
	pause.moving = true
	return d.tryTransition(ctx, caller, sb, host, pause)
}

// storeAndMove waits until a paused sandbox is stored, and moves it to another host, which
// has its memory reserved then. It returns the row as it is in the end, also with an error.
func (d *drainer) storeAndMove(ctx context.Context, caller Caller, sb *wrenn.Sandbox) (*wrenn.Sandbox, *reservation, error) {
	until, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	began := sb
	soon, stop := context.WithTimeout(until, directWait)
	stored, err := d.awaitStoredToMove(soon, sb)
	stop()
	if wrenn.CodeOf(err) == wrenn.DeadlineExceeded && until.Err() == nil { // the store is slow, or does not work
		if moved, on, direct := d.moveAway(ctx, caller.actor(), sb); direct == nil {
			return moved, on, nil
		}
		stored, err = d.awaitStoredToMove(until, sb)
	}
	if err == nil {
		var moved *wrenn.Sandbox
		var on *reservation
		if moved, on, err = d.moveAway(ctx, caller.actor(), stored); err == nil {
			return moved, on, nil
		}
	}
	if now, readErr := d.store.Sandbox(ctx, began.ID); readErr == nil {
		sb = now
	}
	return sb, nil, err
}

// awaitStoredToMove is awaitStored that ends with ErrConflict when the drain ends.
func (d *drainer) awaitStoredToMove(ctx context.Context, sb *wrenn.Sandbox) (*wrenn.Sandbox, error) {
	for sb.Stored.Key == "" {
		if !wake.Sleep(ctx, pollStored) {
			return nil, &wrenn.Error{Code: wrenn.DeadlineExceeded, Message: "it was not stored within " + storeWait.String() + ": the log of its host's agent has the cause", Err: context.Cause(ctx)}
		}
		now, err := d.store.Sandbox(ctx, sb.ID)
		switch {
		case err != nil:
			return nil, err
		case now.State != wrenn.Paused || !d.drains(now.Host):
			return nil, postgres.Conflict()
		}
		sb = now
	}
	return sb, nil
}

// resume has a sandbox that ran run again, on its host of now.
func (d *drainer) resume(ctx context.Context, caller Caller, sb *wrenn.Sandbox) error {
	var host *hostclient.Client
	var err error
	if d.hosts.answers(ctx, sb.Host) {
		host, err = d.hosts.clientOf(sb)
	} else { // it is lost, and what is stored continues elsewhere
		sb, host, err = d.placeToResume(ctx, caller, sb)
	}
	if err != nil {
		return err
	}
	_, err = d.tryTransition(ctx, caller, sb, host, resuming)
	return err
}
