// Package admission decides which requests with an API key are served. A team may
// make so many a second and have so many open at once, on all surfaces and with
// all of its keys together, and an address may try so many keys that do not exist.
package admission

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/auth"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/misses"
	"wrenn.dev/internal/recent"
)

const (
	// maxKnown and knownTTL are of keys that were accepted: requests with them are
	// served whatever else comes from their clients' addresses.
	maxKnown, knownTTL = 64 << 10, time.Hour
)

// Refused is the error of a request that may be sent again after a while.
type Refused struct {
	Message string
	After   time.Duration
}

func (r *Refused) Error() string { return r.Message }

// Config says what a Door lets in. Authenticate is required; zero numbers are the defaults.
type Config struct {
	// Authenticate returns the caller with that secret: Unauthenticated when it is unknown.
	Authenticate func(ctx context.Context, secret string) (service.Caller, error)
	// AuthenticateSession returns the caller that has signed in, likewise; needed for EnterSession alone.
	AuthenticateSession func(ctx context.Context, cookie, proof string) (service.Caller, error)

	PerSecond float64 // requests of a team, on average; default 500
	Burst     int     // requests of a team, at once; default 1000
	Open      int     // requests of a team that are not answered to the end; default 1000
}

// Door lets requests in. It is safe for concurrent use.
type Door struct {
	authenticate func(ctx context.Context, secret string) (service.Caller, error)
	session      func(ctx context.Context, cookie, proof string) (service.Caller, error)
	known        *recent.Cache[auth.Hash, struct{}]
	guesses      *misses.Addresses
	teams        *teams
}

// New returns a door.
func New(cfg Config) *Door {
	return &Door{
		authenticate: cfg.Authenticate,
		session:      cfg.AuthenticateSession,
		known:        recent.New[auth.Hash, struct{}](maxKnown, knownTTL),
		guesses:      misses.New(),
		teams:        newTeams(cmp.Or(cfg.PerSecond, 500), cmp.Or(cfg.Burst, 1000), cmp.Or(cfg.Open, 1000)),
	}
}

// Enter returns whose request it is that came from the address remote with that
// secret. The caller calls leave, once, when the request is answered to the end. The
// error is Unauthenticated for an unknown secret, *Refused when the team or the
// address made too many requests a moment ago, and Exhausted when the team has too
// many open; with an error of the last two kinds the caller is returned as far as it is known.
func (d *Door) Enter(ctx context.Context, remote, secret string) (caller service.Caller, leave func(), err error) {
	hash, isKey := auth.HashOf(secret)
	return d.enter(remote, hash, isKey, func() (service.Caller, error) { return d.authenticate(ctx, secret) })
}

// EnterSession is Enter for a request of a browser that has signed in.
func (d *Door) EnterSession(ctx context.Context, remote, cookie, proof string) (caller service.Caller, leave func(), err error) {
	hash, isSession := auth.HashOfSession(cookie, proof)
	return d.enter(remote, hash, isSession, func() (service.Caller, error) { return d.session(ctx, cookie, proof) })
}

func (d *Door) enter(remote string, hash auth.Hash, isKey bool, authenticate func() (service.Caller, error)) (caller service.Caller, leave func(), err error) {
	if _, known := d.known.Get(hash, time.Now()); isKey && !known && d.guesses.TooMany(remote) {
		return service.Caller{}, nil, &Refused{Message: "too many requests from this address with keys that do not exist: wait a moment", After: time.Second}
	}
	caller, err = authenticate()
	if isKey && wrenn.CodeOf(err) == wrenn.Unauthenticated {
		d.guesses.Count(remote)
	}
	if err != nil {
		return service.Caller{}, nil, err
	}
	d.known.Put(hash, struct{}{}, time.Now())
	leave, err = d.teams.enter(caller.Team, time.Now())
	return caller, leave, err
}

// EnterTeam is Enter for a request of which it is known that it is the team's.
func (d *Door) EnterTeam(team wrenn.TeamID) (leave func(), err error) {
	return d.teams.enter(team, time.Now())
}

func tooFast(perSecond float64, wait time.Duration) error {
	return &Refused{
		Message: fmt.Sprintf("more than %g requests a second of this team: wait and try again; the operator sets the limit as limits.requests_per_second", perSecond),
		After:   wait,
	}
}
