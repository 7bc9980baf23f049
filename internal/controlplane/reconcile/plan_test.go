package reconcile_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/reconcile"
)

var (
	asOf  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	grace = reconcile.Grace{Pending: time.Minute, Starting: time.Minute, PausingOrResuming: time.Minute, Stopping: time.Minute}
)

const (
	absent = wrenn.ObservedState("absent")
	fresh  = time.Second // younger than any grace
	old    = time.Hour
)

func row(state wrenn.State, age time.Duration, reason string) reconcile.Row {
	return reconcile.Row{Sandbox: wrenn.Sandbox{ID: "i1", Host: "h1", State: state, Reason: reason, SandboxSpec: wrenn.SandboxSpec{EndOfLife: wrenn.EndOfLife{Timeout: time.Minute}}, UpdatedAt: asOf.Add(-age), Version: 7}}
}

func inventory(state wrenn.ObservedState, reason string) wrenn.Inventory {
	inv := wrenn.Inventory{Host: "h1"}
	if state != absent {
		inv.Sandboxes = []wrenn.ObservedSandbox{{ID: "i1", State: state, Reason: reason, EndOfLife: wrenn.EndOfLife{Timeout: time.Minute}}}
	}
	return inv
}

// TestPlan is the table of docs/control-plane.md.
func TestPlan(t *testing.T) {
	for _, c := range []struct {
		row    wrenn.State
		reason string // of the row
		age    time.Duration
		left   bool // abandoned
		seen   wrenn.ObservedState
		kind   reconcile.Kind // "" is nothing
		to     wrenn.State
		report bool
	}{
		{row: wrenn.Pending, age: fresh, seen: absent},
		{row: wrenn.Pending, age: old, seen: absent, kind: reconcile.Move, to: wrenn.Failed},

		{row: wrenn.Starting, age: fresh, seen: absent},
		{row: wrenn.Starting, age: old, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Starting, age: old, seen: wrenn.ObservedStarting},
		{row: wrenn.Starting, age: fresh, seen: wrenn.ObservedRunning, kind: reconcile.Move, to: wrenn.Running},
		{row: wrenn.Starting, age: fresh, seen: wrenn.ObservedPaused, kind: reconcile.Move, to: wrenn.Paused},
		{row: wrenn.Starting, age: fresh, seen: wrenn.ObservedStopping},
		{row: wrenn.Starting, age: fresh, seen: wrenn.ObservedStopped, kind: reconcile.Acknowledge, to: wrenn.Failed},
		{row: wrenn.Starting, age: fresh, seen: wrenn.ObservedFailed, kind: reconcile.Acknowledge, to: wrenn.Failed},

		{row: wrenn.Running, age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Running, age: old, seen: wrenn.ObservedRunning},
		{row: wrenn.Running, age: old, seen: wrenn.ObservedStarting},
		{row: wrenn.Running, age: fresh, seen: wrenn.ObservedPaused, kind: reconcile.Move, to: wrenn.Paused},
		{row: wrenn.Running, age: -fresh, seen: wrenn.ObservedPaused},
		{row: wrenn.Running, age: old, seen: wrenn.ObservedStopping},
		{row: wrenn.Running, age: fresh, seen: wrenn.ObservedStopped, kind: reconcile.Acknowledge, to: wrenn.Stopped},
		{row: wrenn.Running, age: fresh, seen: wrenn.ObservedFailed, kind: reconcile.Acknowledge, to: wrenn.Failed},
		{row: wrenn.Running, age: fresh, seen: wrenn.ObservedQuarantined, kind: reconcile.Move, to: wrenn.Failed, report: true},
		{row: wrenn.Running, age: old, seen: wrenn.ObservedUnknown},

		{row: wrenn.Pausing, age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Pausing, age: fresh, seen: wrenn.ObservedRunning},
		{row: wrenn.Pausing, age: old, seen: wrenn.ObservedRunning, kind: reconcile.Move, to: wrenn.Running},
		{row: wrenn.Pausing, age: fresh, seen: wrenn.ObservedPaused, kind: reconcile.Move, to: wrenn.Paused},
		{row: wrenn.Pausing, age: fresh, seen: wrenn.ObservedStopped, kind: reconcile.Acknowledge, to: wrenn.Stopped},

		{row: wrenn.Paused, age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Paused, age: old, seen: wrenn.ObservedPaused},
		{row: wrenn.Paused, age: fresh, seen: wrenn.ObservedRunning, kind: reconcile.Move, to: wrenn.Running},
		{row: wrenn.Paused, age: fresh, seen: wrenn.ObservedStopped, kind: reconcile.Acknowledge, to: wrenn.Stopped},

		{row: wrenn.Resuming, age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Resuming, age: fresh, seen: wrenn.ObservedRunning, kind: reconcile.Move, to: wrenn.Running},
		{row: wrenn.Resuming, age: fresh, seen: wrenn.ObservedPaused},
		{row: wrenn.Resuming, age: old, seen: wrenn.ObservedPaused, kind: reconcile.Move, to: wrenn.Paused},

		{row: wrenn.Stopping, age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Stopped},
		{row: wrenn.Stopping, reason: "it did not boot", age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Stopping, age: fresh, seen: wrenn.ObservedRunning},
		{row: wrenn.Stopping, age: old, seen: wrenn.ObservedRunning, kind: reconcile.Destroy, to: wrenn.Stopped},
		{row: wrenn.Stopping, age: old, seen: wrenn.ObservedStarting, kind: reconcile.Destroy, to: wrenn.Stopped},
		{row: wrenn.Stopping, reason: "it did not boot", age: old, seen: wrenn.ObservedPaused, kind: reconcile.Destroy, to: wrenn.Failed},
		{row: wrenn.Stopping, age: old, seen: wrenn.ObservedStopping},
		{row: wrenn.Stopping, age: fresh, seen: wrenn.ObservedStopped, kind: reconcile.Acknowledge, to: wrenn.Stopped},
		{row: wrenn.Stopping, age: fresh, seen: wrenn.ObservedFailed, kind: reconcile.Acknowledge, to: wrenn.Stopped},
		{row: wrenn.Stopping, age: fresh, seen: wrenn.ObservedQuarantined, kind: reconcile.Move, to: wrenn.Failed, report: true},

		{row: wrenn.Stopped, age: old, seen: absent},
		{row: wrenn.Stopped, age: fresh, seen: wrenn.ObservedRunning, kind: reconcile.Destroy},
		{row: wrenn.Stopped, age: fresh, seen: wrenn.ObservedStopping},
		{row: wrenn.Stopped, age: fresh, seen: wrenn.ObservedStopped, kind: reconcile.Acknowledge},
		{row: wrenn.Stopped, age: old, seen: wrenn.ObservedQuarantined, report: true},

		{row: wrenn.Failed, age: old, seen: absent},
		{row: wrenn.Failed, age: old, seen: wrenn.ObservedRunning, report: true},
		{row: wrenn.Failed, age: old, seen: wrenn.ObservedFailed, kind: reconcile.Acknowledge},

		// Abandoned rows wait only for a host that works on them.
		{row: wrenn.Pending, left: true, age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Starting, left: true, age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Starting, left: true, age: fresh, seen: wrenn.ObservedStarting},
		{row: wrenn.Starting, left: true, age: fresh, seen: wrenn.ObservedRunning, kind: reconcile.Move, to: wrenn.Running},
		{row: wrenn.Pausing, left: true, age: fresh, seen: wrenn.ObservedRunning, kind: reconcile.Move, to: wrenn.Running},
		{row: wrenn.Pausing, left: true, age: fresh, seen: wrenn.ObservedPaused, kind: reconcile.Move, to: wrenn.Paused},
		{row: wrenn.Resuming, left: true, age: fresh, seen: wrenn.ObservedPaused, kind: reconcile.Move, to: wrenn.Paused},
		{row: wrenn.Resuming, left: true, age: fresh, seen: wrenn.ObservedRunning, kind: reconcile.Move, to: wrenn.Running},
		{row: wrenn.Stopping, left: true, age: fresh, seen: wrenn.ObservedRunning, kind: reconcile.Destroy, to: wrenn.Stopped},
		{row: wrenn.Stopping, left: true, age: fresh, seen: wrenn.ObservedStopping},
		{row: wrenn.Stopping, left: true, reason: "it did not boot", age: fresh, seen: absent, kind: reconcile.Move, to: wrenn.Failed},
		{row: wrenn.Starting, left: true, age: -fresh, seen: absent},

		// A row that changed since the inventory waits for the next round.
		{row: wrenn.Running, age: -fresh, seen: absent},
		{row: wrenn.Stopped, age: -fresh, seen: wrenn.ObservedRunning},
		{row: wrenn.Paused, age: -fresh, seen: wrenn.ObservedRunning},
	} {
		name := fmt.Sprintf("%s %v %v, %s", c.row, c.age, c.left, c.seen)
		t.Run(name, func(t *testing.T) {
			r := row(c.row, c.age, c.reason)
			r.Abandoned = c.left
			got := reconcile.Plan([]reconcile.Row{r}, inventory(c.seen, ""), asOf, grace)
			var kind reconcile.Kind
			var to wrenn.State
			if len(got.Actions) == 1 {
				kind, to = got.Actions[0].Kind, got.Actions[0].To
			}
			if len(got.Actions) > 1 || kind != c.kind || to != c.to || (len(got.Unknown) == 1) != c.report {
				t.Errorf("got %+v, unknown %+v; want %q to %q, report %v", got.Actions, got.Unknown, c.kind, c.to, c.report)
			}
			if to != "" && !c.row.Can(to) {
				t.Errorf("the states do not allow %s to %s", c.row, to)
			}
			if to == wrenn.Failed && got.Actions[0].Reason == "" {
				t.Error("it fails without a reason")
			}
		})
	}
}

