package postgres

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres/internal/dbsqlc"
)

// ErrConflict is the cause of a FailedPrecondition: another change of the row was first.
var ErrConflict = errors.New("another change of the row was first")

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// Limits bound what a team has. Its row in the database may have other values for
// the first two.
type Limits struct {
	Sandboxes    int // paused ones included
	TeamMemoryMB int // of all its sandboxes together that are not paused
	Templates    int // names
	Builds       int // of templates, at a time
	Volumes      int
	// TeamVolumeMiB bounds the sizes of all its volumes together.
	TeamVolumeMiB int
	Secrets       int
}

// CreateSandbox writes the row of a sandbox that starts on sb.Host, and its
// event, unless that exceeds a limit of the team: Exhausted. NotFound when a volume of
// it was deleted. It takes ID, Team, Host, Template, Build, VCPUs, MemoryMB, EndOfLife,
// AutoResume, OnHostLoss, CheckpointEvery, Parent, Metadata, Requires, Env, Network and Volumes of sb. actor and
// Reason are recorded in the event.
func (s *Store) CreateSandbox(ctx context.Context, sb wrenn.Sandbox, limits Limits, actor string) (*wrenn.Sandbox, error) {
	rows, err := s.CreateSandboxes(ctx, []wrenn.Sandbox{sb}, limits, actor)
	if err != nil {
		return nil, err
	}
	return &rows[0], nil
}

