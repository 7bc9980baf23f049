package service_test

import (
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/auth"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

func TestKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, stop := w.replica(t, nil)
	key, secret, err := s.CreateKey(t.Context(), w.caller, service.NewKey{Name: "laptop"})
	if err != nil || !strings.HasPrefix(secret, key.Hint) {
		t.Fatalf("%+v, %v", key, err)
	}
	if strings.Contains(w.dump(t, "SELECT string_agg(k::text, ' ') FROM api_keys k"), secret[4:]) {
		t.Error("the secret is in the database")
	}
	caller, err := s.Authenticate(t.Context(), secret)
	if err != nil || caller != (service.Caller{Team: w.caller.Team, Key: key.ID, Scopes: wrenn.AllScopes}) {
		t.Errorf("%+v, %v", caller, err)
	}
	for name, wrong := range map[string]string{
		"none": "", "another": string(auth.NewSecret()), "cut": secret[:20], "in capitals": strings.ToUpper(secret), "the hint": key.Hint,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Authenticate(t.Context(), wrong)
			testkit.WantCode(t, err, wrenn.Unauthenticated)
		})
	}
	other := w.team(t, "other")
	testkit.WantCode(t, s.RevokeKey(t.Context(), other, key.ID), wrenn.NotFound)
	testkit.WantCode(t, s.RevokeKey(t.Context(), w.caller, "'; DROP TABLE api_keys"), wrenn.NotFound)
	if keys, err := s.ListKeys(t.Context(), other); err != nil || len(keys) != 0 {
		t.Errorf("another team sees %v, %v", keys, err)
	}

	limited, second, err := s.CreateKey(t.Context(), w.caller, service.NewKey{Name: "ci", Scopes: 1, ExpiresAt: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if caller, err := s.Authenticate(t.Context(), second); err != nil || caller.Scopes.String() != "read" {
		t.Errorf("a key for reading: %+v, %v", caller, err)
	}
	// It ends at its time.
	w.dump(t, "UPDATE api_keys SET expires_at = now() WHERE name = 'ci' RETURNING name")
	fresh, _ := w.replica(t, nil)
	_, err = fresh.Authenticate(t.Context(), second)
	testkit.WantCode(t, err, wrenn.Unauthenticated)
	if err := s.RevokeKey(t.Context(), w.caller, limited.ID); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.CreateKey(t.Context(), w.caller, service.NewKey{Name: "late", ExpiresAt: time.Now()})
	testkit.WantCode(t, err, wrenn.Invalid)

	stop() // what was batched is written at the end
	keys, err := s.ListKeys(t.Context(), w.caller)
	if err != nil || len(keys) != 1 || keys[0].Name != "laptop" || keys[0].LastUsedAt.IsZero() {
		t.Errorf("listed %+v, %v", keys, err)
	}
	if err := s.RevokeKey(t.Context(), w.caller, key.ID); err != nil {
		t.Fatal(err)
	}
	_, err = s.Authenticate(t.Context(), secret)
	testkit.WantCode(t, err, wrenn.Unauthenticated)
	testkit.WantCode(t, s.RevokeKey(t.Context(), w.caller, key.ID), wrenn.NotFound)
	_, _, err = s.CreateKey(t.Context(), w.caller, service.NewKey{Name: " \x00"})
	testkit.WantCode(t, err, wrenn.Invalid)
	_, _, err = s.CreateKey(t.Context(), service.Caller{Team: "00000000-0000-0000-0000-000000000000"}, service.NewKey{Name: "key"})
	testkit.WantCode(t, err, wrenn.NotFound)
}

func TestTeamIsMadeOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _ := w.replica(t, nil)
	one, err := s.EnsureTeam(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	if two, err := s.EnsureTeam(t.Context(), "default"); err != nil || two != one {
		t.Errorf("%q and %q, %v", one, two, err)
	}
}

func TestUseIsWrittenInBatches(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, func(c *service.Config) { c.FlushEvery = 10 * time.Millisecond })
	sb := create(t, s, w.caller)
	w.sql(t, "UPDATE sandboxes SET last_active_at = last_active_at - interval '1 hour'")
	if _, err := s.Exec(t.Context(), w.caller, sb.ID, wrenn.ExecCommand{Cmd: "echo"}); err != nil {
		t.Fatal(err)
	}
	testkit.WaitUntil(t, "its use is written", func() bool {
		now, err := s.Sandbox(t.Context(), w.caller, sb.ID)
		return err == nil && !now.LastActiveAt.Before(sb.LastActiveAt) && now.Version == sb.Version
	})
}
