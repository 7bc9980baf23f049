package guest

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"wrenn.dev/internal/guest/freeze"
)

// groups stand for the cgroups.
type groups struct {
	frozen bool
	fails  error // of Freeze
}

func (g *groups) Freeze(ctx context.Context) error {
	if g.fails != nil {
		return g.fails
	}
	g.frozen = true
	return context.Cause(ctx)
}

func (g *groups) Thaw() error {
	g.frozen = false
	return nil
}

// newTestFreezer returns a freezer of g, and how many programs could start.
func newTestFreezer(g *groups, sync func() error) (f *freezer, held *bool) {
	held = new(bool)
	f = newFreezer(nil, func(context.Context) (func(), error) {
		*held = true
		return func() { *held = false }, nil
	}, sync, slog.New(slog.DiscardHandler))
	f.groups = g
	return f, held
}

func synced() error { return nil }

func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &groups{}
		f, held := newTestFreezer(g, synced)
		check := func(when string, want bool) {
			t.Helper()
			synctest.Wait()
			if g.frozen != want || *held != want {
				t.Errorf("%s: frozen %t, starts held %t; want %t", when, g.frozen, *held, want)
			}
		}
		lease := leaseTicks * leaseTick
		for range 2 {
			if err := f.freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(lease - time.Second/2)
			check("before the lease ends", true)
		}
		time.Sleep(time.Second)
		check("after the lease", false)

		if err := errors.Join(f.freeze(t.Context()), f.thaw(t.Context()), f.freeze(t.Context())); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lease - time.Second/2)
		check("before the second lease ends", true)
		if err := errors.Join(f.thaw(t.Context()), f.thaw(t.Context())); err != nil {
			t.Fatal(err)
		}
		check("after the thaw", false)
		time.Sleep(2 * lease)
	})
}

func TestFreezeFails(t *testing.T) {
	stuck := &freeze.StuckError{Group: "user", Hung: []string{`7 ("cp")`}, Err: context.DeadlineExceeded}
	broken := errors.New("input/output error")
	for _, tc := range []struct {
		name   string
		groups *groups
		sync   func() error
		want   error
		status int
	}{
		{"no cgroup2", &groups{fails: freeze.ErrUnsupported}, synced, freeze.ErrUnsupported, 409},
		{"a process that hangs", &groups{fails: stuck}, synced, stuck, 504},
		{"a disk that fails", &groups{}, func() error { return broken }, broken, 500},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, held := newTestFreezer(tc.groups, tc.sync)
			err := f.freeze(t.Context())
			if !errors.Is(err, tc.want) || freezeStatus(err) != tc.status {
				t.Errorf("freeze() = %v, status %d; want %v, %d", err, freezeStatus(err), tc.want, tc.status)
			}
			if tc.groups.frozen || *held || f.unwatch != nil {
				t.Errorf("frozen %t, starts held %t, watched %t; want nothing", tc.groups.frozen, *held, f.unwatch != nil)
			}
		})
	}
}

// A caller that leaves while the disk is written finds everything running.
func TestFreezeIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	calls := 0
	g := &groups{}
	f, held := newTestFreezer(g, func() error {
		if calls++; calls == 2 {
			cancel()
			<-release
		}
		return nil
	})
	if err := f.freeze(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("freeze() = %v, want %v", err, context.Canceled)
	}
	if g.frozen || *held {
		t.Errorf("frozen %t, starts held %t; want neither", g.frozen, *held)
	}
}
