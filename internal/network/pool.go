package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/wake"
)

// Pool makes, keeps and hands out the slots of one prefix. It is safe for
// concurrent use. The caller must Close it.
type Pool struct {
	cfg  Config
	host *host
	lock lock
	hook rollback.Hook // in tests, called after each step

	wake   wake.Chan // of the filler
	stop   context.CancelFunc
	filler sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	closed  bool
	slots   map[int]*entry // every slot that may be in the kernel, by index
	ready   []int          // indexes of slots to hand out
	freed   []int          // indexes below next that are free
	next    int            // the lowest index that was never used
	changed chan struct{}  // closed, and replaced, when a slot was made or became free
}

// entry is the state of one slot.
type entry struct {
	state state
	id    string // empty when the slot is incomplete
	owner string // of a slot in use
}

type state string

const (
	stateMaking   state = "making"
	stateReady    state = "ready"
	stateUsed     state = "used"
	stateLeftover state = "leftover" // of an earlier pool, neither adopted nor removed yet
	stateLeaving  state = "leaving"  // being recycled or removed
	stateBroken   state = "broken"   // could not be removed
)

// Open returns the pool of cfg.Prefix and starts to fill it. It writes the
// host's table and switches IPv4 forwarding on. Slots that an earlier pool of
// the prefix left keep working: Adopt those that are still wanted, then Sweep
// the rest. Errors: Invalid for an invalid configuration, FailedPrecondition
// when the prefix is in use or the range clashes with a route of the host, and
// PermissionDenied without root.
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	p := &Pool{cfg: cfg, wake: wake.New(), slots: map[int]*entry{}, changed: make(chan struct{})}
	var undo rollback.Stack
	defer undo.Run(ctx)
	if err := p.attach(ctx, &undo); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, &wrenn.Error{Code: wrenn.PermissionDenied, Message: "sandbox networks need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)", Err: err}
		}
		return nil, fmt.Errorf("open network pool %s: %w", cfg.Prefix, err)
	}
	undo.Keep()
	fillCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = stop
	p.filler.Go(func() { p.fill(fillCtx) })
	p.wake.Notify()
	return p, nil
}

// attach locks the prefix, finds leftovers and writes the host's table.
func (p *Pool) attach(ctx context.Context, undo *rollback.Stack) (err error) {
	if p.lock, err = takeLock(p.cfg); err != nil {
		return err
	}
	undo.Add(func(context.Context) error { return p.lock.release() })
	nl, err := openNetlink(p.cfg.HostNamespace)
	if err != nil {
		return err
	}
	undo.AddFunc(nl.Close)
	p.host = &host{cfg: p.cfg, nl: nl, clocks: newClocks(p.cfg.Log), byName: newByName(p.cfg), observers: newObservers(p.cfg.Log)}
	links, err := p.host.slotLinks()
	if err != nil {
		return err
	}
	if err := p.host.checkRange(links); err != nil {
		return err
	}
	complete, err := p.findLeftovers(links)
	if err != nil {
		return err
	}
	if err := p.host.enableForwarding(ctx); err != nil {
		return err
	}
	if err := p.host.warnOfOthers(ctx); err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	if err := p.host.writeTable(ctx, complete); err != nil {
		return err
	}
	return p.host.setShare(ctx)
}

// findLeftovers enters leftover slots in p.slots and returns the indexes of the
// complete ones.
func (p *Pool) findLeftovers(links map[int]slotLink) (complete []int, err error) {
	left, err := p.host.leftovers(links)
	for index, id := range left {
		p.slots[index] = &entry{state: stateLeftover, id: id}
		if id != "" {
			complete = append(complete, index)
		}
	}
	return complete, err
}

