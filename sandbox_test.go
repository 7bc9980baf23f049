package wrenn

import (
	"slices"
	"testing"
)

// TestStates checks the laws of the table rather than repeating it.
func TestStates(t *testing.T) {
	for _, s := range States() {
		moves, known := next[s]
		if !known {
			t.Errorf("%s has no entry", s)
		}
		if final := len(moves) == 0 || s == Failed && slices.Equal(moves, []State{Paused}); s.Ended() != final {
			t.Errorf("%s: Ended() is %t and it can move to %v", s, s.Ended(), moves)
		}
		if !s.Ended() && !s.Can(Failed) {
			t.Errorf("%s cannot fail", s)
		}
		if !s.Ended() && s != Stopping && !s.Can(Stopping) {
			t.Errorf("a sandbox that is %s cannot be stopped", s)
		}
		for _, to := range moves {
			if !slices.Contains(States(), to) {
				t.Errorf("%s can move to %q, which is no state", s, to)
			}
		}
		if s.Can(s) {
			t.Errorf("%s moves to itself", s)
		}
	}
	if len(next) != len(States()) {
		t.Errorf("%d states have moves, there are %d", len(next), len(States()))
	}
	reached := map[State]bool{Pending: true}
	for queue := []State{Pending}; len(queue) > 0; queue = queue[1:] {
		for _, to := range next[queue[0]] {
			if !reached[to] {
				reached[to] = true
				queue = append(queue, to)
			}
		}
	}
	if len(reached) != len(States()) {
		t.Errorf("only %v can be reached", reached)
	}
}