// CreateSandboxes is CreateSandbox for one or more sandboxes that differ in ID
// alone: all or none. It returns the rows in the order of their ids.
func (s *Store) CreateSandboxes(ctx context.Context, sandboxes []wrenn.Sandbox, limits Limits, actor string) ([]wrenn.Sandbox, error) {
	sb := sandboxes[0]
	params := dbsqlc.InsertSandboxesParams{
		TeamID: string(sb.Team), HostID: string(sb.Host), Template: sb.Template, Generation: string(sb.Build),
		VCPUs: clampInt32(sb.VCPUs), MemoryMB: clampInt32(sb.MemoryMiB), TimeoutSec: seconds(sb.Timeout),
		OnTimeout: string(cmp.Or(sb.OnTimeout, wrenn.DestroyOnTimeout)), AbsoluteTimeout: sb.Absolute, AutoResume: sb.AutoResume, ParentID: string(sb.Parent),
		Metadata: orEmpty(sb.Metadata), Env: orEmpty(sb.Env), Network: sb.Network, Volumes: append([]wrenn.VolumeMount{}, sb.Volumes...), // none is [], not null
		DiskMB: clampInt32(sb.DiskMiB), Requires: orEmpty(sb.Requires), OnHostLoss: string(cmp.Or(sb.OnHostLoss, wrenn.FailOnHostLoss)), CheckpointEverySec: seconds(sb.CheckpointEvery), Worker: &s.worker, Actor: actor, Reason: sb.Reason,
	}
	for _, sb := range sandboxes {
		params.IDs = append(params.IDs, string(sb.ID))
	}
	var out []wrenn.Sandbox
	err := s.inTx(ctx, "create the sandbox's row", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := checkLimits(ctx, q, sandboxes, limits); err != nil {
			return err
		}
		if err := checkVolumes(ctx, q, &sandboxes[0]); err != nil {
			return err
		}
		rows, err := q.InsertSandboxes(ctx, params)
		for _, row := range rows {
			out = append(out, *sandbox(dbsqlc.Sandbox(row)))
		}
		if err != nil {
			return err
		}
		return insertIngress(ctx, q, &sb, params.IDs)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func checkLimits(ctx context.Context, q *dbsqlc.Queries, sandboxes []wrenn.Sandbox, limits Limits) error {
	own, err := q.LockTeam(ctx, string(sandboxes[0].Team))
	if errors.Is(err, pgx.ErrNoRows) {
		return wrenn.Errorf(wrenn.NotFound, "the team does not exist any more")
	}
	if err != nil {
		return err
	}
	limits = limits.of(own.MaxSandboxes, own.MaxMemoryMB)
	if n := len(sandboxes); int(own.UsedSandboxes)+n > limits.Sandboxes {
		return wrenn.Errorf(wrenn.Exhausted, "the team has %d sandboxes of at most %d, which leaves no room for %d: delete some first; %s", own.UsedSandboxes, limits.Sandboxes, n, setBy("limits.sandboxes", own.MaxSandboxes != nil, "max_sandboxes"))
	}
	memory := len(sandboxes) * sandboxes[0].MemoryMiB
	if own.UsedMemoryMB+int64(memory) > int64(limits.TeamMemoryMB) {
		return wrenn.Errorf(wrenn.Exhausted, "the team's sandboxes have %d MB of memory of at most %d MB together: pause or delete some first, or ask for less than %d MB; %s", own.UsedMemoryMB, limits.TeamMemoryMB, memory, setBy("limits.team_memory_mb", own.MaxMemoryMB != nil, "max_memory_mb"))
	}
	return nil
}

// setBy says in an error who changes a limit: the operator, by a setting of the
// configuration, or by a column of the team's row if that has its own limit.
func setBy(setting string, own bool, column string) string {
	if own {
		return "the operator sets the limit for this team, as " + column
	}
	return "the operator sets the limit as " + setting
}

// of returns the limits of a team whose row may have its own values.
func (l Limits) of(sandboxes *int32, memoryMB *int64) Limits {
	if sandboxes != nil {
		l.Sandboxes = int(*sandboxes)
	}
	if memoryMB != nil {
		l.TeamMemoryMB = int(*memoryMB)
	}
	return l
}

// ResumeSandbox moves a paused row to resuming, as MoveSandbox does, unless its
// memory exceeds the team's limit now: Exhausted. One that is being moved had its memory before.
func (s *Store) ResumeSandbox(ctx context.Context, sb *wrenn.Sandbox, limits Limits, actor string) (*wrenn.Sandbox, error) {
	return s.moveWithin(ctx, "resume the sandbox's row", sb, Move{To: wrenn.Resuming, Actor: actor}, func(use dbsqlc.TeamUseRow) error {
		most := int64(limits.of(use.MaxSandboxes, use.MaxMemoryMB).TeamMemoryMB)
		if sb.Moving || use.UsedMemoryMB <= most {
			return nil
		}
		return wrenn.Errorf(wrenn.Exhausted, "with this one the team's running sandboxes would have %d MB of memory of at most %d MB together: pause or delete some first; it stays paused; %s",
			use.UsedMemoryMB, most, setBy("limits.team_memory_mb", use.MaxMemoryMB != nil, "max_memory_mb"))
	})
}

// RestoreSandbox moves a failed row to paused, as MoveSandbox does, unless that exceeds a
// limit of the team: Exhausted.
func (s *Store) RestoreSandbox(ctx context.Context, sb *wrenn.Sandbox, limits Limits, m Move) (*wrenn.Sandbox, error) {
	return s.moveWithin(ctx, "restore the sandbox's row", sb, m, func(use dbsqlc.TeamUseRow) error {
		most := limits.of(use.MaxSandboxes, use.MaxMemoryMB).Sandboxes
		if int(use.UsedSandboxes) <= most {
			return nil
		}
		return wrenn.Errorf(wrenn.Exhausted, "with this one the team would have %d sandboxes of at most %d: delete some first; %s",
			use.UsedSandboxes, most, setBy("limits.sandboxes", use.MaxSandboxes != nil, "max_sandboxes"))
	})
}

// moveWithin moves a row if allowed, which gets the use of its team with the move, returns nil.
func (s *Store) moveWithin(ctx context.Context, doing string, sb *wrenn.Sandbox, m Move, allowed func(dbsqlc.TeamUseRow) error) (*wrenn.Sandbox, error) {
	var out *wrenn.Sandbox
	err := s.inTx(ctx, doing, func(ctx context.Context, q *dbsqlc.Queries) error {
		row, err := q.MoveSandbox(ctx, s.move(sb, m))
		if errors.Is(err, pgx.ErrNoRows) {
			return Conflict()
		}
		if err != nil {
			return err
		}
		// The row first and then its team's, the order in which every change locks them.
		use, err := q.TeamUse(ctx, string(sb.Team))
		if err != nil {
			return err
		}
		out = sandbox(dbsqlc.Sandbox(row))
		return allowed(use)
	})
	return out, err
}

// Move is a change of state.
type Move struct {
	To     wrenn.State
	Reason string         // for the user; stored in the row and the event
	Cause  wrenn.EndCause // why it ends; "" keeps the row's
	Host   wrenn.HostID   // "" keeps the row's
	Actor  string         // recorded in the event

	Moving bool // it shall run again on another host; kept until it runs
	// MovedKey is what the Host has fetched; "" keeps the row's. With it, or with another
	// Host, the row's epoch is one more.
	MovedKey string
	// Stored is where the paused sandbox is to be continued from; zero keeps the row's, if
	// that holds still.
	Stored wrenn.Stored
}

// MoveSandbox moves a row to another state, and writes the event, if the row still
// is as sb has it; else it returns a FailedPrecondition with the cause ErrConflict. A
// move that the states do not allow is Internal: the caller has to ask State.Can. A
// starting or paused row may be moved to its own state, with a host, which may be the same, to change its host or reason.
func (s *Store) MoveSandbox(ctx context.Context, sb *wrenn.Sandbox, m Move) (*wrenn.Sandbox, error) {
	changesHost := sb.State == m.To && (m.To == wrenn.Starting || m.To == wrenn.Paused) && m.Host != ""
	if !sb.State.Can(m.To) && !changesHost {
		return nil, wrenn.Errorf(wrenn.Internal, "a %s sandbox cannot become %s", sb.State, m.To)
	}
	return s.change(ctx, "move the sandbox's row", func(ctx context.Context) (dbsqlc.Sandbox, error) {
		row, err := s.queries.MoveSandbox(ctx, s.move(sb, m))
		return dbsqlc.Sandbox(row), err
	})
}

func (s *Store) move(sb *wrenn.Sandbox, m Move) dbsqlc.MoveSandboxParams {
	params := dbsqlc.MoveSandboxParams{
		Moving: m.Moving, MovedKey: m.MovedKey, StoredKey: m.Stored.Key, StoredAt: orNil(m.Stored.At),
		ID: string(sb.ID), Version: sb.Version, FromState: string(sb.State), ToState: string(m.To), Reason: m.Reason, EndCause: string(m.Cause), Actor: m.Actor,
	}
	if m.Host != "" {
		params.HostID = new(string(m.Host))
	}
	if m.To.InTransition() {
		params.Worker = &s.worker
	}
	return params
}

// Conflict returns the error of a change that lost against another one, with the
// cause ErrConflict.
func Conflict() error {
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "another request changed the sandbox at the same time; try again", Err: ErrConflict}
}

// SetTimeout changes the timeout of a running or paused row, under the condition of MoveSandbox.
func (s *Store) SetTimeout(ctx context.Context, sb *wrenn.Sandbox, d time.Duration, actor string) (*wrenn.Sandbox, error) {
	return s.change(ctx, "set the sandbox's timeout", func(ctx context.Context) (dbsqlc.Sandbox, error) {
		row, err := s.queries.SetSandboxTimeout(ctx, dbsqlc.SetSandboxTimeoutParams{
			ID: string(sb.ID), Version: sb.Version, TimeoutSec: seconds(d), Actor: actor,
			Reason: "timeout set to " + strconv.Itoa(int(seconds(d))) + " s",
		})
		return dbsqlc.Sandbox(row), err
	})
}

// SetNetwork changes the network policy of a running or paused row, under the
// condition of MoveSandbox.
func (s *Store) SetNetwork(ctx context.Context, sb *wrenn.Sandbox, policy wrenn.NetworkPolicy, actor string) (*wrenn.Sandbox, error) {
	return s.change(ctx, "set the sandbox's network policy", func(ctx context.Context) (dbsqlc.Sandbox, error) {
		row, err := s.queries.SetSandboxNetwork(ctx, dbsqlc.SetSandboxNetworkParams{
			ID: string(sb.ID), Version: sb.Version, Network: policy, Actor: actor,
		})
		return dbsqlc.Sandbox(row), err
	})
}

// SetSettings changes the settings of a running or paused row, and what becomes of it with its
// host, under the condition of MoveSandbox.
func (s *Store) SetSettings(ctx context.Context, sb *wrenn.Sandbox, settings wrenn.Settings, loss wrenn.OnHostLoss, actor string) (*wrenn.Sandbox, error) {
	return s.change(ctx, "set the sandbox's settings", func(ctx context.Context) (dbsqlc.Sandbox, error) {
		row, err := s.queries.SetSandboxSettings(ctx, dbsqlc.SetSandboxSettingsParams{
			ID: string(sb.ID), Version: sb.Version, Actor: actor, OnHostLoss: string(loss),
			OnTimeout: string(settings.OnTimeout), AutoResume: settings.AutoResume, CheckpointEverySec: seconds(settings.CheckpointEvery),
		})
		return dbsqlc.Sandbox(row), err
	})
}

// SetMetadata replaces the metadata of a running or paused row, under the condition of
// MoveSandbox.
func (s *Store) SetMetadata(ctx context.Context, sb *wrenn.Sandbox, metadata map[string]string, actor string) (*wrenn.Sandbox, error) {
	return s.change(ctx, "set the sandbox's metadata", func(ctx context.Context) (dbsqlc.Sandbox, error) {
		row, err := s.queries.SetSandboxMetadata(ctx, dbsqlc.SetSandboxMetadataParams{
			ID: string(sb.ID), Version: sb.Version, Metadata: orEmpty(metadata), Actor: actor,
		})
		return dbsqlc.Sandbox(row), err
	})
}

// SetUnresponsive records that the guest of a running sandbox does not answer, or
// with nil that it answers again, under the condition of MoveSandbox. A move to
// another state than pausing, or back from it, forgets it.
func (s *Store) SetUnresponsive(ctx context.Context, sb *wrenn.Sandbox, u *wrenn.Unresponsive, actor string) (*wrenn.Sandbox, error) {
	params := dbsqlc.SetUnresponsiveParams{ID: string(sb.ID), Version: sb.Version, Actor: actor, Reason: "answers again"}
	if u != nil {
		params.Since, params.UnresponsiveReason, params.Reason = &u.Since, u.Reason, "does not answer: "+u.Reason
	}
	return s.change(ctx, "record whether the sandbox answers", func(ctx context.Context) (dbsqlc.Sandbox, error) {
		row, err := s.queries.SetUnresponsive(ctx, params)
		return dbsqlc.Sandbox(row), err
	})
}

// SetStored records where a paused sandbox is stored, under the condition of MoveSandbox.
// It forgets that when the sandbox runs.
func (s *Store) SetStored(ctx context.Context, sb *wrenn.Sandbox, stored wrenn.Stored, actor string) (*wrenn.Sandbox, error) {
	params := dbsqlc.SetStoredParams{ID: string(sb.ID), Version: sb.Version, Actor: actor, StoredAt: orNil(stored.At), StoredKey: stored.Key, Reason: "stored"}
	if stored == (wrenn.Stored{}) {
		params.Reason = "not stored"
	}
	return s.change(ctx, "record where the sandbox is stored", func(ctx context.Context) (dbsqlc.Sandbox, error) {
		row, err := s.queries.SetStored(ctx, params)
		return dbsqlc.Sandbox(row), err
	})
}

// SetNewestCheckpoint records the newest checkpoint of a sandbox that is stored, zero for
// none, if its host and epoch are still those of sb. It does not change the version.
func (s *Store) SetNewestCheckpoint(ctx context.Context, sb *wrenn.Sandbox, newest wrenn.StoredCheckpoint) error {
	return s.call(ctx, "record the sandbox's newest checkpoint", func(ctx context.Context) error {
		return s.queries.SetNewestCheckpoint(ctx, dbsqlc.SetNewestCheckpointParams{
			ID: string(sb.ID), HostID: string(sb.Host), Epoch: int64(sb.Epoch),
			CheckpointID: string(newest.ID), CheckpointKey: newest.Stored.Key, CheckpointAt: orNil(newest.Stored.At),
		})
	})
}

// SetEpoch records the epoch that a sandbox has on its host, if it is later than the row's,
// under the condition of MoveSandbox.
func (s *Store) SetEpoch(ctx context.Context, sb *wrenn.Sandbox, epoch wrenn.Epoch, actor string) (*wrenn.Sandbox, error) {
	return s.change(ctx, "record the sandbox's epoch", func(ctx context.Context) (dbsqlc.Sandbox, error) {
		row, err := s.queries.SetEpoch(ctx, dbsqlc.SetEpochParams{
			ID: string(sb.ID), Version: sb.Version, Epoch: int64(epoch), Actor: actor, Reason: "its host has it with a later epoch",
		})
		return dbsqlc.Sandbox(row), err
	})
}

// change runs a compare-and-set; no row is a conflict.
func (s *Store) change(ctx context.Context, doing string, f func(context.Context) (dbsqlc.Sandbox, error)) (*wrenn.Sandbox, error) {
	var out *wrenn.Sandbox
	err := s.call(ctx, doing, func(ctx context.Context) error {
		row, err := f(ctx)
		if errors.Is(err, pgx.ErrNoRows) {
			return Conflict()
		}
		if err != nil {
			return err
		}
		out = sandbox(row)
		return nil
	})
	return out, err
}

// Sandbox returns a row: NotFound when it does not exist.
func (s *Store) Sandbox(ctx context.Context, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.one(ctx, id, func(ctx context.Context) (dbsqlc.Sandbox, error) { return s.queries.GetSandbox(ctx, string(id)) })
}

// LiveSandboxes returns the ids of at most so many sandboxes that have not ended, of
// all teams, in no order.
func (s *Store) LiveSandboxes(ctx context.Context, most int) (ids []wrenn.SandboxID, err error) {
	err = s.call(ctx, "list live sandboxes", func(ctx context.Context) error {
		texts, err := s.queries.LiveSandboxes(ctx, int32(most))
		ids = nil
		for _, text := range texts {
			ids = append(ids, wrenn.SandboxID(text))
		}
		return err
	})
	return ids, err
}

// TeamSandbox returns a row of the team: NotFound also for another team's.
func (s *Store) TeamSandbox(ctx context.Context, team wrenn.TeamID, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.one(ctx, id, func(ctx context.Context) (dbsqlc.Sandbox, error) {
		return s.queries.GetTeamSandbox(ctx, string(id), string(team))
	})
}

func (s *Store) one(ctx context.Context, id wrenn.SandboxID, get func(context.Context) (dbsqlc.Sandbox, error)) (*wrenn.Sandbox, error) {
	var out *wrenn.Sandbox
	err := s.call(ctx, "read the sandbox's row", func(ctx context.Context) error {
		row, err := get(ctx)
		if errors.Is(err, pgx.ErrNoRows) {
			return wrenn.Errorf(wrenn.NotFound, "there is no sandbox %s", id)
		}
		if err != nil {
			return err
		}
		out = sandbox(row)
		return nil
	})
	return out, err
}

// List selects sandboxes of a team.
type List struct {
	States       []wrenn.State     // none is all
	Metadata     map[string]string // all of these pairs
	Template     string            // its name, with a tag or with any; "" is all
	StartedAfter time.Time         // or at that time; zero is all
	OldestFirst  bool
	Limit        int    // of a page
	Page         string // next of the page before; "" is the first
}

// Sandboxes returns a page, newest first unless the other order is wanted, and the
// token of the next page, "" after the last. They have no Env. Rows that are made between two pages do
// not shift them.
func (s *Store) Sandboxes(ctx context.Context, team wrenn.TeamID, l List) (page []wrenn.Sandbox, next string, err error) {
	if len(l.States) == 0 {
		l.States = wrenn.States()
	}
	from, err := parseCursor(l.Page, l.OldestFirst)
	if err != nil {
		return nil, "", err
	}
	err = s.call(ctx, "list sandboxes", func(ctx context.Context) error {
		rows, err := s.listed(ctx, team, l, from)
		if err != nil {
			return err
		}
		if len(rows) > l.Limit {
			rows = rows[:l.Limit]
			last := rows[l.Limit-1]
			next = cursor{at: last.CreatedAt, id: last.ID}.String()
		}
		page = sandboxes(rows)
		return nil
	})
	return page, next, err
}

func (s *Store) listed(ctx context.Context, team wrenn.TeamID, l List, from cursor) ([]dbsqlc.Sandbox, error) {
	states, metadata, size := texts(l.States), orEmpty(l.Metadata), clampInt32(l.Limit+1)
	if l.OldestFirst {
		rows, err := s.queries.ListSandboxesOldestFirst(ctx, dbsqlc.ListSandboxesOldestFirstParams{
			TeamID: string(team), States: states, Metadata: metadata, Template: l.Template, StartedAfter: l.StartedAfter,
			AfterAt: from.at, AfterID: from.id, PageSize: size,
		})
		return withoutEnv(rows), err
	}
	rows, err := s.queries.ListSandboxes(ctx, dbsqlc.ListSandboxesParams{
		TeamID: string(team), States: states, Metadata: metadata, Template: l.Template, StartedAfter: l.StartedAfter,
		BeforeAt: from.at, BeforeID: from.id, PageSize: size,
	})
	return withoutEnv(rows), err
}

// withoutEnv returns rows of a query that does not read env, which may be large.
func withoutEnv[R dbsqlc.ListSandboxesRow | dbsqlc.ListSandboxesOldestFirstRow | dbsqlc.HostRowsRow | dbsqlc.SandboxesToMoveRow](rows []R) []dbsqlc.Sandbox {
	out := make([]dbsqlc.Sandbox, len(rows))
	for i, row := range rows {
		out[i] = dbsqlc.Sandbox(row)
	}
	return out
}

// DropEnded deletes the rows of at most so many sandboxes, with their events, which
// ended before the retention, and returns how many it deleted.
func (s *Store) DropEnded(ctx context.Context, retention time.Duration, most int) (n int, err error) {
	err = s.inTx(ctx, "delete the rows of ended sandboxes", func(ctx context.Context, q *dbsqlc.Queries) error {
		if err := q.BeginRetention(ctx); err != nil {
			return err
		}
		rows, err := q.DropEndedSandboxes(ctx, retention.Seconds(), clampInt32(most))
		n = int(rows)
		return err
	})
	return n, err
}

// CountSandboxes returns how many sandboxes all pages have together. It is for
// states in which a team has few.
func (s *Store) CountSandboxes(ctx context.Context, team wrenn.TeamID, l List) (int, error) {
	var n int64
	err := s.call(ctx, "count sandboxes", func(ctx context.Context) (err error) {
		n, err = s.queries.CountSandboxes(ctx, dbsqlc.CountSandboxesParams{
			TeamID: string(team), States: texts(l.States), Metadata: orEmpty(l.Metadata), Template: l.Template, StartedAfter: l.StartedAfter,
		})
		return err
	})
	return int(n), err
}

// TeamOnHosts returns how many sandboxes of a team that have not ended are on each host.
func (s *Store) TeamOnHosts(ctx context.Context, team wrenn.TeamID) (map[wrenn.HostID]int, error) {
	out := map[wrenn.HostID]int{}
	err := s.call(ctx, "count the team's sandboxes on each host", func(ctx context.Context) error {
		rows, err := s.queries.TeamOnHosts(ctx, string(team))
		for _, row := range rows {
			out[wrenn.HostID(row.HostID)] = int(row.Sandboxes)
		}
		return err
	})
	return out, err
}

// HostRows returns the rows of a host that have not ended, and those of the
// sandboxes that the host reports, without Env.
func (s *Store) HostRows(ctx context.Context, host wrenn.HostID, seen []wrenn.SandboxID) ([]wrenn.Sandbox, error) {
	var out []wrenn.Sandbox
	err := s.call(ctx, "read a host's rows", func(ctx context.Context) error {
		rows, err := s.queries.HostRows(ctx, string(host), texts(seen))
		out = sandboxes(withoutEnv(rows))
		return err
	})
	return out, err
}

// Abandoned returns the rows in transition, and their hosts, on which no process
// works any more: their worker is not connected now, see RegisterWorker, or has
// released them. Rows younger than settled are left out: a call to the host may
// still be on its way, and a worker that lost its connection may come back. It returns
// 10,000 at most; the others follow once those are settled.
func (s *Store) Abandoned(ctx context.Context, settled time.Duration) (map[wrenn.SandboxID]wrenn.HostID, error) {
	const atMost = 10_000
	out := map[wrenn.SandboxID]wrenn.HostID{}
	err := s.call(ctx, "look for abandoned sandboxes", func(ctx context.Context) error {
		rows, err := s.queries.AbandonedSandboxes(ctx, settled.Seconds(), atMost)
		for _, row := range rows {
			out[wrenn.SandboxID(row.ID)] = wrenn.HostID(row.HostID)
		}
		return err
	})
	return out, err
}

// Release records that this process does not work on the rows any more, in
// whichever states they are. It does not change their versions.
func (s *Store) Release(ctx context.Context, ids []wrenn.SandboxID) error {
	return s.call(ctx, "release sandboxes", func(ctx context.Context) error { return s.queries.ReleaseSandboxes(ctx, &s.worker, texts(ids)) })
}

// Now returns the time of the database's clock, which dates rows.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	var now time.Time
	err := s.call(ctx, "ask for the time", func(ctx context.Context) (err error) {
		now, err = s.queries.Now(ctx)
		return err
	})
	return now, err
}

