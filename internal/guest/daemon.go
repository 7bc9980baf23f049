package guest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// daemonLimit bounds the start of the clock's daemon. It is tenths of a second, on
// a busy emulated machine with a busy guest some seconds.
const daemonLimit = time.Minute

// daemon starts the clock's daemon once the host has set up the guest, since no
// caller waits for it then.
type daemon struct {
	start func(context.Context) error
	log   *slog.Logger

	mu   sync.Mutex // guards stop
	stop context.CancelFunc
	done chan struct{} // closed when the daemon is ready, or failed; only after begin
}

// begin starts the daemon in the background. Only the first call does something.
func (d *daemon) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stop != nil {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), daemonLimit)
	d.stop = stop
	go func() {
		defer close(d.done)
		defer stop()
		if err := d.start(ctx); err != nil {
			d.log.Warn("the clock is right only after a start or a restore", slog.Any("err", err))
		}
	}()
}

// wait returns when no start of the daemon is under way: copies of the guest would
// all have to finish it.
func (d *daemon) wait(ctx context.Context) error {
	d.mu.Lock()
	begun := d.stop != nil
	d.mu.Unlock()
	if !begun {
		return nil
	}
	select {
	case <-d.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until the clock's daemon has started: %w", context.Cause(ctx))
	}
}

// close ends a start that is under way. Call it once.
func (d *daemon) close() {
	d.mu.Lock()
	stop := d.stop
	d.stop = func() {} // no start after this
	d.mu.Unlock()
	if stop == nil {
		close(d.done)
		return
	}
	stop()
	<-d.done
}
