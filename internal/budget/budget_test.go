package budget

import (
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// used returns how many bytes of b are reserved.
func used(b *Budget, size int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := size - b.free
	if b.last != nil {
		n += b.last.extra
	}
	return n
}

// TestWaitersComeToAnEnd: requests that together need several times the budget wait for
// each other, and all get what they need.
func TestWaitersComeToAnEnd(t *testing.T) {
	const size, most, requests = 100, 30, 50
	b := New(size, most, "test")
	var all sync.WaitGroup
	for i := range requests {
		all.Go(func() {
			r := b.Reservation()
			r.SetOwner(string(rune('a' + i%5)))
			defer r.Release()
			for range most {
				if err := r.Grow(t.Context(), 1); err != nil {
					t.Error(err)
				}
				if n := used(b, size); n > size+most {
					t.Errorf("%d bytes are reserved, of %d and %d", n, size, most)
				}
			}
		})
	}
	all.Wait()
	if n := used(b, size); n != 0 || len(b.held) != 0 {
		t.Errorf("%d bytes are left, owners %v", n, b.held)
	}
}

func TestOwnersShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(100, 10, "the host by memory_limit_mb")
		greedy, further, other := b.Reservation(), b.Reservation(), b.Reservation()
		greedy.SetOwner("greedy")
		further.SetOwner("greedy")
		other.SetOwner("other")
		testkit.Must(t, greedy.Grow(t.Context(), 50))
		testkit.Must(t, greedy.Grow(t.Context(), 10)) // the further allowance
		err := further.Grow(t.Context(), 1)
		if wrenn.CodeOf(err) != wrenn.Exhausted || !strings.Contains(err.Error(), "memory_limit_mb") {
			t.Errorf("beyond its share: %v", err)
		}
		testkit.Must(t, other.Grow(t.Context(), 50))
		greedy.Release()
		greedy.Release()
		testkit.Must(t, further.Grow(t.Context(), 50))
	})
}

// TestBody: bytes are reserved before they are read, and a body that waits for memory
// is not read on.
func TestBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(4*step, 0, "test")
		r := b.Reservation()
		body := Body(t.Context(), io.NopCloser(strings.NewReader(strings.Repeat("x", free+step+1))), r, 1)
		small := make([]byte, free)
		_, err := io.ReadFull(body, small)
		if n := used(b, 4*step); err != nil || n != 0 {
			t.Errorf("a small body: %d bytes reserved, %v", n, err)
		}
		rest, err := io.ReadAll(body)
		if n := used(b, 4*step); err != nil || len(rest) != step+1 || n != 2*step {
			t.Errorf("read %d more bytes, %d are reserved, %v", len(rest), n, err)
		}
		large := Body(t.Context(), io.NopCloser(strings.NewReader(strings.Repeat("x", free+step))), r, 4)
		if n, err := io.Copy(io.Discard, large); n != free || wrenn.CodeOf(err) != wrenn.Exhausted {
			t.Errorf("read %d bytes without memory for them: %v", n, err)
		}
	})
}

func TestDefaultLimit(t *testing.T) {
	bytes := func(n uint64) func() (uint64, error) { return func() (uint64, error) { return n, nil } }
	none := func() (uint64, error) { return 0, errors.New("none") }
	for name, c := range map[string]struct {
		machine, cgroup func() (uint64, error)
		want            int64
	}{
		"small machine": {bytes(4 << 30), none, 512 << 20},
		"large machine": {bytes(64 << 30), none, 2 << 30},
		"in a cgroup":   {bytes(64 << 30), bytes(1000), 900},
		"unknown":       {none, none, 512 << 20},
	} {
		if got := defaultLimit(c.machine, c.cgroup); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestNoBudget(t *testing.T) {
	var b *Budget
	r := b.Reservation()
	r.SetOwner("x")
	testkit.Must(t, r.Grow(t.Context(), 1<<40))
	r.Release()
}
