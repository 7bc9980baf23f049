//go:build root

package livetest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// fault is something that goes wrong, on one of the planes and hosts, and is mended when
// wait has returned.
type fault struct {
	name   string
	weight int
	do     func(t *testing.T, f *fleet, one int, wait func())
}

// faults are all of them. The number that each gets chooses a plane and a host.
func faults() []fault {
	return []fault{
		{"kill a control plane", 3, func(t *testing.T, f *fleet, one int, wait func()) {
			t.Helper()
			p := f.planes[one%planes]
			p.kill(t)
			wait()
			p.start(t)
		}},
		{"stop a control plane by SIGSTOP", 2, func(t *testing.T, f *fleet, one int, wait func()) {
			t.Helper()
			stopped(t, f.planes[one%planes].process.Signal, wait)
		}},
		{"kill an agent", 4, func(t *testing.T, f *fleet, one int, wait func()) {
			t.Helper()
			h := f.hosts[one%hosts]
			testkit.Must(t, h.Kill())
			wait()
			testkit.Must(t, h.Start(t.Context()))
		}},
		{"restart an agent", 2, func(t *testing.T, f *fleet, one int, wait func()) {
			t.Helper()
			h := f.hosts[one%hosts]
			testkit.Must(t, h.Stop(t.Context()))
			wait()
			testkit.Must(t, h.Start(t.Context()))
		}},
		{"stop an agent by SIGSTOP", 2, func(t *testing.T, f *fleet, one int, wait func()) {
			t.Helper()
			stopped(t, f.hosts[one%hosts].Signal, wait)
		}},
		{"restart PostgreSQL", 2, func(t *testing.T, f *fleet, _ int, wait func()) {
			t.Helper()
			f.stopDB()
			wait()
			f.startDB()
		}},
		{"kill the snapshot store", 2, func(t *testing.T, f *fleet, _ int, wait func()) {
			t.Helper()
			f.store.Kill(t)
			wait()
			f.store.Start(t)
		}},
		{"make the snapshot store read-only", 1, func(t *testing.T, f *fleet, _ int, wait func()) {
			t.Helper()
			f.store.Kill(t)
			f.store.Start(t, "--readonly")
			wait()
			f.store.Kill(t)
			f.store.Start(t)
		}},
		{"break the line from the control planes to an agent", 3, func(_ *testing.T, f *fleet, one int, wait func()) {
			broken(f.hosts[one%hosts].control, one, wait)
		}},
		{"break the line from an agent to the snapshot store", 2, func(_ *testing.T, f *fleet, one int, wait func()) {
			broken(f.hosts[one%hosts].store, one, wait)
		}},
		{"break the line from a control plane to PostgreSQL", 3, func(_ *testing.T, f *fleet, one int, wait func()) {
			broken(f.planes[one%planes].database, one, wait)
		}},
		{"lose a host", 1, func(t *testing.T, f *fleet, one int, _ func()) { t.Helper(); f.lose(t, one%hosts) }},
	}
}

func stopped(t *testing.T, signal func(os.Signal) error, wait func()) {
	t.Helper()
	testkit.Must(t, signal(syscall.SIGSTOP))
	wait()
	testkit.Must(t, signal(syscall.SIGCONT))
}

// broken breaks a line in one of the ways.
func broken(l *testkit.Link, one int, wait func()) {
	ways := []testkit.Line{{Cut: true}, {Stalled: true}, {Delay: 50 * time.Millisecond}}
	l.Set(ways[one/6%len(ways)])
	wait()
	l.Set(testkit.Line{})
}

// hurt does one fault after the other, chosen by r, until ctx ends, and returns how many
// of each it did.
func (f *fleet) hurt(t *testing.T, ctx context.Context, r *rand.Rand) map[string]int { //nolint:revive // t is first in tests
	t.Helper()
	var all []fault
	for _, kind := range faults() {
		for range kind.weight {
			all = append(all, kind)
		}
	}
	done := map[string]int{}
	for pause(ctx, time.Duration(500+r.IntN(2500))*time.Millisecond) && !t.Failed() {
		kind, one, lasts := all[r.IntN(len(all))], r.IntN(18), time.Duration(r.IntN(2500))*time.Millisecond
		t.Logf("%s fault: %s (%d) for %s", time.Now().Format("05.000"), kind.name, one, lasts)
		kind.do(t, f, one, func() { time.Sleep(lasts) }) // how long the fault lasts
		done[kind.name]++
	}
	return done
}

