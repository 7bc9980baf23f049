package admission

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"wrenn.dev"
)

// forgetAfter is how long a team without requests stays in memory. Its allowance is
// full again long before.
const forgetAfter = 10 * time.Minute

// teams bound the requests of each team. Only requests with valid keys reach it, so
// it never has more teams than exist.
type teams struct {
	perSecond float64
	burst     int
	most      int // open requests

	mu      sync.Mutex // guards what follows
	all     map[wrenn.TeamID]*allowance
	cleaned time.Time
}

type allowance struct {
	*rate.Limiter

	used time.Time
	open int
}

func newTeams(perSecond float64, burst, most int) *teams {
	return &teams{perSecond: perSecond, burst: burst, most: most, all: map[wrenn.TeamID]*allowance{}}
}

// enter counts a request of a team at now, which is open until leave is called. A
// request that is refused does not count.
func (t *teams) enter(team wrenn.TeamID, now time.Time) (leave func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.of(team, now)
	if a.open >= t.most {
		return nil, wrenn.Errorf(wrenn.Exhausted,
			"this team has %d requests open, which is the limit: end commands, transfers and streams that are not needed; the operator sets the limit as limits.open_requests", t.most)
	}
	reservation := a.ReserveN(now, 1)
	if wait := reservation.DelayFrom(now); wait > 0 {
		reservation.CancelAt(now)
		return nil, tooFast(t.perSecond, wait)
	}
	a.open++
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		a.open--
	}), nil
}

// of returns the allowance of a team. The caller holds mu.
func (t *teams) of(team wrenn.TeamID, now time.Time) *allowance {
	if now.Sub(t.cleaned) > forgetAfter {
		for id, a := range t.all {
			if a.open == 0 && now.Sub(a.used) > forgetAfter {
				delete(t.all, id)
			}
		}
		t.cleaned = now
	}
	a, ok := t.all[team]
	if !ok {
		a = &allowance{Limiter: rate.NewLimiter(rate.Limit(t.perSecond), t.burst)}
		t.all[team] = a
	}
	a.used = now
	return a
}
