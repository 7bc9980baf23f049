package guest

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"wrenn.dev/internal/testkit"
)

// TestDaemon: the clock's daemon is started once, a freeze waits for it, and a
// failure is no reason not to freeze.
func TestDaemon(t *testing.T) {
	t.Parallel()
	starts, finish := make(chan struct{}, 2), make(chan error)
	d := &daemon{log: slog.New(slog.DiscardHandler), done: make(chan struct{}), start: func(context.Context) error {
		starts <- struct{}{}
		return <-finish
	}}
	testkit.Must(t, d.wait(t.Context())) // it is not started before the host has set up the guest
	d.begin()
	d.begin()
	<-starts
	ended, end := context.WithCancel(t.Context())
	end()
	if err := d.wait(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("while it starts: wait() = %v", err)
	}
	finish <- errors.New("no chronyd")
	testkit.Must(t, d.wait(t.Context()))
	d.close()
	if len(starts) != 0 {
		t.Error("it was started twice")
	}
}

// TestDaemonClose: the end of the agent ends a start that hangs, and prevents later ones.
func TestDaemonClose(t *testing.T) {
	t.Parallel()
	hangs := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, begin := range map[string]bool{"while it starts": true, "before": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &daemon{log: slog.New(slog.DiscardHandler), done: make(chan struct{}), start: hangs}
			if begin {
				d.begin()
			}
			d.close()
			d.begin()
			testkit.Must(t, d.wait(t.Context()))
		})
	}
}
