package postgres_test

import (
	stdcmp "cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var plenty = postgres.Limits{Sandboxes: 1 << 20, TeamMemoryMB: 1 << 40}

func team(t *testing.T, s *postgres.Store) wrenn.TeamID {
	t.Helper()
	team, err := s.EnsureTeam(t.Context(), "team")
	if err != nil {
		t.Fatal(err)
	}
	return team
}

func create(t *testing.T, s *postgres.Store, sb wrenn.Sandbox) *wrenn.Sandbox {
	t.Helper()
	sb.ID, sb.Template, sb.Size = wrenn.NewSandboxID(), "base", wrenn.Size{VCPUs: 1, MemoryMiB: 512}
	sb.Host = stdcmp.Or(sb.Host, "h1")
	out, err := s.CreateSandbox(t.Context(), sb, plenty, "test")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// query returns rows of text.
func query(t *testing.T, url, sql string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestEndCausesAreTheSameEverywhere holds the code and the CHECK constraint equal.
func TestEndCausesAreTheSameEverywhere(t *testing.T) {
	t.Parallel()
	definition := query(t, pgtest.New(t), "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'sandboxes_end_cause'")[0]
	var stored []string
	for _, m := range regexp.MustCompile(`'([a-z_]+)'::text`).FindAllStringSubmatch(definition, -1) {
		stored = append(stored, m[1])
	}
	var coded []string
	for _, cause := range wrenn.EndCauses() {
		coded = append(coded, string(cause))
	}
	if diff := cmp.Diff(coded, stored); diff != "" {
		t.Errorf("the CHECK constraint (-code +database):\n%s", diff)
	}
}

// TestStatesAreTheSameEverywhere holds the code, the CHECK constraint and the diagram equal.
func TestStatesAreTheSameEverywhere(t *testing.T) {
	t.Parallel()
	var want []string
	for _, s := range wrenn.States() {
		want = append(want, string(s))
	}
	definition := query(t, pgtest.New(t), "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'sandboxes_state'")[0]
	var got []string
	for _, m := range regexp.MustCompile(`'([a-z]+)'`).FindAllStringSubmatch(definition, -1) {
		got = append(got, m[1])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the CHECK constraint (-code +database):\n%s", diff)
	}

	var inTransition []string
	for _, s := range wrenn.States() {
		if s.InTransition() {
			inTransition = append(inTransition, string(s))
		}
	}
	got = nil
	index := query(t, pgtest.New(t), "SELECT indexdef FROM pg_indexes WHERE indexname = 'sandboxes_between'")[0]
	for _, m := range regexp.MustCompile(`'([a-z]+)'`).FindAllStringSubmatch(index, -1) {
		got = append(got, m[1])
	}
	if diff := cmp.Diff(inTransition, got); diff != "" {
		t.Errorf("the index of rows in transition (-code +database):\n%s", diff)
	}

	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "control-plane.md"))
	if err != nil {
		t.Fatal(err)
	}
	var moves, drawn []string
	for _, from := range wrenn.States() {
		for _, to := range wrenn.States() {
			if from.Can(to) {
				moves = append(moves, fmt.Sprintf("%s --> %s", from, to))
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^ *([a-z]+ --> [a-z]+)`).FindAllStringSubmatch(string(page), -1) {
		drawn = append(drawn, m[1])
	}
	slices.Sort(moves)
	slices.Sort(drawn)
	if diff := cmp.Diff(moves, drawn); diff != "" {
		t.Errorf("the diagram of docs/control-plane.md (-code +page):\n%s", diff)
	}
}

func TestCompareAndSet(t *testing.T) {
	t.Parallel()
	s := pgtest.Store(t)
	sb := create(t, s, wrenn.Sandbox{Team: team(t, s)})
	const writers = 8
	var mu sync.Mutex
	var won []*wrenn.Sandbox
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			moved, err := s.MoveSandbox(t.Context(), sb, postgres.Move{To: wrenn.Starting, Host: "h2", Actor: "test"})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, moved)
			} else if !errors.Is(err, postgres.ErrConflict) || wrenn.CodeOf(err) != wrenn.FailedPrecondition {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 || won[0].State != wrenn.Starting || won[0].Host != "h2" || won[0].Version != 2 {
		t.Fatalf("won: %+v", won)
	}
	running, err := s.MoveSandbox(t.Context(), won[0], postgres.Move{To: wrenn.Running, Actor: "test"})
	if err != nil || running.StartedAt.IsZero() || running.Host != "h2" {
		t.Fatalf("%+v, %v", running, err)
	}
	_, err = s.MoveSandbox(t.Context(), running, postgres.Move{To: wrenn.Pending})
	testkit.WantCode(t, err, wrenn.Internal) // the states forbid it, whatever the row is
	events, err := s.Events(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	for i := range events {
		events[i].At = time.Time{}
	}
	want := []postgres.Event{
		{Version: 1, To: wrenn.Starting, Host: "h1", Actor: "test"},
		{Version: 2, From: wrenn.Starting, To: wrenn.Starting, Host: "h2", Actor: "test"},
		{Version: 3, From: wrenn.Starting, To: wrenn.Running, Host: "h2", Actor: "test"},
	}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestEventsAreAppendOnly(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	s := pgtest.Open(t, url)
	create(t, s, wrenn.Sandbox{Team: team(t, s)})
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, sql := range []string{"DELETE FROM sandbox_events", "UPDATE sandbox_events SET reason = 'x'"} {
		if _, err := conn.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// TestEnvOfRows: lists do not read the variables of sandboxes, which may be large, and
// the row of an ended sandbox does not keep them.
func TestEnvOfRows(t *testing.T) {
	t.Parallel()
	s := pgtest.Store(t)
	mine := team(t, s)
	env := map[string]string{"TOKEN": "secret"}
	sb := create(t, s, wrenn.Sandbox{Team: mine, SandboxSpec: wrenn.SandboxSpec{Env: env}})
	read := func(want map[string]string) {
		t.Helper()
		now, err := s.Sandbox(t.Context(), sb.ID)
		testkit.Must(t, err)
		if diff := cmp.Diff(want, now.Env); diff != "" {
			t.Errorf("the row of a %s sandbox (-want +got):\n%s", now.State, diff)
		}
		for _, oldest := range []bool{false, true} {
			page, _, err := s.Sandboxes(t.Context(), mine, postgres.List{Limit: 10, OldestFirst: oldest})
			testkit.Must(t, err)
			if len(page) != 1 || len(page[0].Env) != 0 || page[0].Host != "h1" {
				t.Errorf("a list has %+v", page)
			}
		}
	}
	read(env)
	rows, err := s.HostRows(t.Context(), "h1", []wrenn.SandboxID{sb.ID})
	testkit.Must(t, err)
	if len(rows) != 1 || len(rows[0].Env) != 0 {
		t.Errorf("a host's rows are %+v", rows)
	}
	for _, to := range []wrenn.State{wrenn.Running, wrenn.Stopping, wrenn.Stopped} {
		sb, err = s.MoveSandbox(t.Context(), sb, postgres.Move{To: to})
		testkit.Must(t, err)
	}
	read(map[string]string{})
}

// TestDropEnded: rows of sandboxes that ended long ago are deleted in batches, with
// their events, and no others.
func TestDropEnded(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	s := pgtest.Open(t, url)
	mine := team(t, s)
	living := create(t, s, wrenn.Sandbox{Team: mine})
	for range 5 {
		sb := create(t, s, wrenn.Sandbox{Team: mine})
		_, err := s.MoveSandbox(t.Context(), sb, postgres.Move{To: wrenn.Failed})
		testkit.Must(t, err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	testkit.Must(t, err)
	defer conn.Close(t.Context())
	if n, err := s.DropEnded(t.Context(), time.Hour, 3); n != 0 || err != nil {
		t.Errorf("young rows: %d deleted, %v", n, err)
	}
	_, err = conn.Exec(t.Context(), "UPDATE sandboxes SET updated_at = updated_at - interval '2 hours'")
	testkit.Must(t, err)
	for _, want := range []int{3, 2, 0} {
		if n, err := s.DropEnded(t.Context(), time.Hour, 3); n != want || err != nil {
			t.Errorf("%d rows were deleted, want %d: %v", n, want, err)
		}
	}
	if diff := cmp.Diff([]string{string(living.ID)}, query(t, url, "SELECT sandbox_id FROM sandbox_events")); diff != "" {
		t.Errorf("events that are left (-want +got):\n%s", diff)
	}
	if _, err := conn.Exec(t.Context(), "DELETE FROM sandbox_events"); err == nil {
		t.Error("events of a living sandbox can be deleted")
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	s := pgtest.Store(t)
	mine := team(t, s)
	other, err := s.EnsureTeam(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, wrenn.Sandbox{Team: other})
	var all []wrenn.SandboxID // newest first
	for i := range 25 {
		sb := create(t, s, wrenn.Sandbox{Team: mine, Metadata: map[string]string{"n": fmt.Sprint(i % 5), "of": "five"}})
		if i%3 == 0 {
			if _, err := s.MoveSandbox(t.Context(), sb, postgres.Move{To: wrenn.Failed, Reason: "why", Actor: "test"}); err != nil {
				t.Fatal(err)
			}
		}
		all = append([]wrenn.SandboxID{sb.ID}, all...)
	}
	walk := func(l postgres.List, between func()) (ids []wrenn.SandboxID, pages int) {
		for {
			page, next, err := s.Sandboxes(t.Context(), mine, l)
			if err != nil {
				t.Fatal(err)
			}
			for _, sb := range page {
				ids = append(ids, sb.ID)
			}
			pages++
			if next == "" {
				return ids, pages
			}
			l.Page = next
			between()
		}
	}
	nothing := func() {}
	got, pages := walk(postgres.List{Limit: 10}, nothing)
	if diff := cmp.Diff(all, got); diff != "" || pages != 3 {
		t.Errorf("%d pages (-want +got):\n%s", pages, diff)
	}
	if got, pages := walk(postgres.List{Limit: 25}, nothing); len(got) != 25 || pages != 1 {
		t.Errorf("a page that is just full: %d in %d pages", len(got), pages)
	}
	if got, _ := walk(postgres.List{Limit: 4, States: []wrenn.State{wrenn.Failed}}, nothing); len(got) != 9 {
		t.Errorf("%d failed, want 9", len(got))
	}
	if got, _ := walk(postgres.List{Limit: 4, States: []wrenn.State{wrenn.Failed, wrenn.Starting}, Metadata: map[string]string{"n": "3", "of": "five"}}, nothing); len(got) != 5 {
		t.Errorf("%d with n=3, want 5", len(got))
	}
	if got, _ := walk(postgres.List{Limit: 4, Metadata: map[string]string{"n": "3", "of": "six"}}, nothing); len(got) != 0 {
		t.Errorf("%d match half of the filter", len(got))
	}
	got, _ = walk(postgres.List{Limit: 10}, func() { create(t, s, wrenn.Sandbox{Team: mine}) })
	if diff := cmp.Diff(all, got); diff != "" {
		t.Errorf("with new ones between the pages (-want +got):\n%s", diff)
	}
	for _, page := range []string{"x", "e30", "MTIzLmZvbw", "LTEuaWFiY2RlZmdoaWprbG1ub3BxcnN0"} {
		_, _, err := s.Sandboxes(t.Context(), mine, postgres.List{Limit: 1, Page: page})
		testkit.WantCode(t, err, wrenn.Invalid)
	}
}

// TestAbandoned has two replicas, of which one disconnects.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	here, gone := pgtest.Open(t, url), pgtest.Open(t, url)
	register := func(s *postgres.Store) *postgres.Lead {
		t.Helper()
		lead, err := s.RegisterWorker(t.Context())
		if err != nil || lead == nil {
			t.Fatalf("RegisterWorker() = %v, %v", lead, err)
		}
		return lead
	}
	defer register(here).Close(t.Context())
	lead := register(gone)
	if again, err := gone.RegisterWorker(t.Context()); again != nil || err != nil {
		t.Errorf("registered twice: %v, %v", again, err)
	}
	mine := team(t, here)
	starting := func(s *postgres.Store) *wrenn.Sandbox { return create(t, s, wrenn.Sandbox{Team: mine}) }
	kept, released, left, done := starting(here), starting(here), starting(gone), starting(gone)
	pending := starting(gone) // a row as the version before wrote it, without a host
	query(t, url, "UPDATE sandboxes SET state = 'pending', host_id = '' WHERE id = '"+string(pending.ID)+"' RETURNING ''")
	if _, err := gone.MoveSandbox(t.Context(), done, postgres.Move{To: wrenn.Running, Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	query(t, url, "INSERT INTO sandboxes (id, team_id, template, vcpus, memory_mb, timeout_sec, state) SELECT 'iold', team_id, 'base', 1, 1, 1, 'starting' FROM sandboxes LIMIT 1 RETURNING ''")
	want := func(want map[wrenn.SandboxID]wrenn.HostID) {
		t.Helper()
		testkit.WaitNoError(t, "the right rows are abandoned", func() error { // a session's end takes a moment
			got, err := here.Abandoned(t.Context(), 0)
			testkit.Must(t, err)
			if diff := cmp.Diff(want, got); diff != "" {
				return fmt.Errorf("(-want +got):\n%s", diff)
			}
			return nil
		})
	}
	want(map[wrenn.SandboxID]wrenn.HostID{})
	lead.Close(t.Context())
	want(map[wrenn.SandboxID]wrenn.HostID{left.ID: "h1", pending.ID: ""})
	lead = register(gone) // a connection that was lost, and is back
	want(map[wrenn.SandboxID]wrenn.HostID{})
	lead.Close(t.Context())
	for _, s := range []*postgres.Store{here, gone} { // the second is not its worker, so nothing changes
		if err := s.Release(t.Context(), []wrenn.SandboxID{released.ID}); err != nil {
			t.Fatal(err)
		}
	}
	want(map[wrenn.SandboxID]wrenn.HostID{left.ID: "h1", pending.ID: "", released.ID: "h1"})
	if got, err := here.Abandoned(t.Context(), time.Hour); err != nil || len(got) != 0 {
		t.Errorf("older than an hour: %v, %v", got, err)
	}
	if now, err := here.Sandbox(t.Context(), kept.ID); err != nil || now.Version != kept.Version {
		t.Errorf("a row of a worker that is connected: %+v, %v", now, err)
	}
	if err := gone.Release(t.Context(), []wrenn.SandboxID{kept.ID}); err != nil {
		t.Fatal(err)
	}
	want(map[wrenn.SandboxID]wrenn.HostID{left.ID: "h1", pending.ID: "", released.ID: "h1"})
}

func TestHostRows(t *testing.T) {
	t.Parallel()
	s := pgtest.Store(t)
	mine := team(t, s)
	at := func(host wrenn.HostID, states ...wrenn.State) wrenn.SandboxID {
		sb := create(t, s, wrenn.Sandbox{Team: mine, Host: host})
		for _, to := range states {
			var err error
			if sb, err = s.MoveSandbox(t.Context(), sb, postgres.Move{To: to, Host: host, Actor: "test"}); err != nil {
				t.Fatal(err)
			}
		}
		return sb.ID
	}
	running := at("h1", wrenn.Running)
	at("h1", wrenn.Failed)
	seenEnded := at("h1", wrenn.Failed)
	at("h2")
	elsewhere := at("h2")
	rows, err := s.HostRows(t.Context(), "h1", []wrenn.SandboxID{running, seenEnded, elsewhere, `"no id"`})
	if err != nil {
		t.Fatal(err)
	}
	var got []wrenn.SandboxID
	for _, r := range rows {
		got = append(got, r.ID)
	}
	want := []wrenn.SandboxID{running, seenEnded, elsewhere}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestUnknownAreReportedOnce(t *testing.T) {
	t.Parallel()
	s := pgtest.Store(t)
	seen := []wrenn.ObservedSandbox{{ID: "a", State: wrenn.ObservedRunning}, {ID: "b", State: wrenn.ObservedPaused, Reason: "who knows"}}
	for i, want := range []int{2, 0} {
		fresh, err := s.SaveUnknown(t.Context(), "h1", seen)
		if err != nil || len(fresh) != want {
			t.Errorf("time %d: %v, %v", i, fresh, err)
		}
	}
	if fresh, err := s.SaveUnknown(t.Context(), "h1", nil); err != nil || len(fresh) != 0 {
		t.Errorf("%v, %v", fresh, err)
	}
	if fresh, err := s.SaveUnknown(t.Context(), "h1", seen[:1]); err != nil || len(fresh) != 1 {
		t.Errorf("one that is back is new: %v, %v", fresh, err)
	}
}

func TestDatabaseThatIsNotThere(t *testing.T) {
	t.Parallel()
	s, err := postgres.Open(t.Context(), postgres.Config{URL: "postgres://wrenn:geheim@127.0.0.1:1/wrenn"})
	if err != nil {
		t.Fatalf("a store does not wait for its database: %v", err)
	}
	defer s.Close()
	err = s.Ready(t.Context())
	testkit.WantCode(t, err, wrenn.Unavailable)
	if strings.Contains(err.Error(), "geheim") {
		t.Errorf("the password is in %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Now(ctx)
	testkit.WantCode(t, err, wrenn.Canceled)
	_, err = postgres.Open(t.Context(), postgres.Config{URL: "postgres://wrenn:geheim@:x/"})
	if testkit.WantCode(t, err, wrenn.Invalid); strings.Contains(err.Error(), "geheim") {
		t.Errorf("the password is in %v", err)
	}
}

func TestReadyKnowsTheSchema(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	s := pgtest.Open(t, url)
	if err := s.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if err := postgres.Migrate(t.Context(), url); err != nil {
		t.Errorf("migrating what is migrated: %v", err)
	}
	query(t, url, "DELETE FROM goose_db_version WHERE version_id > 0 RETURNING ''")
	testkit.WantCode(t, s.Ready(t.Context()), wrenn.Unavailable)
	query(t, url, "DROP TABLE goose_db_version")
	testkit.WantCode(t, s.Ready(t.Context()), wrenn.Unavailable)
}

// TestTeamUseIsCounted compares the counters with the rows.
func TestTeamUseIsCounted(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	s := pgtest.Open(t, url)
	var walks sync.WaitGroup
	for n := range 8 {
		owner, err := s.EnsureTeam(t.Context(), fmt.Sprint("team", n%2))
		if err != nil {
			t.Fatal(err)
		}
		sb := create(t, s, wrenn.Sandbox{Team: owner})
		walks.Go(func() {
			for _, to := range []wrenn.State{wrenn.Starting, wrenn.Running, wrenn.Paused, wrenn.Running, wrenn.Stopping, wrenn.Stopped}[:2*(n/2)] {
				if sb, err = s.MoveSandbox(t.Context(), sb, postgres.Move{To: to, Host: "h", Actor: "test"}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	walks.Wait()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `
		SELECT name, used_sandboxes, used_memory_mb, count(*), sum(memory_mb) FILTER (WHERE state <> 'paused')
		FROM teams JOIN sandboxes ON team_id = teams.id AND state NOT IN ('stopped', 'failed') GROUP BY teams.id ORDER BY name`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var name string
		var used, usedMB, have, haveMB int
		err := row.Scan(&name, &used, &usedMB, &have, &haveMB)
		return fmt.Sprintf("%s: %d sandboxes with %d MB of %d with %d MB", name, used, usedMB, have, haveMB), err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Of each team one starts, one runs, one did so before and after a pause, and one has stopped.
	want := []string{"team0: 3 sandboxes with 1536 MB of 3 with 1536 MB", "team1: 3 sandboxes with 1536 MB of 3 with 1536 MB"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestPausedHaveNoMemory: a team may have more paused sandboxes than would fit, and resumes as many as do.
func TestPausedHaveNoMemory(t *testing.T) {
	t.Parallel()
	s := pgtest.Store(t)
	limits := postgres.Limits{Sandboxes: 10, TeamMemoryMB: 1024}
	owner := team(t, s)
	move := func(sb *wrenn.Sandbox, states ...wrenn.State) *wrenn.Sandbox {
		t.Helper()
		for _, to := range states {
			moved, err := s.MoveSandbox(t.Context(), sb, postgres.Move{To: to, Host: "h1", Actor: "test"})
			if err != nil {
				t.Fatal(err)
			}
			sb = moved
		}
		return sb
	}
	var paused []*wrenn.Sandbox
	for range 3 {
		sb, err := s.CreateSandbox(t.Context(), wrenn.Sandbox{ID: wrenn.NewSandboxID(), Team: owner, SandboxSpec: wrenn.SandboxSpec{Template: "base", Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}}}, limits, "test")
		if err != nil {
			t.Fatal(err)
		}
		paused = append(paused, move(sb, wrenn.Running, wrenn.Pausing, wrenn.Paused))
	}
	for _, sb := range paused[:2] {
		if got, err := s.ResumeSandbox(t.Context(), sb, limits, "test"); err != nil || got.State != wrenn.Resuming {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	_, err := s.ResumeSandbox(t.Context(), paused[0], limits, "test")
	if !errors.Is(err, postgres.ErrConflict) {
		t.Errorf("twice: %v", err)
	}
	_, err = s.ResumeSandbox(t.Context(), paused[2], limits, "test")
	testkit.WantCode(t, err, wrenn.Exhausted)
	if sb, err := s.Sandbox(t.Context(), paused[2].ID); err != nil || sb.State != wrenn.Paused || sb.Version != paused[2].Version {
		t.Errorf("refused, it is %+v, %v", sb, err)
	}
}

// TestCreateSeveral: all of them or none.
func TestCreateSeveral(t *testing.T) {
	t.Parallel()
	s := pgtest.Store(t)
	owner := team(t, s)
	several := func(n int) []wrenn.Sandbox {
		boxes := make([]wrenn.Sandbox, n)
		for i := range boxes {
			boxes[i] = wrenn.Sandbox{
				ID: wrenn.NewSandboxID(), Team: owner, Host: "h1", Parent: "iparent", SandboxSpec: wrenn.SandboxSpec{
					Template: "base", Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}, EndOfLife: wrenn.EndOfLife{OnTimeout: wrenn.PauseOnTimeout}, AutoResume: true,
				},
			}
		}
		return boxes
	}
	limits := postgres.Limits{Sandboxes: 5, TeamMemoryMB: 2048}
	rows, err := s.CreateSandboxes(t.Context(), several(3), limits, "test")
	if err != nil || len(rows) != 3 || !slices.IsSortedFunc(rows, func(a, b wrenn.Sandbox) int { return stdcmp.Compare(a.ID, b.ID) }) {
		t.Fatalf("%+v, %v", rows, err)
	}
	for _, row := range rows {
		events, err := s.Events(t.Context(), row.ID)
		if err != nil || len(events) != 1 || events[0].To != wrenn.Starting || events[0].Host != "h1" || row.State != wrenn.Starting || row.Host != "h1" {
			t.Errorf("%+v, events %+v, %v", row, events, err)
		}
	}
	if got, err := s.Sandbox(t.Context(), rows[2].ID); err != nil || got.Parent != "iparent" || !got.AutoResume || got.OnTimeout != wrenn.PauseOnTimeout {
		t.Errorf("%+v, %v", got, err)
	}
	for name, n := range map[string]int{"too many": 3, "too much memory": 2} {
		_, err := s.CreateSandboxes(t.Context(), several(n), limits, "test")
		if wrenn.CodeOf(err) != wrenn.Exhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, _, err := s.Sandboxes(t.Context(), owner, postgres.List{Limit: 10}); err != nil || len(all) != 3 {
		t.Errorf("%d rows, %v", len(all), err)
	}
}
