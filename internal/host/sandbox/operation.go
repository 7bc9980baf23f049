package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
)

// locked is a sandbox whose operation lock is held. Its methods need that.
type locked struct{ *Sandbox }

// lock acquires the operation lock of a sandbox that has one of the statuses; any
// if there are none. Unlock it. Unavailable when the caller means another epoch, see WithEpoch.
func (s *Sandbox) lock(ctx context.Context, statuses ...Status) (locked, error) {
	if err := s.op.Lock(ctx); err != nil {
		return locked{}, err
	}
	err := s.journal.checkEpoch(ctx, s.id)
	if info := s.Info(); err == nil && len(statuses) > 0 && !slices.Contains(statuses, info.Status) {
		err = info.refusal()
	}
	if err != nil {
		s.op.Unlock()
		return locked{}, err
	}
	return locked{s}, nil
}

// tryLock acquires the operation lock if it is free.
func (s *Sandbox) tryLock() (locked, bool) { return locked{s}, s.op.TryLock() }

func (s locked) unlock() { s.op.Unlock() }

// operation is something that is done to a sandbox under its operation lock.
type operation struct {
	name  string // in errors; "" leaves them as they are
	trace string // in traces; "" for none
	via   Status // while it is at work; "" keeps the status
	back  Status // when it fails; "" keeps the status
	to    Status // when it succeeds; "" keeps the status
	// finish, if set, is the last part of an operation that has succeeded already:
	// its error is returned, and the status is to all the same.
	finish func(context.Context) error
}

// operationTimeout bounds every operation, whatever its caller allows: neither a
// guest nor a VMM that trickles may hold the operation lock for longer. A launch by
// emulation takes up to 5 minutes, as does a pause that writes 16 GiB to a slow disk.
const operationTimeout = 10 * time.Minute

// perform runs work as the operation, which the status allows. When work fails, or the sandbox is to be destroyed,
// what work has added to undo is run. Work's context ends when the sandbox is to be
// destroyed.
func (s locked) perform(ctx context.Context, op operation, work func(ctx context.Context, undo *rollback.Stack) error) (err error) {
	began := time.Now()
	if now := s.Info().Status; op.via != "" && !now.can(op.via) { // a mistake in this package
		s.logRefused(now, op.via)
		return wrenn.Errorf(wrenn.Internal, "%s of sandbox %s: internal error of the host agent, whose log has the details", op.name, s.id)
	}
	ctx, done := s.cancel.context(s.context(ctx))
	defer done()
	ctx, cancel := context.WithTimeoutCause(ctx, operationTimeout, wrenn.Errorf(wrenn.DeadlineExceeded, "it took longer than %s", operationTimeout))
	defer cancel()
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Run(ctx)) }()
	if op.via != "" {
		s.state.set(op.via, "")
	}
	if op.back != "" {
		undo.AddFunc(func() { s.state.set(op.back, "") })
	}
	if err := work(ctx, &undo); err != nil {
		return s.explain(op.name, err)
	}
	undo.Keep()
	if op.finish != nil {
		err = op.finish(ctx)
	}
	if op.to != "" {
		s.state.arrive(op.to)
	}
	if op.trace != "" {
		s.trace(ctx, op.trace, time.Since(began))
	}
	return err
}

// explain adds to err what was being done, and for the user what to do about it.
// NotFound is that of Manager.Get alone, and means that the sandbox is lost: one
// from a guest, or of a snapshot that the sandbox needs, becomes FailedPrecondition.
func (s *Sandbox) explain(name string, err error) error {
	if name == "" {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = &wrenn.Error{Code: wrenn.Exhausted, Message: "this host's disk is full; the sandbox is as before", Err: err}
	}
	if e, ok := errors.AsType[*wrenn.Error](err); ok && e.Code == wrenn.NotFound {
		err = &wrenn.Error{Code: wrenn.FailedPrecondition, Message: name + ": " + e.Message, Err: err}
	}
	return fmt.Errorf("%s of sandbox %s: %w", name, s.id, err)
}

// detach returns a context for what must be done although the caller may be gone.
func detach(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), detachedTimeout)
}

// detachedTimeout bounds what must be done although the caller may be gone.
const detachedTimeout = 30 * time.Second
