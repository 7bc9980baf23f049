package service

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/hostclient"
	"wrenn/internal/controlplane/postgres"
	"wrenn/internal/controlplane/reconcile"
)

const (
	defaultLimit = 100
	maxLimit     = 500
	casAttempts  = 5 // a row that changes more often than this under a request has more important visitors
	rowTimeout   = 15 * time.Second
)

// ListSandboxes selects sandboxes. Empty fields select all.
type ListSandboxes struct {
	States   []wrenn.State
	Metadata map[string]string // all of these pairs
	Limit    int               // of a page; default 100, at most 500
	Page     string            // what the page before returned
}

// ListSandboxes returns a page, newest first, and where the next begins, ""
// after the last. Sandboxes that have ended are in it.
func (s *Service) ListSandboxes(ctx context.Context, c Caller, req ListSandboxes) (page []wrenn.Sandbox, next string, err error) {
	for _, state := range req.States {
		if !slices.Contains(wrenn.States(), state) {
			return nil, "", wrenn.Errorf(wrenn.Invalid, "%.20q is no state: they are %v", string(state), wrenn.States())
		}
	}
	if err := checkMetadata(req.Metadata); err != nil {
		return nil, "", err
	}
	if req.Limit < 0 || req.Limit > maxLimit {
		return nil, "", wrenn.Errorf(wrenn.Invalid, "a page holds 1 to %d sandboxes", maxLimit)
	}
	if req.Limit == 0 {
		req.Limit = defaultLimit
	}
	states := slices.Compact(slices.Sorted(slices.Values(req.States))) // each once, or its rows came twice
	return s.store.Sandboxes(ctx, c.Team, postgres.List{States: states, Metadata: req.Metadata, Limit: req.Limit, Page: req.Page})
}

// Sandbox returns one of the team's sandboxes, ended ones included.
func (s *Service) Sandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.store.TeamSandbox(ctx, c.Team, id)
}

// own returns the context of work that a caller who hangs up must not cut,
// for a call to a host and the rows around it.
func own(ctx context.Context, call time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), call+2*rowTimeout)
}

// wrongState says why a request cannot be done now.
func wrongState(sb *wrenn.Sandbox, want wrenn.State) error {
	switch {
	case sb.State.Ended() && sb.Reason != "":
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: %s", sb.ID, sb.State, sb.Reason)
	case sb.State == wrenn.Paused:
		return wrenn.NotWhilePaused(sb.ID)
	}
	return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s and would have to be %s", sb.ID, sb.State, want)
}

// errLost is a host that does not know what a row says it has.
func errLost(sb *wrenn.Sandbox) error {
	return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is gone: %s", sb.ID, reconcile.ReasonLost)
}

// DeleteSandbox ends a sandbox. The wish is what counts: a host that cannot
// be reached now is asked again by the reconciler. One that has ended is no
// error.
func (s *Service) DeleteSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) error {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return err
	}
	ctx, cancel := own(ctx, s.cfg.Deadlines.Destroy)
	defer cancel()
	row, err := s.wishGone(ctx, sb, c.actor())
	if err != nil {
		s.leaveIfWritten(ctx, sb, err)
		return err
	}
	if sb = row; sb.State.Ended() {
		return nil
	}
	if err := s.destroy(ctx, sb); err != nil {
		s.leave(ctx, "the host did not destroy a sandbox yet", sb, err)
		return nil
	}
	_, err = s.store.MoveSandbox(ctx, sb, postgres.Move{To: reconcile.EndOf(sb), Reason: sb.Reason, Actor: c.actor()})
	if err != nil {
		s.leave(ctx, "the end of a sandbox is not written yet", sb, err) // by whoever was first, or by the reconciler
	}
	return nil
}

// wishGone moves a row to stopping, whatever others do to it meanwhile. One
// that stops or has ended is returned as it is.
func (s *Service) wishGone(ctx context.Context, sb *wrenn.Sandbox, actor string) (*wrenn.Sandbox, error) {
	for attempt := 1; ; attempt++ {
		if sb.State.Ended() || sb.State == wrenn.Stopping {
			return sb, nil
		}
		moved, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Stopping, Actor: actor})
		if err == nil {
			return moved, nil
		}
		if !errors.Is(err, postgres.ErrConflict) || attempt == casAttempts {
			return nil, err
		}
		if sb, err = s.store.Sandbox(ctx, sb.ID); err != nil {
			return nil, err
		}
	}
}

