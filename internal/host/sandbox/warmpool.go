package sandbox

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/wake"
)

const (
	// poolQuiet is how long nothing must have changed on the host before a machine
	// is made for the pool: a new sandbox is used at once.
	poolQuiet = 250 * time.Millisecond
	// poolLook is how often the host's memory is looked at.
	poolLook = 5 * time.Second
	// poolPause and longestPoolPause are the pauses after a failure; they double.
	poolPause        = time.Second
	longestPoolPause = time.Minute

	// poolGrows and poolEnds are the parts of the host's memory below which the pool
	// does not grow, and below which it is removed.
	poolGrows = 8
	poolEnds  = 16
)

// kind is what machines of the pool are good for.
type kind struct {
	snapshot string
	size     wrenn.Size
}

// warmPool makes machines ahead of demand, and removes those that are not wanted
// or that there is no room for. Each is a Sandbox that belongs to no user: its
// journal stays at "making", with the machine as its other instance, so that the
// next agent removes it. Those with statusPooled can be claimed.
type warmPool struct {
	host         *host
	size         int                    // machines of each kind
	wake         wake.Chan              // the pool has something to do
	memory       func() (memory, error) // of this machine
	hits, misses atomic.Uint64

	mu     sync.Mutex // guards wanted
	wanted map[kind]int
}

func newWarmPool(h *host) warmPool {
	return warmPool{host: h, size: h.cfg.Pool, wake: wake.New(), memory: readMemory, wanted: map[kind]int{}}
}

// Pool counts the machines that are made ahead of demand.
type Pool struct {
	Ready, Wanted int
	Hits, Misses  uint64 // of sandboxes that could claim one, since Open
}

// stats returns the counts of this moment.
func (p *warmPool) stats() Pool {
	stats := Pool{Hits: p.hits.Load(), Misses: p.misses.Load()}
	for _, n := range p.kinds() {
		stats.Wanted += n
	}
	for _, s := range p.machines() {
		if s.Info().Status == statusPooled {
			stats.Ready++
		}
	}
	return stats
}

// want has the pool make machines of the kind.
func (p *warmPool) want(k kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted[k] = p.size
	p.wake.Notify()
}

// isWanted reports whether there should be machines of the kind.
func (p *warmPool) isWanted(k kind) bool { return p.kinds()[k] > 0 }

func (p *warmPool) kinds() map[kind]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.wanted)
}

// drop ends all kinds that are made from the snapshot, and their machines.
func (p *warmPool) drop(ctx context.Context, snapshot string) {
	p.unwant(snapshot)
	p.remove(ctx, slices.DeleteFunc(p.machines(), func(s *Sandbox) bool { return s.request.snapshot != snapshot }))
}

func (p *warmPool) unwant(snapshot string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.wanted, func(k kind, _ int) bool { return k.snapshot == snapshot })
}

// run keeps the pool as it should be until ctx ends, and then removes all of it.
func (p *warmPool) run(ctx context.Context) {
	defer func() { p.remove(context.WithoutCancel(ctx), p.machines()) }()
	timer := time.NewTimer(poolQuiet)
	defer timer.Stop()
	after := backoff{pause: poolPause}
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake: // what does not fit goes at once, what is missing can wait
			p.remove(ctx, p.surplus())
			timer.Reset(poolQuiet)
		case <-timer.C:
			p.remove(ctx, p.surplus())
			timer.Reset(p.fill(ctx, &after))
		}
	}
}

// backoff is when to try again what failed.
type backoff struct {
	pause time.Duration
	until time.Time
}

// fill makes a machine if one is missing, and returns when to look again.
func (p *warmPool) fill(ctx context.Context, after *backoff) time.Duration {
	k, missing := p.shortage()
	if !missing {
		return poolLook
	}
	if wait := time.Until(after.until); wait > 0 {
		return wait
	}
	if err := p.add(ctx, k); err != nil {
		if ctx.Err() == nil {
			p.host.logError(ctx, slog.LevelWarn, "no machine could be made ahead of demand", err,
				slog.String("snapshot", k.snapshot), slog.Duration("retry_in", after.pause))
		}
		after.until, after.pause = time.Now().Add(after.pause), min(2*after.pause, longestPoolPause)
		return poolQuiet
	}
	after.pause = poolPause
	return poolQuiet
}