func TestPlanOfOtherThings(t *testing.T) {
	t.Run("no row", func(t *testing.T) {
		for _, state := range []wrenn.ObservedState{wrenn.ObservedRunning, wrenn.ObservedPaused, wrenn.ObservedStopped, wrenn.ObservedQuarantined, wrenn.ObservedUnknown} {
			got := reconcile.Plan(nil, inventory(state, ""), asOf, grace)
			if len(got.Actions) != 0 || len(got.Unknown) != 1 {
				t.Errorf("%s: %+v", state, got)
			}
		}
	})
	t.Run("a copy on another host", func(t *testing.T) {
		r := row(wrenn.Running, old, "")
		r.Host = "h2"
		got := reconcile.Plan([]reconcile.Row{r}, inventory(wrenn.ObservedRunning, ""), asOf, grace)
		if len(got.Actions) != 0 || len(got.Unknown) != 1 {
			t.Errorf("live: %+v", got)
		}
		got = reconcile.Plan([]reconcile.Row{r}, inventory(wrenn.ObservedFailed, ""), asOf, grace)
		if len(got.Actions) != 1 || got.Actions[0].Kind != reconcile.Acknowledge || got.Actions[0].To != "" {
			t.Errorf("ended: %+v", got)
		}
	})
	t.Run("the host's reason is the row's", func(t *testing.T) {
		got := reconcile.Plan([]reconcile.Row{row(wrenn.Running, old, "")}, inventory(wrenn.ObservedStopped, "time was up"), asOf, grace)
		want := []reconcile.Action{{Kind: reconcile.Acknowledge, Row: row(wrenn.Running, old, "").Sandbox, To: wrenn.Stopped, Reason: "time was up"}}
		if diff := cmp.Diff(want, got.Actions); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("woken, with another timeout", func(t *testing.T) {
		r := row(wrenn.Paused, old, "")
		r.Timeout = time.Hour
		got := reconcile.Plan([]reconcile.Row{r}, inventory(wrenn.ObservedRunning, ""), asOf, grace)
		if len(got.Actions) != 2 || got.Actions[0].Kind != reconcile.Extend || got.Actions[1].To != wrenn.Running {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("paused, with another timeout", func(t *testing.T) {
		r := row(wrenn.Running, old, "")
		r.Timeout = time.Hour
		got := reconcile.Plan([]reconcile.Row{r}, inventory(wrenn.ObservedPaused, ""), asOf, grace)
		if len(got.Actions) != 1 || got.Actions[0].To != wrenn.Paused {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("another network policy", func(t *testing.T) {
		for state, observed := range map[wrenn.State]wrenn.ObservedState{wrenn.Running: wrenn.ObservedRunning, wrenn.Paused: wrenn.ObservedPaused} {
			r := row(state, old, "")
			r.Network.DenyByDefault = true
			got := reconcile.Plan([]reconcile.Row{r}, inventory(observed, ""), asOf, grace)
			if len(got.Actions) != 1 || got.Actions[0].Kind != reconcile.SetNetwork || got.Actions[0].To != "" {
				t.Errorf("%s: %+v", state, got)
			}
		}
	})
	t.Run("another network policy, which cannot be set now", func(t *testing.T) {
		for name, r := range map[string]reconcile.Row{"too new": row(wrenn.Running, -fresh, ""), "in transition": row(wrenn.Pausing, fresh, "")} {
			same := reconcile.Plan([]reconcile.Row{r}, inventory(wrenn.ObservedRunning, ""), asOf, grace)
			r.Network.DenyByDefault = true
			got := reconcile.Plan([]reconcile.Row{r}, inventory(wrenn.ObservedRunning, ""), asOf, grace)
			if len(got.Actions) != 0 || !got.Again || same.Again {
				t.Errorf("%s: %+v, and with the same policy %+v", name, got, same)
			}
		}
	})
	t.Run("other settings", func(t *testing.T) {
		for state, observed := range map[wrenn.State]wrenn.ObservedState{wrenn.Running: wrenn.ObservedRunning, wrenn.Paused: wrenn.ObservedPaused} {
			r := row(state, old, "")
			r.CheckpointEvery = time.Minute
			inv := inventory(observed, "")
			if got := reconcile.Plan([]reconcile.Row{r}, inv, asOf, grace); len(got.Actions) != 0 {
				t.Errorf("%s, on a host that cannot change them: %+v", state, got)
			}
			inv.Sandboxes[0].Settings = &wrenn.Settings{OnTimeout: wrenn.DestroyOnTimeout}
			if got := reconcile.Plan([]reconcile.Row{r}, inv, asOf, grace); len(got.Actions) != 1 || got.Actions[0].Kind != reconcile.SetSettings || got.Actions[0].To != "" {
				t.Errorf("%s: %+v", state, got)
			}
			inv.Sandboxes[0].Settings.CheckpointEvery = time.Minute
			if got := reconcile.Plan([]reconcile.Row{r}, inv, asOf, grace); len(got.Actions) != 0 {
				t.Errorf("%s, with the same: %+v", state, got)
			}
		}
	})
	t.Run("another timeout", func(t *testing.T) {
		r := row(wrenn.Running, old, "")
		r.Timeout = time.Hour
		got := reconcile.Plan([]reconcile.Row{r}, inventory(wrenn.ObservedRunning, ""), asOf, grace)
		if len(got.Actions) != 1 || got.Actions[0].Kind != reconcile.Extend {
			t.Errorf("got %+v", got)
		}
	})
}

// model is rows and a host on which plans are carried out.
type model struct {
	rows []reconcile.Row
	inv  wrenn.Inventory
	now  time.Time
}

func randomModel(rng *rand.Rand) *model {
	m := &model{now: asOf, inv: wrenn.Inventory{Host: "h1"}}
	seen := []wrenn.ObservedState{
		wrenn.ObservedStarting, wrenn.ObservedRunning, wrenn.ObservedPaused, wrenn.ObservedStopping, wrenn.ObservedStopped, wrenn.ObservedFailed, wrenn.ObservedQuarantined, wrenn.ObservedUnknown,
	}
	for i := range rng.IntN(30) {
		id := wrenn.SandboxID(fmt.Sprintf("i%02d", i))
		timeouts := []time.Duration{0, time.Minute, time.Hour}
		if rng.IntN(8) != 0 {
			m.rows = append(m.rows, reconcile.Row{Abandoned: rng.IntN(4) == 0, Sandbox: wrenn.Sandbox{
				ID: id, Host: []wrenn.HostID{"h1", "h1", "h1", "h2", ""}[rng.IntN(5)], State: wrenn.States()[rng.IntN(len(wrenn.States()))],
				Reason: []string{"", "why"}[rng.IntN(2)], SandboxSpec: wrenn.SandboxSpec{EndOfLife: wrenn.EndOfLife{Timeout: timeouts[rng.IntN(3)]}, Epoch: wrenn.Epoch(1 + rng.IntN(2))},
				UpdatedAt: asOf.Add(time.Duration(rng.IntN(240)-180) * time.Second), Version: int64(i),
			}})
		}
		if rng.IntN(4) != 0 {
			m.inv.Sandboxes = append(m.inv.Sandboxes, wrenn.ObservedSandbox{ID: id, State: seen[rng.IntN(len(seen))], EndOfLife: wrenn.EndOfLife{Timeout: timeouts[rng.IntN(3)]}, Epoch: wrenn.Epoch(rng.IntN(4))})
		}
	}
	return m
}

func (m *model) row(id wrenn.SandboxID) *reconcile.Row {
	for i := range m.rows {
		if m.rows[i].ID == id {
			return &m.rows[i]
		}
	}
	return nil
}

func (m *model) seen(id wrenn.SandboxID) *wrenn.ObservedSandbox {
	for i := range m.inv.Sandboxes {
		if m.inv.Sandboxes[i].ID == id {
			return &m.inv.Sandboxes[i]
		}
	}
	return nil
}

// carryOut checks each action against the rules before it executes it.
func (m *model) carryOut(t *testing.T, a reconcile.Action) {
	t.Helper()
	row, seen := m.row(a.Row.ID), m.seen(a.Row.ID)
	if seen != nil && a.Epoch != 0 && a.Epoch != seen.Epoch {
		t.Errorf("%+v does not mean what was seen: %+v", a, seen)
	}
	if a.Row.UpdatedAt.After(m.now) {
		t.Errorf("%s was changed since the inventory: %+v", row.ID, a)
	}
	switch a.Kind {
	case reconcile.Destroy:
		if !row.State.Ended() && row.State != wrenn.Stopping {
			t.Errorf("a live sandbox is destroyed though its row is %s", row.State)
		}
		if row.Host != m.inv.Host || seen.State == wrenn.ObservedQuarantined {
			t.Errorf("what is not ours is destroyed: %+v %+v", row, seen)
		}
		m.forget(row.ID)
	case reconcile.Acknowledge:
		if !seen.State.Ended() {
			t.Errorf("a %s sandbox is taken for ended", seen.State)
		}
		m.forget(row.ID)
	case reconcile.Supersede:
		if seen.Epoch == 0 || seen.Epoch >= row.Epoch {
			t.Errorf("epoch %d is superseded by %d", seen.Epoch, row.Epoch)
		}
		seen.State, seen.SupersededBy = wrenn.ObservedPaused, row.Epoch
	case reconcile.SetEpoch:
		if row.Epoch >= a.Epoch || row.Host != m.inv.Host {
			t.Errorf("the row %+v gets epoch %d", row, a.Epoch)
		}
		row.Epoch = a.Epoch
	case reconcile.Extend:
		seen.Timeout = row.Timeout
	case reconcile.SetNetwork:
		seen.Network = row.Network
	}
	if a.To != "" {
		if !row.State.Can(a.To) {
			t.Errorf("the states do not allow %s to %s", row.State, a.To)
		}
		row.State, row.Reason, row.UpdatedAt = a.To, a.Reason, m.now.Add(time.Millisecond)
	}
}

func (m *model) forget(id wrenn.SandboxID) {
	for i := range m.inv.Sandboxes {
		if m.inv.Sandboxes[i].ID == id {
			m.inv.Sandboxes = append(m.inv.Sandboxes[:i:i], m.inv.Sandboxes[i+1:]...)
			return
		}
	}
}

// rowsOf returns the rows that Store.HostRows returns for the host.
func (m *model) rowsOf() []reconcile.Row {
	var out []reconcile.Row
	for _, r := range m.rows {
		if r.Host == m.inv.Host && !r.State.Ended() || m.seen(r.ID) != nil {
			out = append(out, r)
		}
	}
	return out
}

// TestPlanKeepsTheLaw executes plans of random worlds: no live sandbox is destroyed
// unless its row wants that, and after three rounds the plan is empty: the first may find
// that the row has an older epoch than its host.
func TestPlanKeepsTheLaw(t *testing.T) {
	for seed := range uint64(20_000) {
		m := randomModel(rand.New(rand.NewPCG(seed, 0)))
		for range 3 {
			for _, a := range reconcile.Plan(m.rowsOf(), m.inv, m.now, grace).Actions {
				m.carryOut(t, a)
			}
			m.now = m.now.Add(old)
		}
		if left := reconcile.Plan(m.rowsOf(), m.inv, m.now, grace).Actions; len(left) != 0 {
			t.Errorf("after three rounds there is left: %+v", left)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestPlanStored: a paused sandbox that is stored is not lost with its host's files, and
// a host's copy is removed only if another one has fetched the same.
func TestPlanStored(t *testing.T) {
	const team, key = "t", "teams/t/snapshots/s1.x"
	now := time.Unix(1e9, 0)
	row := func(change func(*wrenn.Sandbox)) []reconcile.Row {
		sb := wrenn.Sandbox{ID: "a", Team: team, Host: "h1", State: wrenn.Paused, UpdatedAt: now.Add(-time.Hour)}
		change(&sb)
		return []reconcile.Row{{Sandbox: sb}}
	}
	seen := func(state wrenn.ObservedState, key string) []wrenn.ObservedSandbox {
		return []wrenn.ObservedSandbox{{ID: "a", State: state, Stored: wrenn.Stored{Key: key}}}
	}
	stored := func(sb *wrenn.Sandbox) { sb.Stored.Key = key }
	moved := func(sb *wrenn.Sandbox) { sb.Host, sb.MovedKey, sb.State = "h2", key, wrenn.Running }
	for name, c := range map[string]struct {
		rows    []reconcile.Row
		seen    []wrenn.ObservedSandbox
		want    reconcile.Kind
		unknown int
		again   bool
	}{
		"its files are gone":          {rows: row(stored)},
		"and it is not stored":        {rows: row(func(*wrenn.Sandbox) {}), want: reconcile.Move},
		"a copy":                      {rows: row(moved), seen: seen(wrenn.ObservedPaused, key), want: reconcile.Drop},
		"a copy that ran since":       {rows: row(moved), seen: seen(wrenn.ObservedPaused, key+"2"), unknown: 1},
		"a copy that runs":            {rows: row(moved), seen: seen(wrenn.ObservedRunning, ""), unknown: 1},
		"neither was stored":          {rows: row(func(sb *wrenn.Sandbox) { sb.Host = "h2" }), seen: seen(wrenn.ObservedPaused, ""), unknown: 1},
		"stored before the row knows": {rows: row(func(sb *wrenn.Sandbox) { sb.UpdatedAt = now.Add(time.Second) }), seen: seen(wrenn.ObservedPaused, key), again: true},
		"stored while it is pausing":  {rows: row(func(sb *wrenn.Sandbox) { sb.State = wrenn.Pausing }), seen: seen(wrenn.ObservedPaused, key), want: reconcile.Move, again: true},
	} {
		t.Run(name, func(t *testing.T) {
			got := reconcile.Plan(c.rows, wrenn.Inventory{Host: "h1", Sandboxes: c.seen}, now, grace)
			var kind reconcile.Kind
			if len(got.Actions) > 0 {
				kind = got.Actions[0].Kind
			}
			if kind != c.want || len(got.Actions) > 1 || len(got.Unknown) != c.unknown || got.Again != c.again {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestPlanEpochs: only the copy with the row's epoch on the row's host is the sandbox. What
// is older is paused and kept, and destroyed by nothing.
func TestPlanEpochs(t *testing.T) {
	const key = "teams/t/snapshots/s1.x"
	for name, c := range map[string]struct {
		host       wrenn.HostID // of the row
		state      wrenn.State
		seen       wrenn.ObservedState
		epoch      wrenn.Epoch // that was seen; the row has 2
		superseded bool
		key        string // where it is stored
		want       []reconcile.Kind
		unknown    int
		means      wrenn.Epoch // of the first action
	}{
		"an old copy runs":                        {host: "h2", state: wrenn.Running, seen: wrenn.ObservedRunning, epoch: 1, want: []reconcile.Kind{reconcile.Supersede}, unknown: 1, means: 1},
		"an old copy runs, and the row is paused": {host: "h2", state: wrenn.Paused, seen: wrenn.ObservedRunning, epoch: 1, want: []reconcile.Kind{reconcile.Supersede}, unknown: 1, means: 1},
		"an old copy is paused":                   {host: "h2", state: wrenn.Running, seen: wrenn.ObservedPaused, epoch: 1, want: []reconcile.Kind{reconcile.Supersede}, unknown: 1, means: 1},
		"an old copy is superseded":               {host: "h2", state: wrenn.Running, seen: wrenn.ObservedPaused, epoch: 1, superseded: true, unknown: 1},
		"and runs all the same":                   {host: "h2", state: wrenn.Running, seen: wrenn.ObservedRunning, epoch: 1, superseded: true, want: []reconcile.Kind{reconcile.Supersede}, unknown: 1},
		"an old copy that is the same":            {host: "h2", state: wrenn.Running, seen: wrenn.ObservedPaused, epoch: 1, key: key, want: []reconcile.Kind{reconcile.Drop}, means: 1},
		"the same, superseded":                    {host: "h2", state: wrenn.Running, seen: wrenn.ObservedPaused, epoch: 1, superseded: true, key: key, want: []reconcile.Kind{reconcile.Drop}},
		"an old copy has ended":                   {host: "h2", state: wrenn.Running, seen: wrenn.ObservedFailed, epoch: 1, want: []reconcile.Kind{reconcile.Acknowledge}, means: 1},
		"a copy of an older agent":                {host: "h2", state: wrenn.Running, seen: wrenn.ObservedRunning, unknown: 1},
		"a copy that a move left":                 {host: "h2", state: wrenn.Running, seen: wrenn.ObservedPaused, epoch: 3, unknown: 1},
		"the sandbox":                             {host: "h1", state: wrenn.Running, seen: wrenn.ObservedRunning, epoch: 2},
		"of an older agent":                       {host: "h1", state: wrenn.Running, seen: wrenn.ObservedRunning},
		"the host's disk is old":                  {host: "h1", state: wrenn.Running, seen: wrenn.ObservedRunning, epoch: 1, want: []reconcile.Kind{reconcile.Move, reconcile.Supersede}, unknown: 1, means: 1},
		"fetched again":                           {host: "h1", state: wrenn.Paused, seen: wrenn.ObservedPaused, epoch: 3, want: []reconcile.Kind{reconcile.SetEpoch}, means: 3},
		"deleted":                                 {host: "h1", state: wrenn.Stopped, seen: wrenn.ObservedRunning, epoch: 2, want: []reconcile.Kind{reconcile.Destroy}, means: 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := row(c.state, old, "")
			r.Host, r.Epoch, r.MovedKey = c.host, 2, key
			inv := inventory(c.seen, "")
			inv.Sandboxes[0].Epoch, inv.Sandboxes[0].Stored.Key = c.epoch, c.key
			if c.superseded {
				inv.Sandboxes[0].SupersededBy = 2
			}
			got := reconcile.Plan([]reconcile.Row{r}, inv, asOf, grace)
			var kinds []reconcile.Kind
			for _, a := range got.Actions {
				kinds = append(kinds, a.Kind)
				if a.Epoch != c.means {
					t.Errorf("%s means epoch %d, not %d", a.Kind, a.Epoch, c.means)
				}
			}
			if diff := cmp.Diff(c.want, kinds); diff != "" || len(got.Unknown) != c.unknown {
				t.Errorf("(-want +got):\n%s%+v", diff, got)
			}
		})
	}
}
