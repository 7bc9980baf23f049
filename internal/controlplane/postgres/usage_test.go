package postgres_test

import (
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

// tenOClock is the hour in which the tests of usage begin to count.
var tenOClock = time.Date(2026, 1, 2, 10, 0, 0, 0, time.UTC)

// clock returns the time so many minutes after tenOClock.
func clock(minutes int) time.Time { return tenOClock.Add(time.Duration(minutes) * time.Minute) }

// change is a change of a sandbox's state, in minutes after tenOClock.
type change struct {
	at int
	to wrenn.State
}

// usageTest is a database whose use is counted from tenOClock on.
type usageTest struct {
	url   string
	conn  *pgx.Conn
	store *postgres.Store
	team  wrenn.TeamID
}

func newUsageTest(t *testing.T) *usageTest {
	t.Helper()
	u := &usageTest{url: pgtest.New(t)}
	u.store = pgtest.Open(t, u.url)
	u.team = team(t, u.store)
	var err error
	u.conn, err = pgx.Connect(t.Context(), u.url)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = u.conn.Close(t.Context()) })
	u.exec(t, "UPDATE usage_progress SET counted_from = $1, settled_until = $1, counted_until = $1", tenOClock)
	return u
}

func (u *usageTest) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := u.conn.Exec(t.Context(), sql, args...)
	testkit.Must(t, err)
}

// sandbox writes a sandbox of 2 vCPUs, 512 MiB of memory and 1000 MiB of disk, with its history.
func (u *usageTest) sandbox(t *testing.T, history ...change) wrenn.SandboxID {
	t.Helper()
	id := wrenn.NewSandboxID()
	last := history[len(history)-1]
	u.exec(t, `INSERT INTO sandboxes (id, team_id, host_id, template, vcpus, memory_mb, disk_mb, timeout_sec, state, version, created_at, updated_at)
		VALUES ($1, $2, 'h1', 'base', 2, 512, 1000, 300, $3, $4, $5, $6)`, id, u.team, last.to, len(history), clock(history[0].at), clock(last.at))
	before := wrenn.State("")
	for i, c := range history {
		u.exec(t, `INSERT INTO sandbox_events (sandbox_id, version, from_state, to_state, host_id, actor, reason, at)
			VALUES ($1, $2, $3, $4, 'h1', 'test', '', $5)`, id, i+1, before, c.to, clock(c.at))
		before = c.to
	}
	return id
}

// count counts until so many minutes after tenOClock.
func (u *usageTest) count(t *testing.T, minutes int) {
	t.Helper()
	for behind := true; behind; {
		var err error
		behind, err = u.store.CountUsage(t.Context(), clock(minutes))
		testkit.Must(t, err)
	}
}

// minutes are what hours have, in minutes instead of milliseconds.
type minutes struct{ hour, creates, sandboxes, paused, vcpus, memory, disk, volumes, templates int64 }

func (u *usageTest) hours(t *testing.T) []minutes {
	t.Helper()
	steps, err := u.store.TeamUsage(t.Context(), u.team, clock(-48*60), clock(48*60), "hour")
	testkit.Must(t, err)
	var out []minutes
	for _, s := range steps {
		m := func(e postgres.Extent) int64 { return int64(e) / time.Minute.Milliseconds() }
		out = append(out, minutes{
			hour: int64(s.Begins.Hour()), creates: s.Creates, sandboxes: m(s.Sandboxes), paused: m(s.Paused), vcpus: m(s.VCPUs),
			memory: m(s.MemoryMiB), disk: m(s.DiskMiB), volumes: m(s.VolumeMiB), templates: m(s.TemplateMiB),
		})
	}
	return out
}

func (u *usageTest) want(t *testing.T, want ...minutes) {
	t.Helper()
	if diff := cmp.Diff(want, u.hours(t), cmp.AllowUnexported(minutes{})); diff != "" {
		t.Errorf("the hours (-want +got):\n%s", diff)
	}
}

// of returns the minutes of an hour in which sandboxes of the tests' size ran and were paused.
func of(hour, creates, ran, paused int64) minutes {
	return minutes{hour: hour, creates: creates, sandboxes: ran, paused: paused, vcpus: 2 * ran, memory: 512 * ran, disk: 1000 * (ran + paused)}
}

