//go:build root

package livetest_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// report prints what happened.
func (f *fleet) report(t *testing.T, faults map[string]int) {
	t.Helper()
	calls, repeated, failed, untold := 0, 0, 0, 0
	for _, u := range f.users {
		calls, repeated, failed = calls+u.calls, repeated+u.repeated, failed+len(u.failed)
		for _, told := range u.tries {
			if !told {
				untold++
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		t.Logf("%3d times: %s", faults[name], name)
	}
	t.Logf("%d calls, %d of them repeated; %d attempts to make a sandbox failed or had no answer; %d sandboxes failed with their hosts", calls, repeated, untold, failed)
}

// check compares every sandbox that exists, and those that ended, with what users were told.
func (f *fleet) check(t *testing.T) {
	t.Helper()
	for _, u := range f.users {
		for _, m := range u.models {
			testkit.WaitNoError(t, u.name+"'s sandbox has its state", func() error {
				err := is(t.Context(), f.planes[0].api, m.id, m.want)
				if err != nil && m.rewound != nil && client.CodeOf(err) == client.Unavailable {
					_, err = f.planes[0].api.ResumeSandbox(t.Context(), m.id) // no host had room
				}
				return err
			})
			if err := u.wake(t.Context(), m); err != nil {
				t.Errorf("%s: sandbox %s: %v", u.name, m.id, err)
			}
		}
	}
	f.explain(t)
}

// explain checks that no row is without a reason: sandboxes of which no user was told are
// from attempts that had no answer.
func (f *fleet) explain(t *testing.T) {
	t.Helper()
	known, tries := map[string]client.State{}, map[string]bool{}
	for _, u := range f.users {
		for _, m := range u.models {
			known[m.id] = client.Running
		}
		for _, id := range u.ended {
			known[id] = client.Stopped
		}
		for _, id := range u.failed {
			known[id] = client.Failed
		}
		maps.Copy(tries, u.tries)
	}
	for sb, err := range f.planes[0].api.Sandboxes(t.Context(), client.ListSandboxes{States: []client.State{
		client.Pending, client.Starting, client.Running, client.Pausing, client.Paused, client.Resuming, client.Stopping, client.Stopped, client.Failed,
	}}) {
		testkit.Must(t, err)
		want, ok := known[sb.ID]
		told, tried := tries[sb.Metadata[label]]
		switch {
		case ok && (sb.State == want || want == client.Stopped && sb.State == client.Stopping):
		case ok:
			t.Errorf("%s is %s (%s), and not %s", sb.ID, sb.State, sb.Reason, want)
		case !tried || told:
			t.Errorf("no user asked for %s: %+v", sb.ID, sb)
		}
	}
}

// empty deletes what exists, and checks that the hosts have nothing left.
func (f *fleet) empty(t *testing.T) {
	t.Helper()
	api := f.planes[0].api
	testkit.WaitNoError(t, "all sandboxes are deleted", func() error {
		var left error
		for sb, err := range api.Sandboxes(t.Context(), client.ListSandboxes{}) {
			if err != nil {
				return err
			}
			if sb.State != client.Stopped && sb.State != client.Failed {
				left = errors.Join(left, fmt.Errorf("%s is %s", sb.ID, sb.State), api.DeleteSandbox(t.Context(), sb.ID))
			}
		}
		return left
	})
	for _, h := range f.hosts {
		testkit.WaitNoError(t, "host "+h.id+" is empty", h.leftovers)
	}
}

// leftovers returns an error that names what is left on a host of sandboxes.
func (h *chaosHost) leftovers() error {
	machines, err := h.Machines()
	slots, slotsErr := h.Slots()
	sandboxes, dirErr := os.ReadDir(filepath.Join(h.StateDir(), "sandboxes"))
	running, runErr := filepath.Glob(filepath.Join(h.RunDir(), "*", "*"))
	if machines > 0 || len(slots) > 0 || len(sandboxes) > 0 || len(running) > 0 {
		err = errors.Join(err, fmt.Errorf("%s has %d machines, the slots %q, and of sandboxes %v, %q", h.id, machines, slots, sandboxes, running))
	}
	return errors.Join(err, slotsErr, dirErr, runErr)
}