// move drains one host after the other, chosen by r, until ctx ends.
func (f *fleet) move(t *testing.T, ctx context.Context, r *rand.Rand) { //nolint:revive // t is first in tests
	t.Helper()
	for pause(ctx, time.Duration(2000+r.IntN(4000))*time.Millisecond) && !t.Failed() {
		f.drain(t, r.IntN(hosts), time.Duration(r.IntN(8000))*time.Millisecond)
	}
}

// drain drains a host for at most that long.
func (f *fleet) drain(t *testing.T, one int, lasts time.Duration) {
	t.Helper()
	f.calm.RLock()
	defer f.calm.RUnlock()
	id := f.hosts[one].id
	t.Logf("%s drain %s for %s", time.Now().Format("05.000"), id, lasts)
	f.anywhere(t, "a drain begins", func(c *client.Client) error { _, err := c.DrainHost(t.Context(), id); return err })
	ctx, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	for left := 1; left > 0 && pause(ctx, 200*time.Millisecond); {
		if at, err := f.planes[one%planes].api.Host(ctx, id); err == nil && at.Drain != nil {
			left = at.Drain.Left
		}
	}
	f.anywhere(t, "a drain ends", func(c *client.Client) error { _, err := c.UncordonHost(t.Context(), id); return err })
}

// lose has a host lose its power, and declares it lost. Another one joins in its place.
func (f *fleet) lose(t *testing.T, one int) {
	t.Helper()
	f.calm.Lock()
	defer f.calm.Unlock()
	gone := f.hosts[one]
	before := f.known(t, gone.id)
	testkit.Must(t, gone.Close(t.Context()))
	f.anywhere(t, "host "+gone.id+" is lost", func(c *client.Client) error { _, err := c.LoseHost(t.Context(), gone.id); return err })
	f.hosts = append(f.hosts[:one], f.hosts[one+1:]...)
	f.join(t)
	for _, k := range before {
		testkit.Must(t, k.settle(t, f))
	}
	t.Logf("lost %s with %d sandboxes of clients", gone.id, len(before))
}

// known is what is known of a sandbox before its host is lost.
type known struct {
	model  *model
	stored bool // it is paused, and in the snapshot store
	// newest is its newest checkpoint that is in the snapshot store by its row.
	newest *saved
}

// known returns the sandboxes of users that are on the host.
func (f *fleet) known(t *testing.T, id string) (found []known) {
	t.Helper()
	for _, u := range f.users {
		for _, m := range u.models {
			var k *known
			f.anywhere(t, "a sandbox is described", func(c *client.Client) (err error) {
				k, err = m.knownOn(t.Context(), c, id)
				return err
			})
			if k != nil {
				found = append(found, *k)
			}
		}
	}
	return found
}

// knownOn returns nil for a sandbox that is on another host.
func (m *model) knownOn(ctx context.Context, c *client.Client, id string) (*known, error) {
	placed, err := c.ExplainPlacement(ctx, m.id)
	if err != nil || placed.Host != id {
		return nil, err
	}
	k := &known{model: m}
	sb, err := c.Sandbox(ctx, m.id)
	if err != nil {
		return nil, err
	}
	if sb.State != m.want {
		return nil, fmt.Errorf("%s is %s, not yet %s", m.id, sb.State, m.want)
	}
	k.stored = sb.State == client.Paused && !sb.StoredAt.IsZero()
	list, err := c.Checkpoints(ctx, m.id)
	if err != nil {
		return nil, err
	}
	for _, made := range list.Checkpoints {
		// The host knows earlier than the row, which is what the loss goes by.
		if at := m.saved(made.ID); at != nil && !made.StoredAt.IsZero() && !made.StoredAt.After(sb.CheckpointStoredAt) {
			k.newest = at
		}
	}
	return k, nil
}

// settle waits until the sandbox is what the loss of its host makes of it, and has its
// model say so.
func (k known) settle(t *testing.T, f *fleet) error {
	t.Helper()
	m := k.model
	var sb *client.Sandbox
	f.anywhere(t, "a sandbox of a lost host has its state", func(c *client.Client) (err error) {
		if sb, err = c.Sandbox(t.Context(), m.id); err == nil && !settled(sb.State) {
			err = errors.New(string(sb.State))
		}
		return err
	})
	survives := k.stored || m.restore && m.want == client.Running && k.newest != nil
	switch {
	case sb.State == client.Failed && sb.EndCause == client.CauseLost && !survives:
		m.user.lost(m)
		return nil
	case sb.State == client.Failed || sb.State == client.Stopped:
		return fmt.Errorf("%s was %+v and is %+v", m.id, k, sb)
	}
	m.onlyStored = true
	if m.want == client.Running { // at its newest checkpoint that is stored
		m.rewound = k.newest
		if m.rewound == nil {
			m.rewound = &saved{}
		}
	}
	return nil
}
