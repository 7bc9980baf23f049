package service_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// shortRound lets a test see several rounds.
const shortRound = 20 * time.Millisecond

func inShortRounds(c *service.Config) { c.StoreRound = shortRound }

// collections records what a host was asked to collect.
type collections struct {
	mu    sync.Mutex // guards asked
	asked []wrenn.StoreCollection
}

func (c *collections) collect(_ context.Context, asked wrenn.StoreCollection) (wrenn.StoreCollected, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, asked)
	return wrenn.StoreCollected{Objects: 3, Bytes: 300}, nil
}

// last returns the last collection, and how many there were.
func (c *collections) last() (last wrenn.StoreCollection, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.asked) > 0 {
		last = c.asked[len(c.asked)-1]
	}
	return last, len(c.asked)
}

// until waits for a collection after the last one that there was.
func (c *collections) until(t *testing.T) wrenn.StoreCollection {
	t.Helper()
	_, before := c.last()
	testkit.WaitUntil(t, "there is another collection", func() bool { _, n := c.last(); return n > before })
	last, _ := c.last()
	return last
}

// TestStoreCollector: what rows and hosts name is kept, and no more than rounds allow is
// deleted, by any number of replicas.
func TestStoreCollector(t *testing.T) {
	t.Parallel()
	var seen collections
	var oldest atomic.Uint64
	oldest.Store(1)
	var checkpoint, pause, lost string
	agents := map[wrenn.HostID]*hosttest.Agent{
		"h1": {HasStore: true, Collect: seen.collect, References: func(team wrenn.TeamID) wrenn.StoreReferences {
			return wrenn.StoreReferences{Keys: []string{"teams/" + string(team) + "/snapshots/c9.x"}}
		}},
		"h2": {HasStore: true, Collect: seen.collect, OldestUpload: oldest.Load}, // it stores something since round 1
		"h3": {},                                                                 // has no store
	}
	w := newWorld(t, agents["h1"], agents["h2"], agents["h3"])
	s, _ := w.replica(t, inShortRounds)
	w.replica(t, inShortRounds)
	var sb *wrenn.Sandbox
	for sb == nil || sb.Host == "h3" {
		sb = create(t, s, w.caller)
	}
	prefix := "teams/" + string(w.caller.Team) + "/snapshots/"
	pause, checkpoint, lost = prefix+"s1.x", prefix+"c1.x", prefix+"c2.x"
	w.sql(t, "UPDATE sandboxes SET stored_key = $1, checkpoint_key = $2, moved_key = $3 WHERE id = $4", pause, checkpoint, prefix+"m1.x", string(sb.ID))
	failed, stopped := create(t, s, w.caller), create(t, s, w.caller)
	w.sql(t, "UPDATE sandboxes SET state = 'failed', checkpoint_key = $1 WHERE id = $2", lost, string(failed.ID))
	w.sql(t, "UPDATE sandboxes SET state = 'stopped', checkpoint_key = $1 WHERE id = $2", prefix+"gone.x", string(stopped.ID))

	testkit.WaitUntil(t, "a round has begun that h2 is far behind", func() bool {
		round, _, err := w.store.StoreRound(t.Context(), 0)
		return err == nil && round > 5
	})
	if last, n := seen.last(); n != 0 {
		t.Errorf("there was a collection beside an upload of round 1: %+v", last)
	}
	oldest.Store(4)
	got := seen.until(t)
	if got.Through != 2 || got.Team != w.caller.Team || got.DryRun || got.MinAge != time.Second {
		t.Errorf("beside an upload of round 4: %+v", got)
	}
	slices.Sort(got.Records)
	slices.Sort(got.Others)
	if !slices.Equal(got.Records, []string{checkpoint, pause}) || !slices.Equal(got.Lost, []string{lost}) || !slices.Equal(got.Others, []string{prefix + "c9.x", prefix + "m1.x"}) {
		t.Errorf("kept are %+v", got)
	}
	oldest.Store(1 << 40)
	if got := seen.until(t); got.Through < 3 {
		t.Errorf("after the upload: %+v", got)
	}
	found, err := s.StoreGarbage(t.Context(), "")
	if err != nil || found.Round < 6 || found.Through != int64(found.Round)-2 || len(found.Teams) != 1 || found.Teams[0].Objects != 3 || found.Teams[0].Err != nil {
		t.Errorf("garbage: %+v, %v", found, err)
	}
}