// Acquire returns a slot for owner, who must Release it: a ready slot if there
// is any, which takes no system call, else a new one. When all Max slots exist
// it waits for slots that are being made or released; Exhausted when there are
// none.
func (p *Pool) Acquire(ctx context.Context, owner string) (*Slot, error) {
	for {
		g, err := p.take(owner)
		switch {
		case err != nil:
			return nil, err
		case g.slot != nil:
			return g.slot, nil
		case g.wait == nil:
			return p.makeFor(ctx, g.index, owner)
		}
		select {
		case <-g.wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// grant is a slot, or a channel to wait for, or the index of a slot to make.
type grant struct {
	slot  *Slot
	wait  <-chan struct{}
	index int
}

func (p *Pool) take(owner string) (grant, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return grant{}, errClosed
	}
	if n := len(p.ready); n > 0 {
		index := p.ready[n-1]
		p.ready = p.ready[:n-1]
		p.wake.Notify()
		return grant{slot: p.handOut(index, p.slots[index].id, owner)}, nil
	}
	if index, ok := p.reserve(); ok {
		return grant{index: index}, nil
	}
	for _, e := range p.slots {
		if e.state == stateMaking || e.state == stateLeaving {
			return grant{wait: p.changed}, nil
		}
	}
	return grant{}, wrenn.Errorf(wrenn.Exhausted, "all %d network slots of this host are in use: destroy sandboxes, or allow more slots", p.cfg.Max)
}

func (p *Pool) makeFor(ctx context.Context, index int, owner string) (*Slot, error) {
	id, err := p.make(ctx, index)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.handOut(index, id, owner), nil
}

// notify wakes all callers that wait for a slot. The caller must hold mu.
func (p *Pool) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

var errClosed = wrenn.Errorf(wrenn.Unavailable, "the network pool is closed")

// handOut records that owner uses the slot. The caller must hold mu.
func (p *Pool) handOut(index int, id, owner string) *Slot {
	p.slots[index] = &entry{state: stateUsed, id: id, owner: owner}
	p.notify()
	return newSlot(p, SlotRef{Index: index, ID: id, Owner: owner})
}

// reserve returns a free index, whose slot is then being made. The caller must hold mu.
func (p *Pool) reserve() (int, bool) {
	if len(p.slots) >= p.cfg.Max {
		return 0, false
	}
	if n := len(p.freed); n > 0 {
		index := p.freed[n-1]
		p.freed = p.freed[:n-1]
		p.slots[index] = &entry{state: stateMaking}
		return index, true
	}
	for p.next < p.cfg.capacity() {
		index := p.next
		p.next++
		if p.slots[index] == nil { // else a leftover
			p.slots[index] = &entry{state: stateMaking}
			return index, true
		}
	}
	return 0, false
}

// make makes the slot of a reserved index. If it fails it removes the slot and
// frees the index; if that fails too, the slot is broken.
func (p *Pool) make(ctx context.Context, index int) (id string, err error) {
	id, err = p.host.run(ctx, index, makeSteps, p.hook)
	if err != nil {
		return "", errors.Join(err, p.remove(index))
	}
	return id, nil
}

// remove removes all parts of the slot from the kernel and frees its index.
func (p *Pool) remove(index int) error {
	err := p.host.remove(index, p.hook)
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.notify()
	if err != nil {
		p.slots[index] = &entry{state: stateBroken, id: p.slots[index].id}
		return err
	}
	delete(p.slots, index)
	if index < p.next { // above it is free anyway
		p.freed = append(p.freed, index)
	}
	return nil
}

// Adopt returns the slot of ref, which an earlier pool of this prefix handed
// out; the caller must Release it. NotFound when the slot no longer exists,
// FailedPrecondition when it has an owner already.
func (p *Pool) Adopt(ctx context.Context, ref SlotRef) (*Slot, error) {
	slot, err := p.takeOver(ref)
	if err != nil {
		return nil, err
	}
	p.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "network slot adopted", slog.Int("slot", ref.Index), slog.String("owner", ref.Owner))
	// The earlier pool's socket was closed with its process. A slot without a
	// time server is still usable.
	if err := p.host.clocks.serve(ref.Index, slot.Namespace()); err != nil {
		p.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "adopted network slot has no time server", slog.Int("slot", ref.Index), slog.Any("err", err))
	}
	return slot, nil
}

// takeOver hands a leftover slot out to its owner.
func (p *Pool) takeOver(ref SlotRef) (*Slot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.slots[ref.Index]
	switch {
	case p.closed:
		return nil, errClosed
	case e == nil || ref.ID == "" || e.id != ref.ID:
		return nil, wrenn.Errorf(wrenn.NotFound, "network slot %s of %.64q is gone", p.cfg.name(ref.Index), ref.Owner)
	case e.state != stateLeftover:
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "network slot %s is not free to adopt: it is %s", p.cfg.name(ref.Index), e.state)
	}
	return p.handOut(ref.Index, ref.ID, ref.Owner), nil
}

// Sweep removes the slots of earlier pools that were not adopted, and tries
// again to remove broken ones. It goes on after errors. It keeps a slot in which
// processes run: without the slot's name they could not be found again.
func (p *Pool) Sweep(ctx context.Context) error {
	inUse, err := p.processes()
	if err != nil {
		return fmt.Errorf("sweep network pool %s: %w", p.cfg.Prefix, err)
	}
	for index, pids := range inUse {
		p.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "leftover network slot kept: processes run in it",
			slog.String("slot", p.cfg.name(index)), slog.Any("pids", pids))
	}
	var errs []error
	for _, index := range p.claim(inUse, stateLeftover, stateBroken) {
		if err := p.remove(index); err != nil {
			errs = append(errs, err)
			continue
		}
		p.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "leftover network slot removed", slog.Int("slot", index))
	}
	p.wake.Notify()
	return errors.Join(errs...)
}