// Touch records when sandboxes were last used. It does not change their versions.
func (s *Store) Touch(ctx context.Context, used map[wrenn.SandboxID]time.Time) error {
	ids, times := columns(used)
	return s.call(ctx, "record use", func(ctx context.Context) error { return s.queries.TouchSandboxes(ctx, ids, times) })
}

// Event is a change of a sandbox.
type Event struct {
	Version       int64 // the row's after it
	From, To      wrenn.State
	Host          wrenn.HostID
	Actor, Reason string
	At            time.Time
}

// SandboxesCreatedBy returns the team's sandboxes that have not ended and whose
// first event has that actor.
func (s *Store) SandboxesCreatedBy(ctx context.Context, team wrenn.TeamID, actor string) ([]wrenn.SandboxID, error) {
	var out []wrenn.SandboxID
	err := s.call(ctx, "find the sandboxes of a creator", func(ctx context.Context) error {
		ids, err := s.queries.SandboxesCreatedBy(ctx, string(team), actor)
		for _, id := range ids {
			out = append(out, wrenn.SandboxID(id))
		}
		return err
	})
	return out, err
}

// Events returns the changes of a sandbox, in order.
func (s *Store) Events(ctx context.Context, id wrenn.SandboxID) ([]Event, error) {
	var out []Event
	err := s.call(ctx, "read events", func(ctx context.Context) error {
		rows, err := s.queries.SandboxEvents(ctx, string(id))
		for _, r := range rows {
			out = append(out, Event{
				Version: r.Version, From: wrenn.State(r.FromState), To: wrenn.State(r.ToState),
				Host: wrenn.HostID(r.HostID), Actor: r.Actor, Reason: r.Reason, At: r.At.UTC(),
			})
		}
		return err
	})
	return out, err
}

