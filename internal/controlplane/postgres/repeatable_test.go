package postgres_test

import (
	"fmt"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// TestRepeatableCreate walks through what a key can mean, across two processes.
func TestRepeatableCreate(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	first, second := pgtest.Open(t, url), pgtest.Open(t, url)
	team, err := first.EnsureTeam(t.Context(), "team")
	testkit.Must(t, err)
	working, err := first.RegisterWorker(t.Context())
	testkit.Must(t, err)
	create := postgres.RepeatableCreate{Team: team, Route: "/r", Key: "k", Fingerprint: []byte("f"), Sandbox: wrenn.NewSandboxID()}
	begin := func(s *postgres.Store, c postgres.RepeatableCreate, want postgres.CreateProgress, id wrenn.SandboxID) {
		t.Helper()
		c.Sandbox = wrenn.NewSandboxID()
		got, sandbox, err := s.BeginCreate(t.Context(), c)
		if err != nil || got != want || sandbox != id {
			t.Errorf("BeginCreate() = %v, %v, %v, want %v, %v", got, sandbox, err, want, id)
		}
	}
	got, _, err := first.BeginCreate(t.Context(), create)
	if err != nil || got != postgres.CreateBegins {
		t.Fatalf("BeginCreate() = %v, %v", got, err)
	}
	begin(second, create, postgres.CreateAtWork, create.Sandbox)
	other := create
	other.Fingerprint = []byte("g")
	begin(second, other, postgres.CreateDiffers, create.Sandbox)

	working.Close(t.Context()) // the first process is gone
	testkit.WaitNoError(t, "the first process is seen to be gone", func() error {
		got, _, err := second.BeginCreate(t.Context(), create)
		if err == nil && got != postgres.CreateAbandoned {
			err = fmt.Errorf("BeginCreate() = %v", got)
		}
		return err
	})
	next := create
	next.Sandbox = wrenn.NewSandboxID()
	if taken, err := second.TakeOverCreate(t.Context(), next, create.Sandbox); err != nil || !taken {
		t.Errorf("TakeOverCreate() = %v, %v", taken, err)
	}
	if taken, err := second.TakeOverCreate(t.Context(), next, create.Sandbox); err != nil || taken {
		t.Errorf("TakeOverCreate() twice = %v, %v", taken, err)
	}
	testkit.Must(t, second.EndCreate(t.Context(), next))
	testkit.Must(t, second.DropCreate(t.Context(), create)) // of the sandbox that is lost: too late
	begin(first, create, postgres.CreateDone, next.Sandbox)
	testkit.Must(t, first.DropCreate(t.Context(), next))
	got, _, err = first.BeginCreate(t.Context(), create)
	if err != nil || got != postgres.CreateBegins {
		t.Errorf("BeginCreate() of a forgotten one = %v, %v", got, err)
	}
}
