package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"wrenn/internal/envdclient"
	"wrenn/internal/host/sandbox/journal"
)

// rest is the last step of a machine that is made ahead. Its guest is somebody
// by now, whom nobody else ever is, and does once what the next whom it becomes will do
// first: under emulation the first time takes ten times as long. Then its
// processes are frozen until that one's /init, and the vCPUs stop.
func (b *body) rest(ctx context.Context) error {
	ctx, cancel := b.patience(ctx)
	defer cancel()
	res, err := b.guest.Exec(ctx, envdclient.Command{Path: "true", User: "root"})
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("true: %s: %.300q", res.Status, res.Stderr)
	}
	if err != nil {
		return err
	}
	if err := b.freeze(ctx); err != nil {
		return err
	}
	b.s.crash("guest frozen")
	b.guest.Close() // nobody would answer its keepalives
	return b.machine.Pause(ctx)
}

// watchRest removes a machine of the stock that ends by itself. The caller has
// the turn.
func (s *Sandbox) watchRest(ctx context.Context) {
	s.whenGone(ctx, s.spare, func(ctx context.Context, cause error) {
		if s.Info().Status != statusPooled {
			return
		}
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "a machine in stock ended by itself", slog.String("sandbox", string(s.id)), slog.Any("err", cause))
		if err := s.destroy(ctx); err != nil {
			s.m.cfg.Log.LogAttrs(ctx, slog.LevelError, "its rest cannot be removed yet", slog.String("sandbox", string(s.id)), slog.Any("err", err))
		}
	})
}

// buildFromStock makes the sandbox's spare of a machine in stock, and says
// whether it did: there may be none. One that does not work costs the time that
// it is waited for, and no more.
func (s *Sandbox) buildFromStock(ctx context.Context, from origin) (bool, error) {
	k := kind{from.snapshot, s.request.Shape}
	if s.isStock() || !s.m.stock.isWanted(k) {
		return false, nil
	}
	t := s.m.take(k)
	if t == nil {
		s.m.stock.misses.Add(1)
		return false, nil
	}
	began := time.Now()
	err := s.inherit(ctx, t)
	t.unlock()
	if err == nil {
		err = s.begin(ctx)
	}
	if err == nil {
		s.m.stock.hits.Add(1)
		s.trace("handover", began)
		return true, nil
	}
	if ctx.Err() != nil {
		return false, fmt.Errorf("sandbox %s: handover: %w", s.id, err)
	}
	s.m.stock.misses.Add(1)
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "a machine in stock is of no use; making another", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	return false, s.discardSpare(ctx)
}

// inherit makes what is in stock the sandbox's spare. Its note in the sandbox's
// journal is what makes it so: whoever finds it in both takes it for the
// sandbox's. The caller has both turns.
func (s *Sandbox) inherit(ctx context.Context, t *Sandbox) error {
	old := t.spare
	b := &body{s: s, note: old.note, slot: old.slot, machine: old.machine}
	b.note.Start = s.journal.Starts + 1
	err := s.commit("handover", func(j *journal.Journal) {
		j.Starts = b.note.Start
		j.Other = new(b.note)
	})
	if err != nil {
		return err
	}
	old.unwatch()
	s.spare, t.spare = b, nil
	s.console.Attach(b.machine)
	defer t.leave(ctx)
	return os.Rename(old.disk(), b.disk()) // the VMM has it open
}

// leave removes what is left in stock of a machine that is somebody's now.
func (t *Sandbox) leave(ctx context.Context) {
	t.m.crash("disk moved")
	if err := os.RemoveAll(t.dir()); err != nil {
		t.m.cfg.Log.LogAttrs(ctx, slog.LevelError, "the rest of a machine that was in stock cannot be removed yet", slog.String("sandbox", string(t.id)), slog.Any("err", err))
		t.set(StatusStopping, "")
		t.retryLater()
		return
	}
	t.set(statusRemoved, "")
	t.m.forget(t)
	t.m.crash("stock left")
}

// begin lets the machine from stock run, and tells its guest who it is.
func (s *Sandbox) begin(ctx context.Context) error {
	if err := s.spare.machine.Resume(ctx); err != nil {
		return err
	}
	s.crash("machine resumed")
	return s.spare.waitReady(ctx)
}