// TestNothingIsCollected while it cannot be told what is needed.
func TestNothingIsCollected(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		other *hosttest.Agent
		spoil func(t *testing.T, w *world, sb *wrenn.Sandbox, other *hosttest.Agent)
		heal  func(t *testing.T, w *world, sb *wrenn.Sandbox)
	}{
		"a host does not answer": {
			spoil: func(_ *testing.T, w *world, _ *wrenn.Sandbox, _ *hosttest.Agent) { w.servers[1].Stop() },
			heal: func(t *testing.T, w *world, _ *wrenn.Sandbox) {
				t.Helper()
				w.sql(t, "UPDATE hosts SET status = 'lost' WHERE id = 'h2'") // an operator's word
			},
		},
		"a host in no configuration": {
			spoil: func(t *testing.T, w *world, _ *wrenn.Sandbox, _ *hosttest.Agent) {
				t.Helper()
				w.sql(t, "INSERT INTO hosts (id, url) VALUES ('h9', 'http://127.0.0.1:1')")
			},
			heal: func(t *testing.T, w *world, _ *wrenn.Sandbox) {
				t.Helper()
				w.sql(t, "UPDATE hosts SET status = 'removed' WHERE id = 'h9'")
			},
		},
		"an old agent": {other: &hosttest.Agent{HasStore: true, NoStoreRounds: true}},
		"a sandbox in quarantine": {
			spoil: func(_ *testing.T, _ *world, sb *wrenn.Sandbox, other *hosttest.Agent) {
				other.References = func(wrenn.TeamID) wrenn.StoreReferences {
					return wrenn.StoreReferences{Unknown: []wrenn.SandboxID{sb.ID}}
				}
			},
			heal: func(t *testing.T, w *world, sb *wrenn.Sandbox) {
				t.Helper()
				w.sql(t, "UPDATE sandboxes SET state = 'stopped' WHERE id = $1", string(sb.ID))
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seen collections
			other := c.other
			if other == nil {
				other = &hosttest.Agent{HasStore: true}
			}
			w := newWorld(t, &hosttest.Agent{HasStore: true, Collect: seen.collect}, other)
			s, stop := w.replica(t, nil) // which begins no rounds
			sb := create(t, s, w.caller)
			stop()
			if c.spoil != nil {
				c.spoil(t, w, sb, other)
			}
			w.sql(t, "UPDATE store_rounds SET round = 7")
			s, _ = w.replica(t, inShortRounds)
			testkit.WaitUntil(t, "the collector has looked", func() bool {
				return metric(t, s, "wrenn_store_collection_held")+metric(t, s, "wrenn_store_collection_failures_total") >= 1
			})
			if last, n := seen.last(); n != 0 {
				t.Errorf("there was a collection: %+v", last)
			}
			if c.heal != nil {
				c.heal(t, w, sb)
				seen.until(t)
			}
		})
	}
}

// TestNothingIsCollectedDuringAMove: a sandbox that is moved while hosts are asked may have
// been on none of them.
func TestNothingIsCollectedDuringAMove(t *testing.T) {
	t.Parallel()
	var seen collections
	moves := make(chan struct{}, 1)
	w := newWorld(t)
	agent := &hosttest.Agent{HasStore: true, Collect: seen.collect}
	var id atomic.Value
	agent.References = func(wrenn.TeamID) wrenn.StoreReferences {
		if moving, _ := id.Load().(string); moving != "" {
			w.sql(t, "UPDATE sandboxes SET epoch = epoch + 1 WHERE id = $1", moving)
			select {
			case moves <- struct{}{}:
			default:
			}
		}
		return wrenn.StoreReferences{}
	}
	server, err := hosttest.Serve(t.Context(), agent)
	testkit.Must(t, err)
	t.Cleanup(server.Stop)
	w.agents, w.servers = append(w.agents, agent), append(w.servers, server)
	s, stop := w.replica(t, nil)
	sb := create(t, s, w.caller)
	stop()
	id.Store(string(sb.ID))
	w.sql(t, "UPDATE store_rounds SET round = 7")
	s, _ = w.replica(t, inShortRounds)
	<-moves
	testkit.WaitUntil(t, "the collection has failed", func() bool { return metric(t, s, "wrenn_store_collection_failures_total") >= 1 })
	if last, n := seen.last(); n != 0 {
		t.Errorf("there was a collection: %+v", last)
	}
	id.Store("")
	seen.until(t)
}

// TestRoundsAfterABackup: hosts that know a later round than the database, which is that of
// a backup, are followed.
func TestRoundsAfterABackup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{HasStore: true})
	w.sql(t, "UPDATE store_rounds SET round = 40")
	s, stop := w.replica(t, inShortRounds)
	create(t, s, w.caller)
	testkit.WaitUntil(t, "the host knows the round", func() bool {
		found, err := s.StoreGarbage(t.Context(), "")
		return err == nil && found.Round > 40
	})
	stop()
	w.sql(t, "UPDATE store_rounds SET round = 3")
	w.replica(t, inShortRounds)
	testkit.WaitUntil(t, "the database knows the round", func() bool {
		round, _, err := w.store.StoreRound(t.Context(), 0)
		return err == nil && round > 40
	})
}
