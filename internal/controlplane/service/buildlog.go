package service

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/wake"
)

const (
	keptLines     = 2000        // of a build's log
	flushLogEvery = time.Second // also how soon a build finds out that it was deleted
)

// buildLog collects the log of a build and writes it in batches.
type buildLog struct {
	*core
	id   wrenn.BuildID
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex // guards what follows
	pending []string
	count   int64  // of lines, including pending
	step    string // that the build is at
}

// followBuild returns the log of a build, which calls deleted when the build's
// row does not want it any more. The caller ends the log.
func followBuild(c *core, id wrenn.BuildID, deleted context.CancelCauseFunc) *buildLog {
	ctx, stop := context.WithCancel(context.Background()) // until end, which comes after the build's own context has ended
	l := &buildLog{core: c, id: id, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for wake.Sleep(ctx, flushLogEvery) {
			if err := l.flush(ctx); errors.Is(err, postgres.ErrConflict) {
				deleted(errBuildDeleted)
				return
			}
		}
	}()
	return l
}

// event records an event of the build.
func (l *buildLog) event(ev wrenn.BuildEvent) {
	if ev.Step == "" {
		l.add(ev.Line)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.step = ev.Step
}

// at returns the step that the build is at, "" before the first.
func (l *buildLog) at() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.step
}

// add appends a line. Lines that the database does not accept in time are
// bounded: the oldest are dropped.
func (l *buildLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	l.pending = lastLines(append(l.pending, line))
}

// flush writes the pending lines. If that fails they stay pending.
func (l *buildLog) flush(ctx context.Context) error {
	l.mu.Lock()
	lines, first, count := l.pending, l.count-int64(len(l.pending)), l.count
	l.pending = nil
	l.mu.Unlock()
	err := l.store.AppendLines(ctx, l.id, first, lines, count-keptLines)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.pending = lastLines(append(lines, l.pending...))
	}
	return err
}

// lastLines returns the last keptLines of lines, in the same memory.
func lastLines(lines []string) []string {
	if over := len(lines) - keptLines; over > 0 {
		return append(lines[:0], lines[over:]...)
	}
	return lines
}

// end writes the rest.
func (l *buildLog) end() {
	l.stop()
	<-l.done
	ctx, cancel := context.WithTimeout(context.Background(), rowTimeout)
	defer cancel()
	if err := l.flush(ctx); err != nil && !errors.Is(err, postgres.ErrConflict) {
		l.log.LogAttrs(ctx, slog.LevelWarn, "lost the last lines of a build's log", slog.String("build", string(l.id)), slog.Any("err", err))
	}
}