// remove destroys machines of the pool. What fails is tried again by Run.
func (p *warmPool) remove(ctx context.Context, machines []*Sandbox) {
	for _, s := range machines {
		if err := s.Destroy(ctx); err != nil && ctx.Err() == nil {
			s.logError(ctx, slog.LevelError, "machine of the warm pool cannot be removed yet", err)
		}
	}
}

// yieldOne removes a machine of the pool for a sandbox that needs what it has, and
// reports whether there was one.
func (p *warmPool) yieldOne(ctx context.Context) bool {
	machines := p.machines()
	return len(machines) > 0 && machines[0].Destroy(ctx) == nil
}

// machines returns the sandboxes of the pool in any status, in the order of their
// ids; not those in quarantine, which no program may touch.
func (p *warmPool) machines() []*Sandbox {
	return slices.DeleteFunc(p.host.registry.all(), func(s *Sandbox) bool { return !s.Info().isPooled() })
}

// surplus returns the machines that are not wanted, or that there is no room for.
func (p *warmPool) surplus() (surplus []*Sandbox) {
	low := p.memoryBelow(poolEnds)
	left := p.kinds()
	room := p.host.registry.memoryRoom()
	for _, s := range p.machines() {
		if s.Info().Status != statusPooled {
			continue
		}
		k := kindOf(s)
		if low || left[k] <= 0 || p.host.registry.cost(k.size) > room {
			surplus = append(surplus, s)
			continue
		}
		left[k]--
		room -= p.host.registry.cost(k.size)
	}
	return surplus
}

// shortage returns the kind of a machine that should be made now, if there is one.
func (p *warmPool) shortage() (kind, bool) {
	left := p.kinds()
	memoryMiB := 0
	for _, s := range p.machines() {
		left[kindOf(s)]--
		memoryMiB += p.host.registry.cost(s.request.Size)
	}
	maps.DeleteFunc(left, func(_ kind, n int) bool { return n <= 0 })
	if len(left) == 0 || p.memoryBelow(poolGrows) || p.host.registry.isBusy() {
		return kind{}, false
	}
	for k := range left {
		if p.host.registry.hasRoom(wrenn.Size{VCPUs: k.size.VCPUs, MemoryMiB: k.size.MemoryMiB + memoryMiB}) {
			return k, true
		}
	}
	return kind{}, false
}

// pick returns a machine of the kind, if there is one. Unlock it.
func (p *warmPool) pick(k kind) (locked, bool) {
	for _, s := range p.machines() {
		if kindOf(s) != k {
			continue
		}
		locked, ok := s.tryLock()
		if !ok {
			continue
		}
		if s.Info().Status == statusPooled {
			return locked, true
		}
		locked.unlock()
	}
	return locked{}, false
}

func kindOf(s *Sandbox) kind { return kind{s.request.snapshot, s.request.Size} }

// add makes a machine of the kind.
func (p *warmPool) add(ctx context.Context, k kind) error {
	s, _ := newSandbox(p.host, request{
		id: wrenn.NewSandboxID(), snapshot: k.snapshot, SandboxSpec: wrenn.SandboxSpec{Template: journal.PoolTemplate, Size: k.size},
	}).tryLock()
	defer s.unlock()
	defer close(s.made)
	p.host.registry.add(s.Sandbox)
	source := func(ctx context.Context) (instance.Source, error) { return p.host.snapshotSource(ctx, k.snapshot) }
	err := s.perform(ctx, operation{trace: "made", to: statusPooled}, func(ctx context.Context, undo *rollback.Stack) error {
		if err := s.assemble(ctx, undo, source); err != nil {
			return err
		}
		watchPooled(ctx, s)
		return nil
	})
	if err == nil {
		s.log(ctx, slog.LevelDebug, "machine made ahead of demand", slog.String("snapshot", k.snapshot))
	}
	return err
}

// watchPooled removes a machine of the pool that ends by itself.
func watchPooled(ctx context.Context, s locked) {
	s.watch(ctx, s.other, nil, func(ctx context.Context, cause error) {
		if s.Info().Status != statusPooled {
			return
		}
		s.logError(ctx, slog.LevelWarn, "machine of the warm pool ended by itself", cause)
		if err := s.destroy(ctx); err != nil {
			s.logError(ctx, slog.LevelError, "machine of the warm pool cannot be removed yet", err)
		}
	})
}

// memoryBelow reports whether less than one part of so many of the host's memory
// is available. If that cannot be told it is not.
func (p *warmPool) memoryBelow(parts int) bool {
	now, err := p.memory()
	return err == nil && now.availableKiB < now.totalKiB/parts
}
