package service

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/postgres"
)

// Defaults of a sandbox, as the API documents them.
const (
	defaultTimeout = 300 * time.Second
	minMemoryMB    = 64 // less does not boot
)

// CreateSandbox is a sandbox to make. Zero values are the defaults: template
// "base", 1 vCPU, 512 MB, 300 s, then destroyed. A Timeout below zero is never.
type CreateSandbox struct {
	Template        string
	VCPUs, MemoryMB int
	Timeout         time.Duration // without use until OnTimeout happens
	OnTimeout       wrenn.OnTimeout
	AutoResume      bool
	Metadata        map[string]string
	Env             map[string]string // of every command
}

// CreateSandbox returns when the sandbox runs. When ctx ends before, what was
// made is undone. Exhausted says what is full: the team's limit or the hosts.
func (s *Service) CreateSandbox(ctx context.Context, c Caller, req CreateSandbox) (*wrenn.Sandbox, error) {
	from, err := s.resolve(ctx, c, req.Template)
	if err != nil {
		return nil, err
	}
	if err := from.shape(&req); err != nil {
		return nil, err
	}
	sb, err := s.describe(c, req)
	if err != nil {
		return nil, err
	}
	sb.Template, sb.Generation = from.name.String(), from.generation
	s.fleet.ready(ctx)
	if _, err := s.fleet.pick(sb.MemoryMiB, nil, from.host); err != nil {
		return nil, err // no row for what cannot be
	}
	row, err := s.store.CreateSandbox(ctx, sb, s.cfg.Limits.ofTeam(), c.actor())
	if err != nil {
		s.leaveIfWritten(ctx, &sb, err)
		return nil, err
	}
	return s.place(ctx, row, from.host, c.actor())
}

// describe is the sandbox that the request means.
func (s *Service) describe(c Caller, req CreateSandbox) (wrenn.Sandbox, error) {
	sb := wrenn.Sandbox{
		ID: wrenn.NewSandboxID(), Team: c.Team,
		Metadata: req.Metadata,
		SandboxSpec: wrenn.SandboxSpec{
			Size:       wrenn.Size{VCPUs: req.VCPUs, MemoryMiB: req.MemoryMB}.OrDefault(),
			EndOfLife:  wrenn.EndOfLife{OnTimeout: cmp.Or(req.OnTimeout, wrenn.DestroyOnTimeout)},
			AutoResume: req.AutoResume, Env: req.Env,
		},
	}
	var err error
	if sb.Timeout, err = s.timeout(req.Timeout, defaultTimeout); err != nil {
		return sb, err
	}
	if sb.OnTimeout != wrenn.DestroyOnTimeout && sb.OnTimeout != wrenn.PauseOnTimeout {
		return sb, wrenn.Errorf(wrenn.Invalid, "%.20q is not what can happen at the timeout: %s or %s", string(sb.OnTimeout), wrenn.DestroyOnTimeout, wrenn.PauseOnTimeout)
	}
	return sb, cmp.Or(s.checkSize(sb.VCPUs, sb.MemoryMiB), checkMetadata(sb.Metadata), checkEnv(sb.Env))
}

// timeout is a request's, in the words of a row: below zero is never, zero is
// the default, and refused where there is none.
func (s *Service) timeout(d, byDefault time.Duration) (time.Duration, error) {
	switch {
	case d < 0:
		return 0, nil
	case d > s.cfg.Limits.Timeout:
		return 0, wrenn.Errorf(wrenn.Invalid, "a timeout is at most %v, or below zero for none", s.cfg.Limits.Timeout)
	case d > 0:
		return d, nil
	case byDefault > 0:
		return byDefault, nil
	}
	return 0, wrenn.Errorf(wrenn.Invalid, "a timeout is more than 0 s, or below zero for none")
}

// place finds a host for a new row, or takes only, and makes the sandbox there. A
// host that says it is full has made nothing, so the next one is asked.
func (s *Service) place(ctx context.Context, sb *wrenn.Sandbox, only wrenn.HostID, actor string) (*wrenn.Sandbox, error) {
	full := map[wrenn.HostID]bool{}
	var refused error
	for {
		m, err := s.fleet.pick(sb.MemoryMiB, full, only)
		if err != nil {
			return nil, s.abandon(ctx, sb, actor, cmp.Or(refused, err)) // a host's own words say more
		}
		moved, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Starting, Host: m.id, Actor: actor})
		if err != nil {
			return nil, s.abandon(ctx, sb, actor, err)
		}
		sb = moved
		done := m.reserve(1, sb.MemoryMiB)
		err = m.client.Create(ctx, sb.ID, sb.SandboxSpec)
		if err != nil {
			done(0)
		} else {
			done(1)
		}
		switch {
		case err == nil:
			return s.started(ctx, sb, actor)
		case wrenn.CodeOf(err) == wrenn.Exhausted && len(full) < len(s.fleet.members):
			full[m.id], refused = true, err
		default:
			return nil, s.abandon(ctx, sb, actor, err)
		}
	}
}

// started writes that the sandbox runs. When that cannot be, its caller will
// not hear of it, and it is undone.
func (s *Service) started(ctx context.Context, sb *wrenn.Sandbox, actor string) (*wrenn.Sandbox, error) {
	ctx, cancel := own(ctx, rowTimeout)
	defer cancel()
	now, err := s.arrive(ctx, sb, wrenn.Running, actor)
	if err == nil {
		s.usedBoxes.add(sb.ID)
		return now, nil
	}
	return nil, s.abandon(ctx, sb, actor, err)
}

// abandon undoes a sandbox that did not come to run because of cause, which
// it returns. What it cannot do now is the reconciler's.
func (s *Service) abandon(ctx context.Context, sb *wrenn.Sandbox, actor string, cause error) error {
	reason := reasonOf(cause)
	if ctx.Err() != nil {
		reason = "who asked for it went away while it started"
	}
	ctx, cancel := own(ctx, s.cfg.Deadlines.Destroy)
	defer cancel()
	if err := s.undo(ctx, sb, postgres.Move{To: wrenn.Failed, Reason: reason, Actor: actor}); err != nil {
		s.leave(ctx, "a sandbox that did not start is not undone yet", sb, err)
	}
	return cause
}

// undo destroys a sandbox that was being made, and ends its row. When somebody
// else changed the row meanwhile it is his to end.
func (s *Service) undo(ctx context.Context, sb *wrenn.Sandbox, end postgres.Move) error {
	stopping := end
	stopping.To = wrenn.Stopping
	moved, moveErr := s.store.MoveSandbox(ctx, sb, stopping)
	if err := s.destroy(ctx, sb); err != nil || moveErr != nil {
		return errors.Join(moveErr, err)
	}
	_, err := s.store.MoveSandbox(ctx, moved, end)
	if errors.Is(err, postgres.ErrConflict) {
		return nil // the reconciler was first
	}
	return err
}

// reasonOf is an error for the row: what a user may read, without causes.
func reasonOf(err error) string {
	return messageOf(err, "its host could not start it")
}

// messageOf is what an error says to a user, or other, as a database takes it:
// the words may be a guest's.
func messageOf(err error, other string) string {
	const most = 4 << 10
	e, ok := errors.AsType[*wrenn.Error](err)
	if !ok || e.Code == wrenn.Internal {
		return other
	}
	text := strings.ToValidUTF8(e.Message[:min(len(e.Message), most)], "") // the cut may be in a character
	return strings.ReplaceAll(text, "\x00", "?")
}
