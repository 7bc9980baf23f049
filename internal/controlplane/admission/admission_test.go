package admission

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/auth"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/misses"
)

const address = "203.0.113.7:4711"

// keys is what authenticates: the keys of one team. It counts the questions.
type keys struct {
	valid map[string]bool
	asked int
}

func (k *keys) authenticate(_ context.Context, secret string) (service.Caller, error) {
	if _, ok := auth.HashOf(secret); ok {
		k.asked++
	}
	if !k.valid[secret] {
		return service.Caller{}, wrenn.Errorf(wrenn.Unauthenticated, "unknown")
	}
	return service.Caller{Team: "team", Key: secret[:8]}, nil
}

// enter fails the test unless the answer to a request is want: "" for served,
// "refused", or a code.
func enter(t *testing.T, d *Door, remote, secret, want string) (leave func()) {
	t.Helper()
	_, leave, err := d.Enter(t.Context(), remote, secret)
	got := ""
	switch refused, ok := errors.AsType[*Refused](err); {
	case ok && refused.After > 0:
		got = "refused"
	case err != nil:
		got = fmt.Sprint(wrenn.CodeOf(err))
	}
	if got != want {
		t.Fatalf("Enter from %s = %v (%s), want %q", remote, err, got, want)
	}
	return leave
}

func TestTeamsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := string(auth.NewSecret()), string(auth.NewSecret())
		k := &keys{valid: map[string]bool{one: true, two: true}}
		d := New(Config{Authenticate: k.authenticate, PerSecond: 1, Burst: 2})
		enter(t, d, address, one, "")()
		enter(t, d, address, two, "")()
		enter(t, d, address, one, "refused")
		enter(t, d, "198.51.100.1:1", two, "refused") // another key of the same team, from elsewhere
		time.Sleep(time.Second)
		enter(t, d, address, one, "")()
	})
}

func TestTeamsOpenRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := string(auth.NewSecret())
		k := &keys{valid: map[string]bool{one: true}}
		d := New(Config{Authenticate: k.authenticate, Open: 2})
		first := enter(t, d, address, one, "")
		enter(t, d, address, one, "")
		enter(t, d, address, one, fmt.Sprint(wrenn.Exhausted))
		time.Sleep(2 * forgetAfter) // open ones are not forgotten
		enter(t, d, address, one, fmt.Sprint(wrenn.Exhausted))
		first()
		first() // twice counts once
		enter(t, d, address, one, "")
		enter(t, d, address, one, fmt.Sprint(wrenn.Exhausted))
	})
}

func TestTeamsForget(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	l := newTeams(1, 1, 1)
	for _, team := range []wrenn.TeamID{"a", "b", "c"} {
		leave, err := l.enter(team, now)
		if err != nil {
			t.Fatal(err)
		}
		leave()
	}
	if _, err := l.enter("a", now.Add(2*forgetAfter)); err != nil || len(l.all) != 1 {
		t.Errorf("later: %v, %d teams remembered", err, len(l.all))
	}
}

// TestGuesses: an address that tries keys costs the database a bounded number of
// queries, and keys that were accepted before are served meanwhile.
func TestGuesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, fresh := string(auth.NewSecret()), string(auth.NewSecret())
		k := &keys{valid: map[string]bool{good: true, fresh: true}}
		d := New(Config{Authenticate: k.authenticate})
		enter(t, d, address, good, "")
		k.asked = 0
		refused := 0
		for range 10 * misses.Burst {
			_, _, err := d.Enter(t.Context(), address, string(auth.NewSecret()))
			if _, ok := errors.AsType[*Refused](err); ok {
				refused++
			}
		}
		if k.asked > misses.Burst || refused+k.asked != 10*misses.Burst {
			t.Errorf("%d guesses were looked up, %d refused", k.asked, refused)
		}
		enter(t, d, address, good, "")
		enter(t, d, address, fresh, "refused")
		enter(t, d, "198.51.100.1:1", fresh, "")
		enter(t, d, address, "no key at all", fmt.Sprint(wrenn.Unauthenticated)) // costs no query
		time.Sleep(time.Minute)
		enter(t, d, address, string(auth.NewSecret()), fmt.Sprint(wrenn.Unauthenticated))
	})
}