// destroy ends the sandbox on its host, if it has one.
func (s *Service) destroy(ctx context.Context, sb *wrenn.Sandbox) error {
	if sb.Host == "" {
		return nil
	}
	host, err := s.fleet.host(sb.Host)
	if err != nil {
		return err
	}
	return host.Destroy(ctx, sb.ID)
}

// turn is a way between running and paused.
type turn struct {
	from, via, to wrenn.State
	call          func(*hostclient.Client, context.Context, wrenn.SandboxID) error
}

var (
	pausing  = turn{wrenn.Running, wrenn.Pausing, wrenn.Paused, (*hostclient.Client).Pause}
	resuming = turn{wrenn.Paused, wrenn.Resuming, wrenn.Running, (*hostclient.Client).Resume}
)

// PauseSandbox writes a running sandbox to its host's disk and frees its
// memory. When it fails the sandbox runs on. A paused one stays paused.
func (s *Service) PauseSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.turn(ctx, c, id, pausing)
}

// ResumeSandbox lets a paused sandbox go on. When it fails it stays paused:
// Exhausted when its memory is more than the team may have, or does not fit on
// its host. A running one stays running.
func (s *Service) ResumeSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.turn(ctx, c, id, resuming)
}

func (s *Service) turn(ctx context.Context, c Caller, id wrenn.SandboxID, t turn) (*wrenn.Sandbox, error) {
	for attempt := 1; ; attempt++ {
		sb, host, err := s.at(ctx, c, id, t.from, t.to)
		if err != nil {
			return nil, err
		}
		do := s.makeTurn
		if sb.State == t.to {
			do = s.affirm
		}
		now, err := do(ctx, c, sb, host, t)
		if !errors.Is(err, postgres.ErrConflict) || attempt == casAttempts {
			return now, err
		}
	}
}

// affirm is for a row that says that the turn was made. A host pauses
// sandboxes and wakes them by itself, and the row learns of it a little later: the host is asked.
func (s *Service) affirm(ctx context.Context, _ Caller, sb *wrenn.Sandbox, host *hostclient.Client, t turn) (*wrenn.Sandbox, error) {
	if err := t.call(host, ctx, sb.ID); err != nil {
		return nil, s.orLost(ctx, sb, err)
	}
	now, err := s.store.Sandbox(ctx, sb.ID)
	if err == nil && now.State != t.to { // the row learned of it now
		return nil, postgres.ErrConflict
	}
	return now, err
}

// makeTurn moves the row, asks the host, and moves the row again. ErrConflict
// when somebody else moved the row first.
func (s *Service) makeTurn(ctx context.Context, c Caller, sb *wrenn.Sandbox, host *hostclient.Client, t turn) (*wrenn.Sandbox, error) {
	ctx, cancel := own(ctx, s.cfg.Deadlines.Pause) // begun is finished, whoever still listens
	defer cancel()
	moved, err := s.beginTurn(ctx, c, sb, t)
	if err != nil {
		s.leaveIfWritten(ctx, sb, err)
		return nil, err
	}
	sb = moved
	if err = t.call(host, ctx, sb.ID); err == nil {
		now, err := s.arrive(ctx, sb, t.to, c.actor())
		s.leaveIfWritten(ctx, sb, err)
		return now, err
	}
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil, s.orLost(ctx, sb, err)
	}
	// Back, even when the host may have done it: the reconciler sees what it did.
	if _, moveErr := s.store.MoveSandbox(ctx, sb, postgres.Move{To: t.from, Actor: c.actor()}); moveErr != nil {
		s.leave(ctx, "a sandbox stays between two states for a while", sb, moveErr)
	}
	s.loop.Kick(sb.Host)
	return nil, err
}