// TestUsage has histories of one sandbox and what they come to.
func TestUsage(t *testing.T) {
	t.Parallel()
	starting, running, pausing, paused, resuming, stopping, stopped := wrenn.Starting, wrenn.Running, wrenn.Pausing, wrenn.Paused, wrenn.Resuming, wrenn.Stopping, wrenn.Stopped
	for name, tc := range map[string]struct {
		history []change
		until   int
		want    []minutes
	}{
		"runs":                        {[]change{{10, starting}, {12, running}}, 30, []minutes{of(10, 1, 18, 0)}},
		"ended":                       {[]change{{10, starting}, {12, running}, {20, stopping}, {25, stopped}}, 59, []minutes{of(10, 1, 8, 0)}},
		"paused and resumed":          {[]change{{0, starting}, {5, running}, {10, pausing}, {11, paused}, {31, resuming}, {32, running}}, 60, []minutes{of(10, 1, 6+28, 21)}},
		"across the hour's boundary":  {[]change{{50, starting}, {55, running}, {70, stopping}, {71, stopped}}, 90, []minutes{of(10, 1, 5, 0), of(11, 0, 10, 0)}},
		"a change at the boundary":    {[]change{{0, starting}, {0, running}, {60, stopping}, {60, stopped}}, 200, []minutes{of(10, 1, 60, 0)}},
		"many hours without a change": {[]change{{0, starting}, {30, running}}, 5*60 + 15, []minutes{of(10, 1, 30, 0), of(11, 0, 60, 0), of(12, 0, 60, 0), of(13, 0, 60, 0), of(14, 0, 60, 0), of(15, 0, 15, 0)}},
		"from before":                 {[]change{{-90, starting}, {-80, running}, {-5, pausing}, {10, paused}}, 30, []minutes{of(10, 0, 10, 20)}},
		"did not start":               {[]change{{10, starting}, {12, stopping}, {13, wrenn.Failed}}, 30, []minutes{of(10, 1, 0, 0)}},
		"a clock that was set back":   {[]change{{0, starting}, {5, running}, {40, paused}, {20, resuming}, {20, running}, {30, stopping}, {30, stopped}}, 59, []minutes{of(10, 1, 35, 0)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUsageTest(t)
			u.sandbox(t, tc.history...)
			u.count(t, tc.until)
			u.want(t, tc.want...)
			for m := 1; m < tc.until; m += 13 { // however often it is counted, and if clocks go back
				u.count(t, m)
			}
			u.count(t, tc.until)
			u.count(t, tc.until)
			u.want(t, tc.want...)
		})
	}
}

