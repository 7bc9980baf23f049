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

	"wrenn.dev/internal/guest/freeze"
)

const (
	// freezeLimit bounds how long processes may take to stop. It is milliseconds
	// unless one hangs in the kernel; an emulated machine with a fork bomb takes seconds.
	freezeLimit = 10 * time.Second
	// leaseTick and leaseTicks are how long programs stay frozen when the host does
	// not call again, because it has died. It must be longer than a host gives a
	// restored machine until its /init (sandbox.Config.ReadyTimeout, 60 s), or a copy would
	// continue with its original's identity. See freezer.watch for why it is counted.
	leaseTick  = time.Second
	leaseTicks = 120
)

// freezer stops and continues the users' programs.
type freezer struct {
	groups interface {
		Freeze(ctx context.Context) error
		Thaw() error
	}
	hold func(context.Context) (release func(), err error) // process.Service.Hold
	sync func() error
	log  *slog.Logger

	lock    chan struct{} // size 1; full while a goroutine may change the following
	release func()        // not nil while programs are frozen
	unwatch func()        // ends the watchdog; nil when there is none
}

func newFreezer(groups *freeze.Groups, hold func(context.Context) (func(), error), sync func() error, log *slog.Logger) *freezer {
	return &freezer{groups: groups, hold: hold, sync: sync, log: log, lock: make(chan struct{}, 1)}
}

func (f *freezer) take(ctx context.Context) error {
	select {
	case f.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *freezer) give() { <-f.lock }

// freeze stops all programs and writes their files to the disk. After an error
// they run. Freezing what is frozen renews the lease.
func (f *freezer) freeze(ctx context.Context) (err error) {
	// Most is written while programs still run, so that they are stopped for a short time.
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

// stop freezes the groups while no start of a program is under way.
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

// syncWithin waits for sync until ctx ends; the kernel goes on with it.
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

// thaw continues the programs. Thawing what runs is no error.
func (f *freezer) thaw(ctx context.Context) error {
	if err := f.take(ctx); err != nil {
		return err
	}
	defer f.give()
	f.endLease()
	return f.thawNow()
}

// thawNow is thaw for callers that hold the lock.
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

// close thaws what is frozen.
func (f *freezer) close() {
	if err := f.thaw(context.Background()); err != nil {
		f.log.Error("programs stay frozen", slog.Any("err", err))
	}
}

// beginLease starts the watchdog. The caller must hold the lock, and no watchdog may run.
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

// watch thaws after some ticks, unless stop is closed before.
//
// It counts ticks and does not read the clock, which is wrong in a machine that
// was stopped: the monotonic clock stands still in a restored guest under emulation, and
// jumps ahead by days where the VMM advances kvm-clock. A ticker drops ticks that it
// could not deliver, so a jump of any length counts as one tick, and the sum is the
// time for which this guest's CPUs ran.
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
	case f.lock <- struct{}{}:
	}
	defer f.give()
	select {
	case <-stop: // the goroutine that held the lock ended the lease
		return
	default:
	}
	f.unwatch = nil
	f.log.Warn("the host did not thaw the frozen programs: they continue", slog.Duration("after", time.Duration(ticks)*leaseTick))
	if err := f.thawNow(); err != nil {
		f.log.Error("the watchdog cannot thaw", slog.Any("err", err))
	}
}

// serveFreeze is POST /freeze: no body, 204 when all programs are frozen.
func (a *Agent) serveFreeze(w http.ResponseWriter, r *http.Request) {
	err := a.daemon.wait(r.Context())
	if err == nil {
		err = a.freezer.freeze(r.Context())
	}
	if err != nil {
		a.log.ErrorContext(r.Context(), "cannot freeze", slog.Any("err", err))
		answerError(w, freezeStatus(err), fmt.Sprintf("freeze: %v", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveThaw is POST /thaw. It sets the clock first, if the body has the host's time.
func (a *Agent) serveThaw(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	var req struct {
		Timestamp *time.Time `json:"timestamp"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit)).Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		answerError(w, http.StatusBadRequest, fmt.Sprintf("thaw: %v", err))
		return
	}
	// Programs continue even if the clock cannot be set: the sandbox is the same as before.
	err := errors.Join(a.follow(req.Timestamp, arrived), a.freezer.thaw(r.Context()))
	if err != nil {
		a.log.ErrorContext(r.Context(), "thaw", slog.Any("err", err))
		answerError(w, http.StatusInternalServerError, fmt.Sprintf("thaw: %v", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// freezeStatus returns the HTTP status, which envdclient turns into its codes.
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
