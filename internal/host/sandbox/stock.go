package sandbox

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wrenn"
	"wrenn/internal/host/sandbox/journal"
)

const (
	// stockQuiet is how long nothing must have changed on the host before a
	// machine is made for the stock: whoever got a sandbox uses it at once.
	stockQuiet = 250 * time.Millisecond
	// stockLook is how often the host's memory is looked at.
	stockLook = 5 * time.Second
	// stockPause and longestStockPause are the pauses after a failure; they double.
	stockPause        = time.Second
	longestStockPause = time.Minute
)

// kind is what machines in stock are good for.
type kind struct {
	snapshot string
	shape    Shape
}

// stock is what is known of the machines that are made ahead of need. Each is a
// Sandbox that is nobody's: its journal says "making" for ever, with the machine
// as its spare, so that whoever finds it removes it. Of the Manager's boxes those
// are in stock whose status is statusPooled.
type stock struct {
	wake         chan struct{}          // holds one: tendStock has something to look at
	memory       func() (memory, error) // of this machine
	hits, misses atomic.Uint64

	mu     sync.Mutex // guards wanted
	wanted map[kind]int
}

// Stock counts the machines that are made ahead of need.
type Stock struct {
	Ready, Wanted int
	Hits, Misses  uint64 // of sandboxes that wanted one, since Open
}

// Stock returns the counts of this moment.
func (m *Manager) Stock() Stock {
	count := Stock{Hits: m.stock.hits.Load(), Misses: m.stock.misses.Load()}
	for _, n := range m.stock.all() {
		count.Wanted += n
	}
	for _, s := range m.all() {
		if s.Info().Status == statusPooled {
			count.Ready++
		}
	}
	return count
}

// want sets how many machines of a kind shall be in stock.
func (st *stock) want(k kind, n int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.wanted == nil {
		st.wanted = map[kind]int{}
	}
	st.wanted[k] = n
}

// unwant ends all kinds that are made from the snapshot.
func (st *stock) unwant(snapshot string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	maps.DeleteFunc(st.wanted, func(k kind, _ int) bool { return k.snapshot == snapshot })
}

func (st *stock) all() map[kind]int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return maps.Clone(st.wanted)
}

func (st *stock) rouse() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// tendStock keeps the stock as it should be until ctx ends, and then ends all of it.
func (m *Manager) tendStock(ctx context.Context) {
	defer func() { m.endStock(context.WithoutCancel(ctx), m.stocked()) }()
	timer := time.NewTimer(stockQuiet)
	defer timer.Stop()
	after := backoff{pause: stockPause}
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.stock.wake: // what does not fit goes at once, what is missing can wait
			m.endStock(ctx, m.surplus())
			timer.Reset(stockQuiet)
		case <-timer.C:
			m.endStock(ctx, m.surplus())
			timer.Reset(m.fillStock(ctx, &after))
		}
	}
}

// backoff is when to try again what failed.
type backoff struct {
	pause time.Duration
	until time.Time
}

// fillStock makes a machine if one is missing, and says when to look again.
func (m *Manager) fillStock(ctx context.Context, after *backoff) time.Duration {
	k, missing := m.shortage()
	if !missing {
		return stockLook
	}
	if wait := time.Until(after.until); wait > 0 {
		return wait
	}
	if err := m.addToStock(ctx, k); err != nil {
		if ctx.Err() == nil {
			m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "no machine could be made ahead of need",
				slog.String("snapshot", k.snapshot), slog.Duration("retry_in", after.pause), slog.Any("err", err))
		}
		after.until, after.pause = time.Now().Add(after.pause), min(2*after.pause, longestStockPause)
		return stockQuiet
	}
	after.pause = stockPause
	return stockQuiet
}

// endStock destroys machines of the stock. What does not work is tried again by Run.
func (m *Manager) endStock(ctx context.Context, boxes []*Sandbox) {
	for _, s := range boxes {
		if err := s.Destroy(ctx); err != nil && ctx.Err() == nil {
			m.cfg.Log.LogAttrs(ctx, slog.LevelError, "a machine in stock cannot be removed yet", slog.String("sandbox", string(s.id)), slog.Any("err", err))
		}
	}
}

// unstock ends the stock that was made from the snapshot.
func (m *Manager) unstock(ctx context.Context, snapshot string) {
	m.stock.unwant(snapshot)
	m.endStock(ctx, slices.DeleteFunc(m.stocked(), func(s *Sandbox) bool { return s.request.Snapshot != snapshot }))
}