// TestUsageIsCountedOnce: replicas that count at the same time, and one that dies in the
// middle, count an hour once, and what is committed late counts, too.
func TestUsageIsCountedOnce(t *testing.T) {
	t.Parallel()
	u := newUsageTest(t)
	u.sandbox(t, change{0, wrenn.Starting}, change{10, wrenn.Running})

	tx, err := u.conn.Begin(t.Context()) // dies before it commits
	testkit.Must(t, err)
	_, err = tx.Exec(t.Context(), "SELECT settled_until FROM usage_progress FOR UPDATE; SELECT count_usage('2026-01-02T10:00:00Z', '2026-01-02T10:30:00Z', 1)")
	testkit.Must(t, err)
	testkit.Must(t, tx.Rollback(t.Context()))

	var g sync.WaitGroup
	for range 2 {
		replica := pgtest.Open(t, u.url)
		for range 5 {
			g.Go(func() {
				if _, err := replica.CountUsage(t.Context(), clock(62)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	g.Wait()
	u.want(t, of(10, 1, 50, 0), of(11, 0, 2, 0))

	u.sandbox(t, change{58, wrenn.Starting}, change{59, wrenn.Running}, change{61, wrenn.Stopping}, change{61, wrenn.Stopped}) // committed late
	u.count(t, 66)
	u.want(t, of(10, 2, 51, 0), of(11, 0, 7, 0))
	u.count(t, 30) // a clock goes back by more than an hour
	u.want(t, of(10, 2, 20, 0))
	u.count(t, 66)
	u.want(t, of(10, 2, 51, 0), of(11, 0, 7, 0))
	if p, err := u.store.UsageProgress(t.Context()); err != nil || !p.From.Equal(tenOClock) || !p.Until.Equal(clock(66)) {
		t.Errorf("counted %v, %v", p, err)
	}
}

// TestUsageOfStorage counts volumes, also those that are gone, and templates.
func TestUsageOfStorage(t *testing.T) {
	t.Parallel()
	u := newUsageTest(t)
	volume := func(name string, created, updated int, state string) {
		u.exec(t, `INSERT INTO volumes (id, team_id, name, host_id, size_mib, state, created_at, updated_at) VALUES ($1, $2, $1, 'h1', 100, $3, $4, $5)`,
			name, u.team, state, clock(created), clock(updated))
	}
	volume("kept", 30, 30, "ready")
	volume("gone", 10, 20, "deleting")
	volume("leaving", -60, 5, "deleting")
	u.exec(t, "DELETE FROM volumes WHERE name = 'gone'")
	u.exec(t, `INSERT INTO template_generations (id, team_id, name, tag, state, vcpus, memory_mb, size_bytes, finished_at, updated_at) VALUES
		('a', $1, 'a', 'default', 'ready', 1, 512, 2 << 20, $2, $2), ('b', $1, 'b', 'default', 'deleted', 1, 512, 1 << 20, $2, $3)`, u.team, clock(40), clock(50))
	u.count(t, 60)
	u.count(t, 65)
	u.want(t, minutes{hour: 10, volumes: 100 * (30 + 10 + 5), templates: 2*20 + 10}, minutes{hour: 11, volumes: 100 * 5, templates: 2 * 5})
	if left := query(t, u.url, "SELECT count(*)::text FROM ended_volumes"); left[0] != "0" {
		t.Errorf("%s volumes that are gone stay after their hour", left[0])
	}
}

// TestUsageIsKept: a sandbox is not forgotten before its use is settled, and use of long ago is.
func TestUsageIsKept(t *testing.T) {
	t.Parallel()
	u := newUsageTest(t)
	u.sandbox(t, change{0, wrenn.Starting}, change{0, wrenn.Running}, change{30, wrenn.Stopping}, change{30, wrenn.Stopped})
	for _, step := range []struct{ until, dropped int }{{0, 0}, {40, 0}, {64, 0}, {65, 1}} {
		u.count(t, step.until)
		if n, err := u.store.DropEnded(t.Context(), time.Second, 10); n != step.dropped || err != nil {
			t.Errorf("counted until minute %d, %d rows are deleted, want %d: %v", step.until, n, step.dropped, err)
		}
	}
	u.count(t, 90)
	u.want(t, of(10, 1, 30, 0))
	if n, err := u.store.DropUsage(t.Context(), time.Since(clock(-60)), 10); n != 0 || err != nil {
		t.Errorf("%d hours that are not old are deleted: %v", n, err)
	}
	if n, err := u.store.DropUsage(t.Context(), time.Since(clock(60)), 10); n != 1 || err != nil {
		t.Errorf("%d hours that are old are deleted, want 1: %v", n, err)
	}
}

// TestUsageByDay adds up hours, of one team.
func TestUsageByDay(t *testing.T) {
	t.Parallel()
	u := newUsageTest(t)
	u.sandbox(t, change{0, wrenn.Starting}, change{0, wrenn.Running})
	other, err := u.store.EnsureTeam(t.Context(), "other")
	testkit.Must(t, err)
	u.count(t, 20*60)
	days, err := u.store.TeamUsage(t.Context(), u.team, tenOClock.Truncate(24*time.Hour), clock(48*60), "day")
	testkit.Must(t, err)
	var got []int64
	for _, d := range days {
		got = append(got, int64(d.Begins.Day()), int64(d.Sandboxes)/time.Hour.Milliseconds())
	}
	if diff := cmp.Diff([]int64{2, 14, 3, 6}, got); diff != "" {
		t.Errorf("days and their hours (-want +got):\n%s", diff)
	}
	if hours, err := u.store.TeamUsage(t.Context(), other, clock(-60), clock(48*60), "hour"); len(hours) > 0 || err != nil {
		t.Errorf("another team has %v, %v", hours, err)
	}
	if id, err := u.store.FindTeam(t.Context(), "other"); id != other || err != nil {
		t.Errorf("team %q, %v", id, err)
	}
	if _, err := u.store.FindTeam(t.Context(), "none"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("a team that does not exist: %v", err)
	}
}