// claim marks the slots in one of the states as leaving, except those in except,
// and returns their indexes.
func (p *Pool) claim(except map[int][]int, states ...state) []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var claimed []int
	for _, index := range slices.Sorted(maps.Keys(p.slots)) {
		if e := p.slots[index]; except[index] == nil && slices.Contains(states, e.state) {
			e.state = stateLeaving
			claimed = append(claimed, index)
		}
	}
	return claimed
}

// release recycles or removes the slot of ref, unless it has a later owner.
func (p *Pool) release(ctx context.Context, ref SlotRef) error {
	next, err := p.giveBack(ref)
	if err != nil || next == nothing {
		return err
	}
	defer p.wake.Notify()
	p.host.byName.stop(ref.Index)
	p.host.observers.stop(ref.Index)
	if next == recycle {
		// The steps are short system calls: they need no cancellation, and an
		// incomplete slot would have to be removed.
		id, err := p.host.run(context.WithoutCancel(ctx), ref.Index, recycleSteps, p.hook)
		if err == nil {
			p.putReady(ref.Index, id)
			return nil
		}
		p.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot recycle network slot; removing it",
			slog.Int("slot", ref.Index), slog.String("owner", ref.Owner), slog.Any("err", err))
	}
	return p.remove(ref.Index)
}

// disposal is what to do with a released slot.
type disposal int

const (
	nothing disposal = iota // it was released before
	recycle
	destroy
)

// giveBack marks the slot of ref as leaving and returns what to do with it.
func (p *Pool) giveBack(ref SlotRef) (disposal, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.slots[ref.Index]
	switch {
	case e == nil || e.id != ref.ID:
		return nothing, nil
	case p.closed:
		return nothing, errClosed
	case e.state == stateUsed && len(p.ready) < 2*p.cfg.Ready:
		e.state = stateLeaving
		return recycle, nil
	case e.state == stateUsed || e.state == stateBroken:
		e.state = stateLeaving
		return destroy, nil
	default: // Sweep is removing it
		return nothing, wrenn.Errorf(wrenn.Unavailable, "network slot %s is %s", p.cfg.name(ref.Index), e.state)
	}
}

func (p *Pool) putReady(index int, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots[index] = &entry{state: stateReady, id: id}
	p.ready = append(p.ready, index)
	p.notify()
}

// fill makes ready slots whenever there are too few, until ctx ends.
func (p *Pool) fill(ctx context.Context) {
	const firstPause, longestPause = time.Second, 30 * time.Second
	pause := firstPause
	for {
		err := p.fillUp(ctx)
		var again <-chan time.Time
		if err != nil && ctx.Err() == nil {
			p.cfg.Log.LogAttrs(ctx, slog.LevelError, "cannot make network slot; will retry", slog.Any("err", err), slog.Duration("retry_in", pause))
			again = time.After(pause)
			pause = min(2*pause, longestPause)
		} else {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-again:
		}
	}
}

func (p *Pool) fillUp(ctx context.Context) error {
	for ctx.Err() == nil {
		index, ok := p.reserveAhead()
		if !ok {
			return nil
		}
		id, err := p.make(ctx, index)
		if err != nil {
			return err
		}
		p.putReady(index, id)
	}
	return nil
}

// reserveAhead reserves an index when there are too few ready slots.
func (p *Pool) reserveAhead() (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.ready) >= p.cfg.Ready {
		return 0, false
	}
	return p.reserve()
}

// Stats counts slots by their state.
type Stats struct {
	Ready    int // to be handed out
	Used     int // handed out or adopted
	Leftover int // of an earlier pool, for Adopt or Sweep
	Broken   int // could not be removed; Sweep tries again
	Changing int // being made, recycled or removed
}

// Stats returns the current counts.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	var s Stats
	for _, e := range p.slots {
		*map[state]*int{
			stateReady: &s.Ready, stateUsed: &s.Used, stateLeftover: &s.Leftover,
			stateBroken: &s.Broken, stateMaking: &s.Changing, stateLeaving: &s.Changing,
		}[e.state]++
	}
	return s
}

// Close stops filling the pool and removes all unused slots. Slots in use stay,
// with the host's table that guards them, for the next pool to adopt, but their
// connections by name end; so do leftovers. Without such slots the table is removed as well. No other method
// may be running. Twice is allowed; the second call does nothing.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	p.mu.Unlock()
	if again {
		return nil
	}
	p.stop()
	p.filler.Wait()
	var errs []error
	for _, index := range p.claim(nil, stateReady, stateBroken) {
		errs = append(errs, p.remove(index))
	}
	if len(p.slots) == 0 {
		errs = append(errs, p.host.deleteTable())
	}
	p.host.clocks.close()
	p.host.byName.close()
	p.host.observers.close()
	p.host.nl.Close()
	errs = append(errs, p.lock.release())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close network pool %s: %w", p.cfg.Prefix, err)
	}
	p.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "network pool closed", slog.Int("slots_in_use", len(p.slots)))
	return nil
}
