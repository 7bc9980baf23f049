//go:build root

package livetest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// TestFailover kills the primary of two PostgreSQL servers while clients use two control
// planes, and promotes the standby: the control planes go on with it. What a client was
// told is true on the standby.
func TestFailover(t *testing.T) {
	db := pgtest.Replicated(t)
	f := newFleetOn(t, db.URL, func(*testing.T, *plane) {})
	var steps atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	for i := range clients {
		u := f.newUser(i, rand.New(rand.NewPCG(1, uint64(i+1))))
		load.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				if err := u.step(t.Context()); err != nil {
					t.Errorf("%s: %v", u.name, err)
				}
				steps.Add(1)
			}
		})
	}
	more := func(what string) {
		t.Helper()
		from := steps.Load()
		testkit.WaitUntil(t, what, func() bool { return t.Failed() || steps.Load() >= from+20*clients })
	}
	more("clients have done something")
	db.KillPrimary()
	db.Promote(t)
	more("clients go on")
	stop()
	load.Wait()
	f.ready(t)
	f.report(t, nil)
	f.check(t)
	f.empty(t)

	conn, err := pgx.Connect(t.Context(), db.URL)
	testkit.Must(t, err)
	defer conn.Close(t.Context())
	for what, want := range map[string]int{
		"SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN hosts'": planes,     // followers
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'":          planes + 3, // one for each control plane, and the leads in three matters or more
	} {
		testkit.WaitNoError(t, what, func() error {
			var got int
			err := conn.QueryRow(t.Context(), what).Scan(&got)
			if err == nil && got < want {
				err = fmt.Errorf("it is %d, not %d or more", got, want)
			}
			return err
		})
	}
}
