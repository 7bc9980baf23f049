package sandbox

import (
	"testing"
	"time"

	"wrenn.dev"
)

func newTestState(life wrenn.EndOfLife) *state {
	s := newState(&wrenn.SandboxSpec{EndOfLife: life}, func() uint64 { return 1 }, func() {}, func(from, to Status) {})
	s.set(StatusRunning, "")
	return &s
}

// A use keeps a sandbox from ending, but for one whose timeout is absolute.
func TestTimeoutOfAUsedSandbox(t *testing.T) {
	for _, absolute := range []bool{false, true} {
		s := newTestState(wrenn.EndOfLife{Timeout: time.Hour, Absolute: absolute})
		if !s.use() {
			t.Fatal("it cannot be used")
		}
		at, ok := s.dueAt()
		if ok != absolute || ok && time.Until(at) > time.Hour {
			t.Errorf("absolute = %v: due at %v, %v", absolute, at, ok)
		}
		s.setTimeout(time.Hour, time.Now().Add(-time.Second))
		what, reason := s.claimDue(false)
		if absolute && (what != dueStop || reason != "its timeout of 1h0m0s ended") || !absolute && what != dueNothing {
			t.Errorf("absolute = %v: after its end %v is due, %q", absolute, what, reason)
		}
	}
}

// An absolute timeout begins when the sandbox begins to run, not when a checkpoint is restored.
func TestBeginLife(t *testing.T) {
	s := newTestState(wrenn.EndOfLife{Timeout: time.Hour, Absolute: true})
	end := time.Now().Add(time.Minute)
	s.setEnd(end)
	s.set(StatusRestoring, "")
	if got := s.beginLife(); !got.Equal(end) {
		t.Errorf("restoring moved the end from %v to %v", end, got)
	}
	s.set(StatusRunning, "")
	s.set(StatusPausing, "")
	s.set(StatusPaused, "")
	s.set(StatusResuming, "")
	if got := s.beginLife(); got.Before(time.Now().Add(50 * time.Minute)) {
		t.Errorf("resumed, it ends at %v", got)
	}
}
