package template

import (
	"context"
	"testing"
	"testing/synctest"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// TestSlotsAreFair: builds of one team that never end leave half of the slots to other
// teams.
func TestSlotsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(4)
		var got []wrenn.TeamID
		waits := 0
		ask := func(ctx context.Context, team wrenn.TeamID) (release func()) {
			go func() {
				r, err := s.acquire(ctx, team, func() { waits++ })
				if err == nil {
					got = append(got, team)
					release = r
				}
			}()
			synctest.Wait()
			return release
		}
		for range 3 {
			ask(t.Context(), "greedy")
		}
		second := ask(t.Context(), "b")
		third := ask(t.Context(), "c")
		leaving, leave := context.WithCancel(t.Context())
		ask(leaving, "b")
		ask(t.Context(), "d")
		if len(got) != 4 || waits != 3 {
			t.Fatalf("slots went to %v, %d waited", got, waits)
		}
		leave()
		synctest.Wait()
		second()
		synctest.Wait()
		third()
		third() // twice counts once
		synctest.Wait()
		if len(got) != 5 || got[4] != "d" || s.free != 1 {
			t.Errorf("slots went to %v, %d are free", got, s.free)
		}
		// The third of the first team still waits when the test ends: its context does.
	})
}

func TestSlotsOfACanceledBuild(t *testing.T) {
	s := newSlots(2)
	release, err := s.acquire(t.Context(), "a", func() { t.Error("a free slot was waited for") })
	testkit.Must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.acquire(ctx, "a", cancel); err == nil {
		t.Error("a team has more than half of the slots")
	}
	release()
	if s.free != 2 || len(s.held) != 0 || len(s.waiting) != 0 {
		t.Errorf("afterwards: %+v", s)
	}
}
