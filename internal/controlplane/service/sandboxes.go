package service

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/reconcile"
)

const (
	defaultPage = 100
	maxPage     = 500
)

// Sandboxes are the use cases of a sandbox's life. Another team's sandbox is
// NotFound.
type Sandboxes struct{ *core }

// ListSandboxes selects sandboxes. Empty fields select all.
type ListSandboxes struct {
	States       []wrenn.State
	Metadata     map[string]string // all of these pairs
	Template     string            // its name, with a tag or with any
	StartedAfter time.Time         // or at that time
	OldestFirst  bool
	Limit        int    // of a page; default 100, at most 500
	Page         string // what the page before returned
}

// ListSandboxes returns a page, newest first unless the other order is wanted, and
// the token of the next page, "" after the last. Sandboxes that have ended are
// included.
func (s *Sandboxes) ListSandboxes(ctx context.Context, c Caller, req ListSandboxes) (page []wrenn.Sandbox, next string, err error) {
	for _, state := range req.States {
		if !slices.Contains(wrenn.States(), state) {
			return nil, "", wrenn.Errorf(wrenn.Invalid, "invalid state %.20q: use one of %v", string(state), wrenn.States())
		}
	}
	if err := checkMetadata(req.Metadata); err != nil {
		return nil, "", err
	}
	if !wrenn.IsText(req.Template) {
		return nil, "", wrenn.Errorf(wrenn.Invalid, "a template's name is text")
	}
	if req.Limit < 0 || req.Limit > maxPage {
		return nil, "", wrenn.Errorf(wrenn.Invalid, "a page has 1 to %d sandboxes", maxPage)
	}
	if req.Limit == 0 {
		req.Limit = defaultPage
	}
	return s.store.Sandboxes(ctx, c.Team, req.selection())
}

// selection is the request as the store has it.
func (l *ListSandboxes) selection() postgres.List {
	return postgres.List{
		States:   slices.Compact(slices.Sorted(slices.Values(l.States))), // a repeated state would repeat its rows
		Metadata: l.Metadata, Template: l.Template, StartedAfter: l.StartedAfter, OldestFirst: l.OldestFirst, Limit: l.Limit, Page: l.Page,
	}
}

// CountSandboxes returns how many sandboxes of a valid request all pages have
// together. The request names states in which a sandbox has not ended.
func (s *Sandboxes) CountSandboxes(ctx context.Context, c Caller, req ListSandboxes) (int, error) {
	return s.store.CountSandboxes(ctx, c.Team, req.selection())
}

// Sandbox returns one of the team's sandboxes, ended ones included.
func (s *Sandboxes) Sandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.store.TeamSandbox(ctx, c.Team, id)
}

// DeleteSandbox ends a sandbox. It succeeds when the desired state is written: a
// host that cannot be reached now is asked again by the reconciler. Twice is
// allowed.
func (s *Sandboxes) DeleteSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) error {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return err
	}
	ctx, cancel := detach(ctx, s.deadlines.Destroy)
	defer cancel()
	row, err := s.moveToStopping(ctx, sb, c.actor())
	if err != nil {
		s.handToReconcilerIfUnsure(ctx, sb, err)
		return err
	}
	if sb = row; sb.State.Ended() {
		return nil
	}
	if err := s.destroy(ctx, sb); err != nil {
		s.handToReconciler(ctx, "destroy on the host", sb, err)
		return nil
	}
	_, err = s.store.MoveSandbox(ctx, sb, postgres.Move{To: reconcile.EndOf(sb), Reason: sb.Reason, Actor: c.actor()})
	if err != nil {
		s.handToReconciler(ctx, "write the end", sb, err) // or another request has written it
	}
	return nil
}

// moveToStopping moves a row to stopping, also while other requests change it.
// One that is stopping or has ended is returned as it is.
func (s *Sandboxes) moveToStopping(ctx context.Context, sb *wrenn.Sandbox, actor string) (*wrenn.Sandbox, error) {
	for attempt := 1; ; attempt++ {
		if sb.State.Ended() || sb.State == wrenn.Stopping {
			return sb, nil
		}
		moved, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Stopping, Cause: wrenn.CauseUser, Actor: actor})
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