// yieldOne gives up a machine of the stock for somebody who needs what it has,
// and says whether there was one.
func (m *Manager) yieldOne(ctx context.Context) bool {
	boxes := m.stocked()
	return len(boxes) > 0 && boxes[0].Destroy(ctx) == nil
}

// stocked are the sandboxes of the stock, whatever they do, in the order of
// their ids; not those that nobody can do anything about.
func (m *Manager) stocked() []*Sandbox {
	return slices.DeleteFunc(m.all(), func(s *Sandbox) bool { return !s.Info().isStock() })
}

// surplus are the machines in stock that nobody wants, or that there is no room for.
func (m *Manager) surplus() (boxes []*Sandbox) {
	low := m.memoryBelow(stockEnds)
	left := m.stock.all()
	stocked := m.stocked()
	m.mu.Lock()
	defer m.mu.Unlock()
	_, taken := m.taken()
	limit := m.cfg.Limits.MemoryMiB
	for _, s := range stocked {
		if s.Info().Status != statusPooled {
			continue
		}
		taken += s.request.Shape.MemoryMiB
		if k := s.kind(); !low && left[k] > 0 && (limit == 0 || taken <= limit) {
			left[k]--
			continue
		}
		taken -= s.request.Shape.MemoryMiB
		boxes = append(boxes, s)
	}
	return boxes
}

// shortage is the kind of a machine that should be made now, if there is one.
func (m *Manager) shortage() (kind, bool) {
	left := m.stock.all()
	memoryMiB := 0
	for _, s := range m.stocked() {
		left[s.kind()]--
		memoryMiB += s.request.Shape.MemoryMiB
	}
	maps.DeleteFunc(left, func(_ kind, n int) bool { return n <= 0 })
	if len(left) == 0 || m.memoryBelow(stockGrows) {
		return kind{}, false
	}
	free, err := m.diskFreeMiB()
	if err != nil {
		return kind{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy() {
		return kind{}, false // its end will say so
	}
	for k := range left {
		if m.admit(Shape{VCPUs: k.shape.VCPUs, MemoryMiB: k.shape.MemoryMiB + memoryMiB}, free) == nil {
			return k, true
		}
	}
	return kind{}, false
}

// busy says whether somebody waits for a sandbox. The caller holds mu.
func (m *Manager) busy() bool {
	for _, s := range m.boxes {
		switch s.Info().Status {
		case StatusStarting, StatusResuming, StatusRestoring:
			return true
		default:
		}
	}
	return false
}

// take returns a machine in stock of the kind, whose turn the caller then has,
// or nil.
func (m *Manager) take(k kind) *Sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.boxes {
		if !s.isStock() || s.kind() != k {
			continue
		}
		select {
		case s.turn <- struct{}{}:
		default:
			continue // somebody else is at it
		}
		if s.Info().Status == statusPooled {
			return s
		}
		s.unlock()
	}
	return nil
}

// isWanted says whether there should be machines of the kind.
func (st *stock) isWanted(k kind) bool { return st.all()[k] > 0 }

// isStock says whether the sandbox is nobody's, but a machine made ahead of need.
func (s *Sandbox) isStock() bool { return s.request.Template == journal.PoolTemplate }

// isStock is the same of what is not in quarantine: that is shown.
func (i Info) isStock() bool {
	return i.Template == journal.PoolTemplate && i.Status != StatusQuarantined
}

func (s *Sandbox) kind() kind { return kind{s.request.Snapshot, s.request.Shape} }

// addToStock makes a machine of the kind.
func (m *Manager) addToStock(ctx context.Context, k kind) error {
	s := newSandbox(m, Request{ID: wrenn.NewSandboxID(), Template: journal.PoolTemplate, Shape: k.shape, Snapshot: k.snapshot})
	s.turn <- struct{}{}
	defer s.unlock()
	defer close(s.made)
	m.add(s)
	ctx, done := s.interruptible(ctx)
	defer done()
	began := time.Now()
	err := s.assemble(ctx, func(ctx context.Context) (origin, error) { return m.restoration(ctx, k.snapshot) }, s.build)
	if err != nil {
		return err
	}
	s.watchRest(ctx)
	s.set(statusPooled, "")
	s.trace("made", began)
	m.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "machine made ahead of need", slog.String("sandbox", string(s.id)), slog.String("snapshot", k.snapshot))
	return nil
}

func (m *Manager) add(s *Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boxes[s.id] = s
}
