package service

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/reconcile"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/wake"
)

const (
	casAttempts = 5                // of one request at a row that other requests change all the time
	rowTimeout  = 15 * time.Second // of the changes of a row around a call to a host
)

// core is what the use cases share: the rows, the hosts, and the reconciler,
// which finishes what a use case cannot.
type core struct {
	limits     Limits
	deadlines  hostclient.Deadlines
	store      *postgres.Store
	hosts      *fleet
	reconciler *reconcile.Loop
	released   *releaseQueue
	used       *uses[wrenn.SandboxID]
	tokens     *accessTokens
	vault      *vault.Vault
	watches    watches
	log        *slog.Logger
}

// detach returns a context that does not end when the caller hangs up: for a
// call to a host that may take as long as call, and the changes of rows around it.
func detach(ctx context.Context, call time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), call+2*rowTimeout)
}

// locate returns a sandbox of the caller's team and the client of its host. It
// is a FailedPrecondition unless the row's state is one of want.
func (c *core) locate(ctx context.Context, caller Caller, id wrenn.SandboxID, want ...wrenn.State) (*wrenn.Sandbox, *hostclient.Client, error) {
	sb, err := c.find(ctx, caller, id, want...)
	if err != nil {
		return nil, nil, err
	}
	host, err := c.hosts.clientOf(sb)
	return sb, host, err
}

// moveWait bounds how long a request for a sandbox that runs waits while it is moved to
// another host. Then the request does with it what it does with a paused one.
const moveWait = 2 * time.Minute

// find is locate without the host. A sandbox that is being moved runs again in a moment:
// who wants it running waits for that.
func (c *core) find(ctx context.Context, caller Caller, id wrenn.SandboxID, want ...wrenn.State) (*wrenn.Sandbox, error) {
	for {
		sb, err := c.store.TeamSandbox(ctx, caller.Team, id)
		if err != nil {
			return nil, err
		}
		if sb.Moving && sb.State != wrenn.Running && slices.Contains(want, wrenn.Running) && time.Since(sb.UpdatedAt) < moveWait {
			if !wake.Sleep(ctx, pollRow) {
				return nil, &wrenn.Error{Code: wrenn.Unavailable, Message: "the sandbox is being moved to another host; try again in a moment", Err: context.Cause(ctx)}
			}
			continue
		}
		if !slices.Contains(want, sb.State) {
			return nil, wrongState(sb, want[0])
		}
		return sb, nil
	}
}

// wrongState is the error of a request that needs the sandbox in another state.
func wrongState(sb *wrenn.Sandbox, want wrenn.State) error {
	switch {
	case canBeRestored(sb):
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %[1]s is failed: %[2]s; to continue it from its newest stored checkpoint: wrenn checkpoint restore %[1]s %[3]s", sb.ID, sb.Reason, sb.Newest.ID)
	case sb.State.Ended() && sb.Reason != "":
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: %s", sb.ID, sb.State, sb.Reason)
	case sb.State.Ended():
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: create another", sb.ID, sb.State)
	case sb.State == wrenn.Paused:
		return wrenn.NotWhilePaused(sb.ID)
	case sb.State.InTransition():
		return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s: wait until it is %s", sb.ID, sb.State, want)
	}
	return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is %s and must be %s", sb.ID, sb.State, want)
}

// destroy ends the sandbox on its host, if it has one.
func (c *core) destroy(ctx context.Context, sb *wrenn.Sandbox) error {
	if sb.Host == "" {
		return nil
	}
	host, err := c.hosts.clientOf(sb)
	if err != nil {
		return err
	}
	return host.Destroy(ctx, sb.ID)
}

// writeState moves a row to the state that its host has reached. The reconciler
// may have written it first. ErrConflict when the sandbox is on another host since.
func (c *core) writeState(ctx context.Context, sb *wrenn.Sandbox, to wrenn.State, actor string) (*wrenn.Sandbox, error) {
	moved, err := c.store.MoveSandbox(ctx, sb, postgres.Move{To: to, Actor: actor})
	if !errors.Is(err, postgres.ErrConflict) {
		return moved, err
	}
	now, err := c.store.Sandbox(ctx, sb.ID)
	if err != nil {
		return nil, err
	}
	if now.Epoch != sb.Epoch { // the call was late, and has changed an old copy
		c.reconciler.Notify(sb.Host)
		return nil, postgres.Conflict()
	}
	timedOut := sb.State == wrenn.Starting && now.State == wrenn.Paused // already
	if now.State != to && !timedOut {
		return nil, wrongState(now, to)
	}
	return now, nil
}

// markLostIfNotFound ends the row of a sandbox that its host does not have: then
// err, the host's answer, is NotFound. It returns the error for the user.
// Another err is returned as it is.
func (c *core) markLostIfNotFound(ctx context.Context, sb *wrenn.Sandbox, err error) error {
	if wrenn.CodeOf(err) != wrenn.NotFound {
		return err
	}
	if _, err := c.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Failed, Reason: reconcile.ReasonLost, Cause: wrenn.CauseLost, Actor: actorSystem}); err != nil {
		c.handToReconciler(ctx, "mark a lost sandbox", sb, err)
	}
	return lostError(sb)
}

// lostError is the error of a request for a sandbox that its host does not have.
func lostError(sb *wrenn.Sandbox) error {
	return wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s is gone: %s", sb.ID, reconcile.ReasonLost)
}

// handToReconciler gives up the work on a sandbox, in whichever state its row
// is, because of err. The reconciler finishes it.
func (c *core) handToReconciler(ctx context.Context, step string, sb *wrenn.Sandbox, err error) {
	c.released.add(sb.ID)
	c.log.LogAttrs(ctx, slog.LevelWarn, "handed sandbox to the reconciler", slog.String("step", step),
		slog.String("sandbox", string(sb.ID)), slog.String("host", string(sb.Host)), slog.Any("err", err))
}

// handToReconcilerIfUnsure does so if the row may have changed although err, the
// result of changing it, is an error: the answer was lost, or ctx ended before it came.
func (c *core) handToReconcilerIfUnsure(ctx context.Context, sb *wrenn.Sandbox, err error) {
	if errors.Is(err, postgres.ErrConflict) {
		return
	}
	switch wrenn.CodeOf(err) {
	case wrenn.Unavailable, wrenn.Canceled, wrenn.DeadlineExceeded, wrenn.Internal:
		c.handToReconciler(ctx, "change the row", sb, err)
	}
}