// PauseSandbox writes a running sandbox to its host's disk and frees its
// memory. When it fails the sandbox continues to run. A paused one stays paused.
func (s *Sandboxes) PauseSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.PauseSandboxBy(ctx, c, id, wrenn.PauseOptions{})
}

// PauseSandboxBy is PauseSandbox as the options say.
func (s *Sandboxes) PauseSandboxBy(ctx context.Context, c Caller, id wrenn.SandboxID, options wrenn.PauseOptions) (*wrenn.Sandbox, error) {
	if err := options.Check(); err != nil {
		return nil, err
	}
	sb, err := s.transition(ctx, c, id, pausing(options))
	if err != nil || !options.Durable {
		return sb, err
	}
	return s.awaitStored(ctx, sb)
}

// ResumeSandbox continues a paused sandbox. When it fails it stays paused:
// Exhausted when its memory is more than the team may have, or does not fit on
// its host. A running one stays running.
func (s *Sandboxes) ResumeSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.transition(ctx, c, id, resuming)
}

// BootSandbox is ResumeSandbox by a boot from the sandbox's disk: its programs, and
// what they have not written, are lost.
func (s *Sandboxes) BootSandbox(ctx context.Context, c Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
	return s.transition(ctx, c, id, booting)
}

// SetTimeout sets the timeout of a running sandbox, from now; below zero is
// forever.
func (s *Sandboxes) SetTimeout(ctx context.Context, c Caller, id wrenn.SandboxID, d time.Duration) (*wrenn.Sandbox, error) {
	return s.setTimeout(ctx, c, id, d, wrenn.Running)
}

// SetNextTimeout sets the timeout that a paused sandbox has when it runs again.
func (s *Sandboxes) SetNextTimeout(ctx context.Context, c Caller, id wrenn.SandboxID, d time.Duration) (*wrenn.Sandbox, error) {
	return s.setTimeout(ctx, c, id, d, wrenn.Paused)
}

// MaxTimeout is the longest timeout that a sandbox may have.
func (s *Sandboxes) MaxTimeout() time.Duration { return s.limits.Timeout }

func (s *Sandboxes) setTimeout(ctx context.Context, c Caller, id wrenn.SandboxID, d time.Duration, in wrenn.State) (*wrenn.Sandbox, error) {
	timeout, err := s.limits.timeout(d, 0)
	if err != nil {
		return nil, err
	}
	ctx, cancel := detach(ctx, s.deadlines.Extend)
	defer cancel()
	for attempt := 1; ; attempt++ {
		sb, host, err := s.locate(ctx, c, id, in)
		if err != nil {
			return nil, err
		}
		changed, err := s.store.SetTimeout(ctx, sb, timeout, c.actor())
		switch {
		case errors.Is(err, postgres.ErrConflict) && attempt < casAttempts:
			continue
		case err != nil:
			return nil, err
		}
		err = host.Extend(ctx, id, timeout)
		if wrenn.CodeOf(err) == wrenn.NotFound {
			s.reconciler.Notify(sb.Host)
			return nil, lostError(sb)
		}
		return changed, err // on another error the reconciler tells the host again
	}
}

// Logs reads the console of a sandbox, also of one that has ended, and with
// Follow continues with new output until it ends. It does not count as use. The
// caller closes it. NotFound when the console is not kept.
func (s *Sandboxes) Logs(ctx context.Context, c Caller, id wrenn.SandboxID, query wrenn.ConsoleQuery) (io.ReadCloser, error) {
	sb, err := s.store.TeamSandbox(ctx, c.Team, id)
	if err != nil {
		return nil, err
	}
	if sb.Host == "" { // no output yet
		return io.NopCloser(strings.NewReader("")), nil
	}
	host, err := s.hosts.clientOf(sb)
	if err != nil {
		return nil, err
	}
	return host.Console(ctx, id, query)
}
