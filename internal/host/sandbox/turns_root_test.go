//go:build root

package sandbox

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmfake"
)

// TestManyBootsAtOnce has 20 sandboxes of a size without a snapshot made on a host
// that can boot two at a time: all are made, most of them from the snapshot that the
// host makes meanwhile, and those that wait say so.
func TestManyBootsAtOnce(t *testing.T) {
	const count, places = 20, 2
	l := newLab(t)
	l.network.Max = count + 2
	l.cfg.Boots, l.cfg.Restores, l.cfg.Sizes = places, places, 1
	var at, most, started atomic.Int32
	boot, snapshot := make(chan struct{}), make(chan struct{}) // closed when the first machines may boot, and when there is a snapshot
	l.hook = func(step vmfake.Step) error {
		switch step {
		case vmfake.StepFiles:
			if n := at.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-boot
			if started.Add(1) > 2*places { // the first ones, and then the guest of the snapshot and others
				<-snapshot
			}
		case vmfake.StepBoot:
			at.Add(-1)
		}
		return nil
	}
	m := l.open(t)
	run(t, m)
	var work sync.WaitGroup
	made := make([]*Sandbox, count)
	for i := range count {
		work.Go(func() {
			sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small})
			if err != nil {
				t.Error(err)
			}
			made[i] = sb
		})
	}
	// The guest of the snapshot is at the front, and in no inventory.
	testkit.WaitUntil(t, "the others wait", func() bool { return m.boots.queued() == count+1-places })
	waiting := 0
	for _, info := range m.Inventory().Sandboxes {
		if info.State != wrenn.ObservedStarting {
			t.Errorf("%+v", info)
		}
		if strings.Contains(info.Reason, "waiting for its turn to be booted, with ") {
			waiting++
		}
	}
	if waiting != count-places {
		t.Errorf("%d say that they wait, want %d", waiting, count-places)
	}
	close(boot)
	testkit.WaitUntil(t, "there is a snapshot of the size", func() bool { return m.Warmed(small) && !m.sizes.isWanted(small) })
	close(snapshot)
	work.Wait()
	if n := most.Load(); n > places {
		t.Errorf("%d machines were started at a time, want %d at most", n, places)
	}
	booted := 0
	for _, sb := range made {
		if sb == nil {
			continue
		}
		if reason := sb.Info().Reason; reason != "" {
			t.Errorf("a sandbox that runs says %q", reason)
		}
		if sb.instance.Record.Source == "" {
			booted++
		}
		must(t, sb.Destroy(t.Context()))
	}
	if booted > 3*places-1 {
		t.Errorf("%d of %d booted although there is a snapshot", booted, count)
	}
}

// TestACallerThatLeavesItsTurn leaves nothing, and no place taken.
func TestACallerThatLeavesItsTurn(t *testing.T) {
	l := newLab(t)
	l.cfg.Boots = 1
	m := l.open(t)
	run(t, m)
	busy, err := m.boots.acquire(t.Context(), false, nil)
	must(t, err)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	id, spec := wrenn.NewSandboxID(), wrenn.SandboxSpec{Size: small}
	go func() {
		_, err := m.Ensure(ctx, id, spec)
		left <- err
	}()
	testkit.WaitUntil(t, "it waits", func() bool { return m.boots.queued() == 1 })
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("Ensure() = %v", err)
	}
	if _, err := m.Get(id); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Get() = %v, want that nothing is left", err)
	}

	go func() { // one that is destroyed while it waits
		_, err := m.Ensure(t.Context(), id, spec)
		left <- err
	}()
	testkit.WaitUntil(t, "it waits", func() bool { return m.boots.queued() == 1 })
	sb, err := m.Get(id)
	must(t, err)
	must(t, sb.Destroy(t.Context()))
	if err := <-left; err == nil {
		t.Error("a sandbox that was destroyed runs")
	}
	busy()
	must(t, ensure(t, m, spec).Destroy(t.Context()))
	l.wantClean(t, m)
}

// TestSnapshotsOfSizesAreBounded: the one that was not used for the longest time goes.
func TestSnapshotsOfSizesAreBounded(t *testing.T) {
	l := newLab(t)
	l.cfg.Sizes = 2
	m := l.open(t)
	must(t, m.Warm(t.Context(), small)) // does not count
	sizes := []wrenn.Size{{VCPUs: 1, MemoryMiB: 66}, {VCPUs: 1, MemoryMiB: 68}, {VCPUs: 1, MemoryMiB: 70}}
	for _, other := range sizes[:2] {
		must(t, m.makeSize(t.Context(), other))
	}
	base, ok := m.baseSnapshot(t.Context(), sizes[0])
	if !ok {
		t.Fatal("there is no snapshot")
	}
	base.Release()
	must(t, m.makeSize(t.Context(), sizes[2]))
	for other, want := range map[wrenn.Size]bool{small: true, sizes[0]: true, sizes[1]: false, sizes[2]: true} {
		if got := m.Warmed(other); got != want {
			t.Errorf("%v has a snapshot: %t, want %t", other, got, want)
		}
	}
	for range bootsToSnapshot - 1 {
		m.sizes.booted(sizes[1])
	}
	if _, wanted := m.sizes.next(); wanted {
		t.Error("a snapshot is wanted too early")
	}
	m.sizes.booted(sizes[1])
	if next, _ := m.sizes.next(); next != sizes[1] {
		t.Errorf("%v is wanted", next)
	}
}
