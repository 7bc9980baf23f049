package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"wrenn/internal/guest/freeze"
)

const (
	// freezeLimit bounds how long processes may take to stop. It is milliseconds
	// unless one hangs in the kernel; an emulated machine with a fork bomb takes seconds.
	freezeLimit = 10 * time.Second
	// leaseTick and leaseTicks are how long what is frozen stays so when nobody
	// says anything: the host has died on the way. It must be longer than a host
	// gives a restored machine until its /init (sandbox.Config.ReadyTimeout, 60 s), or a copy would go on
	// as somebody else. See freezer.watch for why it is counted.
	leaseTick  = time.Second
	leaseTicks = 120
)

// freezer stops and continues the user's programs.
type freezer struct {
	groups interface {
		Freeze(ctx context.Context) error
		Thaw() error
	}
	hold func(context.Context) (release func(), err error) // process.Service.Hold
	sync func() error
	log  *slog.Logger

	turn    chan struct{} // holds one: who has it may change the following
	release func()        // not nil while programs are frozen
	unwatch func()        // ends the watchdog; nil when there is none
}

func newFreezer(groups *freeze.Groups, hold func(context.Context) (func(), error), sync func() error, log *slog.Logger) *freezer {
	return &freezer{groups: groups, hold: hold, sync: sync, log: log, turn: make(chan struct{}, 1)}
}

func (f *freezer) take(ctx context.Context) error {
	select {
	case f.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *freezer) give() { <-f.turn }

// freeze stops all programs and writes what they have written to the disk. When
// it fails they run. Freezing what is frozen begins the lease anew.
func (f *freezer) freeze(ctx context.Context) (err error) {
	// Most of the writing while programs still run: they stand still for the rest alone.
	if err := f.syncWithin(ctx); err != nil {
		return err
	}
	if err := f.take(ctx); err != nil {
		return err
	}
	defer f.give()
	f.endLease()
	defer func() {
		if err != nil {
			err = errors.Join(err, f.thawNow())
			return
		}
		f.beginLease(leaseTicks)
	}()
	if f.release == nil {
		if err := f.stop(ctx); err != nil {
			return err
		}
	}
	return f.syncWithin(ctx)
}

// stop freezes the groups, with no program half started.
func (f *freezer) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	release, err := f.hold(ctx)
	if err != nil {
		return fmt.Errorf("wait until no program is being started: %w", err)
	}
	if err := f.groups.Freeze(ctx); err != nil {
		release()
		return err
	}
	f.release = release
	return nil
}

// syncWithin gives up waiting at ctx's end: the kernel cannot be stopped.
func (f *freezer) syncWithin(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- f.sync() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("sync the root file system: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sync the root file system: %w", context.Cause(ctx))
	}
}

// thaw lets the programs go on. Nothing frozen is no error.
func (f *freezer) thaw(ctx context.Context) error {
	if err := f.take(ctx); err != nil {
		return err
	}
	defer f.give()
	f.endLease()
	return f.thawNow()
}

// thawNow is thaw by who has the turn.
func (f *freezer) thawNow() error {
	if f.release == nil {
		return nil
	}
	if err := f.groups.Thaw(); err != nil {
		f.beginLease(1) // tried again
		return fmt.Errorf("thaw: %w", err)
	}
	f.release()
	f.release = nil
	return nil
}

// close thaws whatever is frozen.
func (f *freezer) close() {
	if err := f.thaw(context.Background()); err != nil {
		f.log.Error("programs stay frozen", slog.Any("error", err))
	}
}

// beginLease starts the watchdog. The caller has the turn, and no watchdog runs.
func (f *freezer) beginLease(ticks int) {
	stop := make(chan struct{})
	f.unwatch = func() { close(stop) }
	go f.watch(stop, ticks)
}

func (f *freezer) endLease() {
	if f.unwatch != nil {
		f.unwatch()
		f.unwatch = nil
	}
}

// watch thaws after so many ticks, unless stop is closed before.
//
// It counts ticks instead of asking for the time, because the time lies to a
// machine that was away: the monotonic clock stands still in a restored guest under
// emulation, and jumps ahead by days where the VMM advances kvm-clock. A ticker drops
// what it could not deliver, so a jump of any length counts as one tick, and
// what is counted is the time in which this guest's CPUs ran.
func (f *freezer) watch(stop <-chan struct{}, ticks int) {
	ticker := time.NewTicker(leaseTick)
	defer ticker.Stop()
	for range ticks {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
	}
	select {
	case <-stop:
		return
	case f.turn <- struct{}{}:
	}
	defer f.give()
	select {
	case <-stop: // who had the turn knows better
		return
	default:
	}
	f.unwatch = nil
	f.log.Warn("nobody thawed the frozen programs: they go on", slog.Duration("after", time.Duration(ticks)*leaseTick))
	if err := f.thawNow(); err != nil {
		f.log.Error("watchdog", slog.Any("error", err))
	}
}

// serveFreeze is POST /freeze: no body, 204 when everything stands still.
func (a *Agent) serveFreeze(w http.ResponseWriter, r *http.Request) {
	if err := a.freezer.freeze(r.Context()); err != nil {
		a.log.ErrorContext(r.Context(), "freeze", slog.Any("error", err))
		answerError(w, freezeStatus(err), fmt.Sprintf("freeze: %v", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveThaw is POST /thaw: the host's time, if it says it, is set first.
func (a *Agent) serveThaw(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	var req struct {
		Timestamp *time.Time `json:"timestamp"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit)).Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		answerError(w, http.StatusBadRequest, fmt.Sprintf("thaw: %v", err))
		return
	}
	// Programs go on whatever the clock says: they are the same as before.
	err := errors.Join(a.follow(req.Timestamp, arrived), a.freezer.thaw(r.Context()))
	if err != nil {
		a.log.ErrorContext(r.Context(), "thaw", slog.Any("error", err))
		answerError(w, http.StatusInternalServerError, fmt.Sprintf("thaw: %v", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// freezeStatus is what envdclient makes its codes of.
func freezeStatus(err error) int {
	_, stuck := errors.AsType[*freeze.StuckError](err)
	switch {
	case errors.Is(err, freeze.ErrUnsupported):
		return http.StatusConflict
	case stuck, errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	default:
		return http.StatusInternalServerError
	}
}