func sandboxes(rows []dbsqlc.Sandbox) []wrenn.Sandbox {
	out := make([]wrenn.Sandbox, len(rows))
	for i, row := range rows {
		out[i] = *sandbox(row)
	}
	return out
}

// unresponsive returns the condition of a row, nil for none.
func unresponsive(r *dbsqlc.Sandbox) *wrenn.Unresponsive {
	if r.UnresponsiveSince == nil {
		return nil
	}
	return &wrenn.Unresponsive{Since: r.UnresponsiveSince.UTC(), Reason: r.UnresponsiveReason}
}

func sandbox(r dbsqlc.Sandbox) *wrenn.Sandbox {
	return &wrenn.Sandbox{
		ID: wrenn.SandboxID(r.ID), Team: wrenn.TeamID(r.TeamID), Host: wrenn.HostID(r.HostID),
		State: wrenn.State(r.State), Reason: r.Reason, Parent: wrenn.SandboxID(r.ParentID), Metadata: r.Metadata, Requires: orNoMap(r.Requires),
		SandboxSpec: wrenn.SandboxSpec{
			Template: r.Template, Build: wrenn.BuildID(r.Generation), DiskMiB: int(r.DiskMB),
			Size:       wrenn.Size{VCPUs: int(r.VCPUs), MemoryMiB: int(r.MemoryMB)},
			EndOfLife:  wrenn.EndOfLife{Timeout: time.Duration(r.TimeoutSec) * time.Second, OnTimeout: wrenn.OnTimeout(r.OnTimeout), Absolute: r.AbsoluteTimeout},
			AutoResume: r.AutoResume, Env: r.Env, Network: r.Network, Epoch: wrenn.Epoch(r.Epoch), CheckpointEvery: time.Duration(r.CheckpointEverySec) * time.Second, Volumes: append([]wrenn.VolumeMount(nil), r.Volumes...), // none is nil
		},
		CreatedAt: r.CreatedAt.UTC(), StartedAt: orZero(r.StartedAt), LastActiveAt: orZero(r.LastActiveAt), EndsAt: orZero(r.EndsAt),
		UpdatedAt: r.UpdatedAt.UTC(), Version: r.Version,
		EndCause: wrenn.EndCause(r.EndCause), Unresponsive: unresponsive(&r),
		Stored: wrenn.Stored{At: orZero(r.StoredAt), Key: r.StoredKey}, Moving: r.Moving, MovedKey: r.MovedKey,
		OnHostLoss: wrenn.OnHostLoss(r.OnHostLoss),
		Newest:     wrenn.StoredCheckpoint{ID: wrenn.CheckpointID(r.CheckpointID), Stored: wrenn.Stored{At: orZero(r.CheckpointAt), Key: r.CheckpointKey}},
	}
}

