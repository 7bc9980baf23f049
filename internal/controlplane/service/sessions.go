package service

import (
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/auth"
)

// sessionTime is how long a browser stays signed in.
const sessionTime = 12 * time.Hour

// Identity is who a caller is, for people.
type Identity struct {
	Team    string // its name
	Key     string // its id
	KeyName string
	Scopes  wrenn.Scopes
}

var errUnknownSession = wrenn.Errorf(wrenn.Unauthenticated, "the session has ended, or its key was revoked: sign in again")

// OpenedSession is a new session: its secrets, each of no use without the other, and its end.
type OpenedSession struct {
	auth.Session

	ExpiresAt time.Time
}

// OpenSession signs a browser in as the caller.
func (s *Keys) OpenSession(ctx context.Context, c Caller) (OpenedSession, error) {
	secrets := auth.NewSession()
	hash, _ := auth.HashOfSession(string(secrets.Cookie), string(secrets.Proof)) // it has the form
	expires := time.Now().Add(sessionTime).UTC()
	return OpenedSession{secrets, expires}, s.store.CreateSession(ctx, hash, c.Key, expires)
}

// AuthenticateSession returns the caller that has signed in: Unauthenticated when the
// session is unknown or has ended. It caches as Authenticate does.
func (s *Keys) AuthenticateSession(ctx context.Context, cookie, proof string) (Caller, error) {
	hash, ok := auth.HashOfSession(cookie, proof)
	if !ok {
		return Caller{}, errUnknownSession
	}
	found, known := s.sessions.Get(hash)
	if !known {
		var err error
		found, err = s.store.FindSession(ctx, hash)
		if wrenn.CodeOf(err) == wrenn.NotFound {
			return Caller{}, errUnknownSession
		}
		if err != nil {
			return Caller{}, err
		}
		s.sessions.Put(hash, found)
	}
	if !time.Now().Before(found.ExpiresAt) {
		return Caller{}, errUnknownSession
	}
	s.used.add(found.Key)
	return Caller{Team: found.Team, Key: found.Key, Scopes: found.Scopes}, nil
}

// EndSession signs a browser out. Twice is allowed. Other replicas may accept the
// session for some seconds more.
func (s *Keys) EndSession(ctx context.Context, cookie, proof string) error {
	hash, ok := auth.HashOfSession(cookie, proof)
	if !ok {
		return nil
	}
	if err := s.store.DeleteSession(ctx, hash); err != nil {
		return err
	}
	s.sessions.Drop(hash)
	return nil
}

// Identify returns who the caller is.
func (s *Keys) Identify(ctx context.Context, c Caller) (Identity, error) {
	team, err := s.store.TeamName(ctx, c.Team)
	if err != nil {
		return Identity{}, err
	}
	name, err := s.store.KeyName(ctx, c.Key)
	return Identity{Team: team, Key: c.Key, KeyName: name, Scopes: c.Scopes}, err
}
