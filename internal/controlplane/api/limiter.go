package api

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"wrenn/internal/controlplane/api/internal/oapi"
)

// forgetAfter is how long an unused key stays in memory. Its allowance is full
// again long before.
const forgetAfter = 10 * time.Minute

// limiter bounds the requests of each key. Only valid keys reach it, so it never
// has more than exist.
type limiter struct {
	perSecond float64
	burst     int

	mu      sync.Mutex // guards what follows
	keys    map[string]*allowance
	cleaned time.Time
}

type allowance struct {
	*rate.Limiter
	used time.Time
}

func newLimiter(perSecond float64, burst int) *limiter {
	return &limiter{perSecond: perSecond, burst: burst, keys: map[string]*allowance{}}
}

// allow counts a request of key at now. It returns a failure with the time to wait
// if the key is over its rate.
func (l *limiter) allow(key string, now time.Time) error {
	wait := l.wait(key, now)
	if wait == 0 {
		return nil
	}
	return &failure{
		status: http.StatusTooManyRequests, code: oapi.ErrorCodeRateLimited, retryAfter: wait,
		message: fmt.Sprintf("more than %g requests a second with this key: wait and try again; the operator sets the limit as requests_per_second", l.perSecond),
	}
}

// wait counts a request of key at now. If the key is over its rate it returns the
// time to wait, and does not count the request.
func (l *limiter) wait(key string, now time.Time) time.Duration {
	reservation := l.of(key, now).ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		reservation.CancelAt(now)
	}
	return wait
}

func (l *limiter) of(key string, now time.Time) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.cleaned) > forgetAfter {
		for k, a := range l.keys {
			if now.Sub(a.used) > forgetAfter {
				delete(l.keys, k)
			}
		}
		l.cleaned = now
	}
	a, ok := l.keys[key]
	if !ok {
		a = &allowance{Limiter: rate.NewLimiter(rate.Limit(l.perSecond), l.burst)}
		l.keys[key] = a
	}
	a.used = now
	return a.Limiter
}
