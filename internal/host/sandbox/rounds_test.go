package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"wrenn.dev/internal/testkit"
)

// TestRounds: rounds never go back, also for the next agent, and an upload keeps that in
// which it began.
func TestRounds(t *testing.T) {
	dir := t.TempDir()
	open := func() *rounds {
		t.Helper()
		r, err := openRounds(dir)
		testkit.Must(t, err)
		return r
	}
	want := func(r *rounds, current, oldest uint64) {
		t.Helper()
		if c, o := r.state(); c != current || o != oldest {
			t.Errorf("the rounds are %d and %d, want %d and %d", c, o, current, oldest)
		}
	}
	r := open()
	want(r, 0, 0)
	round, end := r.begin()
	testkit.Must(t, r.tell(5))
	testkit.Must(t, r.tell(4))
	testkit.Must(t, r.tell(0))
	want(r, 5, 0)
	later, endLater := r.begin()
	_, endToo := r.begin()
	end()
	want(r, 5, 5)
	testkit.Must(t, r.tell(6))
	endLater()
	want(r, 6, 5) // of the other one
	endToo()
	want(r, 6, 6)
	if round != 0 || later != 5 {
		t.Errorf("the uploads were of the rounds %d and %d", round, later)
	}
	want(open(), 6, 6)
	testkit.Must(t, os.Remove(filepath.Join(dir, roundName)))
	testkit.Must(t, os.Mkdir(filepath.Join(dir, roundName), 0o700))
	if err := r.tell(7); err == nil {
		t.Error("a round that cannot be kept has begun")
	}
	want(r, 6, 6)
	testkit.Must(t, os.Remove(filepath.Join(dir, roundName)))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, roundName), []byte("x"), 0o600))
	if _, err := openRounds(dir); err == nil {
		t.Error("a round that cannot be read counts as none")
	}
}