func (s *Service) beginTurn(ctx context.Context, c Caller, sb *wrenn.Sandbox, t turn) (*wrenn.Sandbox, error) {
	if t.to == wrenn.Running {
		return s.store.ResumeSandbox(ctx, sb, s.cfg.Limits.ofTeam(), c.actor())
	}
	return s.store.MoveSandbox(ctx, sb, postgres.Move{To: t.via, Actor: c.actor()})
}

// at returns a sandbox of the team in one of these states, and its host.
func (s *Service) at(ctx context.Context, c Caller, id wrenn.SandboxID, want ...wrenn.State) (*wrenn.Sandbox, *hostclient.Client, error) {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return nil, nil, err
	}
	if !slices.Contains(want, sb.State) {
		return nil, nil, wrongState(sb, want[0])
	}
	host, err := s.fleet.host(sb.Host)
	return sb, host, err
}

// arrive moves a row to where its host is. The reconciler may have been first.
func (s *Service) arrive(ctx context.Context, sb *wrenn.Sandbox, to wrenn.State, actor string) (*wrenn.Sandbox, error) {
	moved, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: to, Actor: actor})
	if !errors.Is(err, postgres.ErrConflict) {
		return moved, err
	}
	now, err := s.store.Sandbox(ctx, sb.ID)
	if err != nil {
		return nil, err
	}
	timeUp := sb.State == wrenn.Starting && now.State == wrenn.Paused // already
	if now.State != to && !timeUp {
		return nil, wrongState(now, to)
	}
	return now, nil
}

// orLost ends the row of a sandbox that its host does not know, as its error
// says, and returns that in words of ours; another error is returned as it is.
func (s *Service) orLost(ctx context.Context, sb *wrenn.Sandbox, err error) error {
	if wrenn.CodeOf(err) != wrenn.NotFound {
		return err
	}
	if _, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Failed, Reason: reconcile.ReasonLost, Actor: "system"}); err != nil {
		s.leave(ctx, "a sandbox that is lost is not written yet", sb, err)
	}
	return errLost(sb)
}

// SetTimeout sets how long a running sandbox lives without use, from now;
// below zero it is for ever.
func (s *Service) SetTimeout(ctx context.Context, c Caller, id wrenn.SandboxID, d time.Duration) (*wrenn.Sandbox, error) {
	timeout, err := s.timeout(d, 0)
	if err != nil {
		return nil, err
	}
	sb, host, err := s.at(ctx, c, id, wrenn.Running)
	if err != nil {
		return nil, err
	}
	ctx, cancel := own(ctx, s.cfg.Deadlines.Extend)
	defer cancel()
	for attempt := 1; ; attempt++ {
		changed, err := s.store.SetTimeout(ctx, sb, timeout, c.actor())
		if err == nil {
			sb = changed
			break
		}
		if !errors.Is(err, postgres.ErrConflict) || attempt == casAttempts {
			return nil, err
		}
		if sb, host, err = s.at(ctx, c, id, wrenn.Running); err != nil {
			return nil, err
		}
	}
	err = host.Extend(ctx, id, timeout)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		s.loop.Kick(sb.Host)
		return nil, errLost(sb)
	}
	return sb, err // the reconciler tells the host again
}

// leave gives a sandbox to the reconciler, in whichever state its row is,
// because what was to be done with it cannot be done now.
func (s *Service) leave(ctx context.Context, what string, sb *wrenn.Sandbox, err error) {
	s.left.add(sb.ID)
	s.log.LogAttrs(ctx, slog.LevelWarn, "left to the reconciler", slog.String("what", what),
		slog.String("sandbox", string(sb.ID)), slog.String("host", string(sb.Host)), slog.Any("error", err))
}

// leaveIfWritten leaves a sandbox whose row may have been changed although err
// says that it was not: the answer got lost, or nobody waited for it.
func (s *Service) leaveIfWritten(ctx context.Context, sb *wrenn.Sandbox, err error) {
	if errors.Is(err, postgres.ErrConflict) {
		return
	}
	switch wrenn.CodeOf(err) {
	case wrenn.Unavailable, wrenn.Canceled, wrenn.DeadlineExceeded, wrenn.Internal:
		s.leave(ctx, "a change of a row may be written or not", sb, err)
	}
}
