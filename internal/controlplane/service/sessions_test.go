package service_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// TestSessions: a session is its key's, ends with it and by itself, and its two secrets
// are of use together alone.
func TestSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _ := w.replica(t, nil)
	second, _ := w.replica(t, nil)
	key, secret, err := s.CreateKey(t.Context(), w.caller, service.NewKey{Name: "laptop", Scopes: 1})
	testkit.Must(t, err)
	caller, err := s.Authenticate(t.Context(), secret)
	testkit.Must(t, err)
	open := func() (cookie, proof string) {
		opened, err := s.OpenSession(t.Context(), caller)
		testkit.Must(t, err)
		if left := time.Until(opened.ExpiresAt); left < 11*time.Hour || left > 13*time.Hour {
			t.Errorf("it ends in %v", left)
		}
		return string(opened.Cookie), string(opened.Proof)
	}
	cookie, proof := open()
	other, _ := open()
	if rows := w.dump(t, "SELECT string_agg(s::text, ' ') FROM sessions s"); strings.Contains(rows, cookie) || strings.Contains(rows, proof) {
		t.Error("a secret is in the database")
	}
	for _, replica := range []*service.Service{s, second} {
		if got, err := replica.AuthenticateSession(t.Context(), cookie, proof); err != nil || got != caller {
			t.Errorf("%+v, %v; want %+v", got, err, caller)
		}
		for name, wrong := range map[string][2]string{"none": {}, "no proof": {cookie, ""}, "another's proof": {other, proof}, "exchanged": {proof, cookie}} {
			_, err := replica.AuthenticateSession(t.Context(), wrong[0], wrong[1])
			if wrenn.CodeOf(err) != wrenn.Unauthenticated {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if who, err := s.Identify(t.Context(), caller); err != nil || who.KeyName != "laptop" || who.Key != key.ID || who.Scopes.String() != "read" || who.Team == "" {
		t.Errorf("%+v, %v", who, err)
	}
	testkit.Must(t, s.EndSession(t.Context(), cookie, proof))
	testkit.Must(t, s.EndSession(t.Context(), cookie, proof)) // twice is allowed
	_, err = s.AuthenticateSession(t.Context(), cookie, proof)
	testkit.WantCode(t, err, wrenn.Unauthenticated)

	cookie, proof = open()
	w.dump(t, "WITH changed AS (UPDATE sessions SET expires_at = clock_timestamp() RETURNING 1) SELECT count(*)::text FROM changed")
	_, err = s.AuthenticateSession(t.Context(), cookie, proof)
	testkit.WantCode(t, err, wrenn.Unauthenticated)
	cookie, proof = open()
	if n := w.dump(t, "SELECT count(*)::text FROM sessions"); n != "1" {
		t.Errorf("%s sessions are left of those that have expired", n)
	}
	_, err = s.AuthenticateSession(t.Context(), cookie, proof)
	testkit.Must(t, err)
	testkit.Must(t, s.RevokeKey(t.Context(), w.caller, key.ID))
	_, err = s.AuthenticateSession(t.Context(), cookie, proof)
	testkit.WantCode(t, err, wrenn.Unauthenticated)
}

// TestWatchSandboxes: a watcher is told what its team has, then what changes and ends.
func TestWatchSandboxes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	var created *wrenn.Sandbox
	testkit.WaitNoError(t, "the host is known", func() (err error) {
		created, err = s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Env: map[string]string{"A": "secret"}}})
		return err
	})
	stranger := w.team(t, "stranger")
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	told, seen := make(chan service.Changes), make(chan error, 2)
	go func() {
		seen <- s.WatchSandboxes(ctx, w.caller, func(c service.Changes) error {
			select {
			case told <- c:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}()
	go func() {
		seen <- s.WatchSandboxes(ctx, stranger, func(c service.Changes) error {
			if len(c.Sandboxes)+len(c.Dropped) > 0 {
				t.Errorf("another team is told %+v", c)
			}
			return nil
		})
	}()
	first := <-told
	if !first.First || len(first.Sandboxes) != 1 || first.Sandboxes[0].ID != created.ID || len(first.Sandboxes[0].Env) != 0 {
		t.Fatalf("first %+v", first)
	}
	_, err := s.PauseSandboxBy(t.Context(), w.caller, created.ID, wrenn.PauseOptions{})
	testkit.Must(t, err)
	await := func(state wrenn.State) {
		for {
			c := <-told
			if len(c.Sandboxes) == 1 && !c.First && c.Sandboxes[0].State == state {
				return
			}
		}
	}
	await(wrenn.Paused)
	testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, created.ID))
	await(wrenn.Stopped)
	cancel(enough)
	for range 2 {
		if err := <-seen; !errors.Is(err, enough) {
			t.Errorf("WatchSandboxes = %v", err)
		}
	}
}
