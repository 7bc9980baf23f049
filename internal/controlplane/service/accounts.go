package service

import (
	"context"
	"log/slog"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/wake"
)

const (
	// usageEvery is how often the use of teams is counted, by all replicas together.
	usageEvery = time.Minute
	// usageDefault is how much of the past is shown by default, and maxUsageSteps bounds
	// the steps of one answer.
	usageDefault, maxUsageSteps = 7 * 24 * time.Hour, 1000
)

// Accounts are what teams use and may use.
type Accounts struct{ *core }

// UsageQuery says which use Usage returns.
type UsageQuery struct {
	Team     string    // its name; "" is the caller's. Another's needs the scope operator
	From, To time.Time // zero: the last 7 days
	Step     string    // hour or day, in UTC; "" is hour
}

// UsedStep is what a team used in an hour or a day, or in all of them.
type UsedStep = postgres.Usage

// Usage is what a team used over time.
type Usage struct {
	From, To time.Time // begin steps
	Step     string
	Counted  postgres.UsageProgress
	Total    UsedStep
	Steps    []UsedStep // all, oldest first
}

// Usage returns what a team used.
func (s *Accounts) Usage(ctx context.Context, c Caller, q UsageQuery) (*Usage, error) {
	team := c.Team
	var err error
	if q.Team != "" {
		if !c.Scopes.Allow(wrenn.ScopeOperator) {
			return nil, wrenn.Errorf(wrenn.PermissionDenied, "to see the use of any team needs a key with the scope operator: leave team out for your own")
		}
		if team, err = s.store.FindTeam(ctx, q.Team); err != nil {
			return nil, err
		}
	}
	out, length, err := q.steps(time.Now())
	if err != nil {
		return nil, err
	}
	if out.Counted, err = s.store.UsageProgress(ctx); err != nil {
		return nil, err
	}
	used, err := s.store.TeamUsage(ctx, team, out.From, out.To, out.Step)
	if err != nil {
		return nil, err
	}
	out.Total.Begins = out.From
	for at := out.From; at.Before(out.To); at = at.Add(length) {
		step := UsedStep{Begins: at}
		if len(used) > 0 && used[0].Begins.Equal(at) {
			step, used = used[0], used[1:]
		}
		out.Total.Add(&step)
		out.Steps = append(out.Steps, step)
	}
	return out, nil
}

// steps returns the time of the answer, in whole steps, and their length.
func (q *UsageQuery) steps(now time.Time) (*Usage, time.Duration, error) {
	length := time.Hour
	switch q.Step {
	case "", "hour":
		q.Step = "hour"
	case "day":
		length = 24 * time.Hour
	default:
		return nil, 0, wrenn.Errorf(wrenn.Invalid, "the step %.20q is not hour or day", q.Step)
	}
	if q.To.IsZero() {
		q.To = now
	}
	if q.From.IsZero() {
		q.From = q.To.Add(-usageDefault)
	}
	if !q.From.Before(q.To) {
		return nil, 0, wrenn.Errorf(wrenn.Invalid, "from must be before to")
	}
	from, to := q.From.UTC().Truncate(length), q.To.UTC().Truncate(length)
	if to.Before(q.To) {
		to = to.Add(length)
	}
	if to.Sub(from) > maxUsageSteps*length {
		return nil, 0, wrenn.Errorf(wrenn.Invalid, "use is shown for at most %d steps at a time: ask for less time, or for days", maxUsageSteps)
	}
	return &Usage{From: from, To: to, Step: q.Step}, length, nil
}

// usageCounter counts the use of teams. All replicas do, in turn: an hour counts once,
// see postgres.Store.CountUsage.
type usageCounter struct {
	store *postgres.Store
	log   *slog.Logger
}

func (u *usageCounter) run(ctx context.Context) error {
	for {
		behind, err := u.count(ctx)
		if err != nil && ctx.Err() == nil {
			u.log.LogAttrs(ctx, slog.LevelWarn, "cannot count the use of teams; will retry", slog.Any("err", err))
		}
		pause := usageEvery
		if behind {
			pause = retentionPause
		}
		if !wake.Sleep(ctx, pause) {
			return nil
		}
	}
}

// count counts unless another replica did lately. It reports whether there is more to do at once.
func (u *usageCounter) count(ctx context.Context) (behind bool, err error) {
	now, err := u.store.Now(ctx)
	if err != nil {
		return false, err
	}
	progress, err := u.store.UsageProgress(ctx)
	if err != nil {
		return false, err
	}
	if age := now.Sub(progress.Until); age >= 0 && age < usageEvery/2 {
		return false, nil
	}
	return u.store.CountUsage(ctx, now)
}