// cursor is the position before a page: the row with this time and id.
type cursor struct {
	at time.Time
	id string
}

// farFuture is before every row in a list that is newest first.
var farFuture = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(c.at.UnixMicro(), 36) + "." + c.id))
}

func parseCursor(page string, oldestFirst bool) (cursor, error) {
	if page == "" && oldestFirst {
		return cursor{}, nil
	}
	if page == "" {
		return cursor{at: farFuture}, nil
	}
	invalid := wrenn.Errorf(wrenn.Invalid, "invalid page: use the token that the previous page returned")
	text, err := base64.RawURLEncoding.DecodeString(page)
	if err != nil {
		return cursor{}, invalid
	}
	at, id, found := strings.Cut(string(text), ".")
	micros, err := strconv.ParseInt(at, 36, 64)
	if err != nil || !found || micros < 0 || micros > farFuture.UnixMicro() {
		return cursor{}, invalid
	}
	if _, err := wrenn.ParseSandboxID(id); err != nil {
		return cursor{}, invalid
	}
	return cursor{at: time.UnixMicro(micros), id: id}, nil
}

// columns splits a map for unnest.
func columns[K ~string](m map[K]time.Time) (ids []string, times []time.Time) {
	for id, at := range m {
		ids, times = append(ids, string(id)), append(times, at)
	}
	return ids, times
}

func texts[T ~string](in []T) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = string(v)
	}
	return out
}

// seconds rounds up: a timeout is never shorter than requested.
func seconds(d time.Duration) int32 {
	return clampInt32(int(min((d+time.Second-1)/time.Second, math.MaxInt32)))
}

func clampInt32(n int) int32 { return int32(max(math.MinInt32, min(n, math.MaxInt32))) }

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// orNoMap is the inverse of orEmpty.
func orNoMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}

// orNil is the inverse of orZero.
func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
