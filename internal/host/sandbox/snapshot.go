package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/rollback"
	"wrenn/internal/snapshot"
	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

// thawTimeout bounds how long a guest that may be frozen is waited for.
const thawTimeout = 10 * time.Second

// newSnapshotID returns an id that no snapshot has.
func newSnapshotID() string { return "s" + strings.ToLower(rand.Text()) }

// Snapshot keeps the sandbox's memory and disk as they are now under a new
// name, from which Restore makes sandboxes; the sandbox goes on. The snapshot
// is whole or not there, and stays until RemoveSnapshot. AlreadyExists when the name is taken.
func (s *Sandbox) Snapshot(ctx context.Context, name string) error { return s.keep(ctx, name, nil) }

// keep is Snapshot with a note, for KeptSnapshot.
func (s *Sandbox) keep(ctx context.Context, name string, note []byte) error {
	if err := snapshot.CheckID(name); err != nil {
		return err
	}
	if s.m.snapshots.Has(name) {
		return wrenn.Errorf(wrenn.AlreadyExists, "snapshot %s is there already", name)
	}
	if err := s.lockAs(ctx, StatusRunning); err != nil {
		return err
	}
	defer s.unlock()
	_, release, err := s.capture(ctx, snapshot.Manifest{ID: name, Pinned: true, Metadata: note})
	if err != nil {
		return err
	}
	release()
	return nil
}

// RemoveSnapshot deletes a snapshot that Snapshot made. It is gone when the
// last sandbox is that needs it. NotFound when there is none.
func (m *Manager) RemoveSnapshot(ctx context.Context, name string) error {
	if err := m.snapshots.Unpin(name); err != nil {
		return err
	}
	m.unstock(ctx, name)
	return m.Collect(ctx)
}

// capture takes a snapshot of the running sandbox, which goes on, and is held
// until release is called. The caller has the turn.
func (s *Sandbox) capture(ctx context.Context, man snapshot.Manifest) (_ *snapshot.Snapshot, release func(), err error) {
	ctx, done := s.interruptible(ctx)
	defer done()
	staged, err := s.m.snapshots.Stage()
	if err != nil {
		return nil, nil, s.explain("snapshot", err)
	}
	var undo rollback.Stack
	defer undo.Run(ctx)
	undo.Add(staged.Discard)
	var goOn rollback.Stack
	err = s.standStill(ctx, staged, &goOn)
	if err := errors.Join(err, goOn.Run(ctx)); err != nil {
		return nil, nil, s.explain("snapshot", err)
	}
	s.used()
	return s.publish(ctx, staged, man)
}

// publish makes what was staged of the sandbox a snapshot.
func (s *Sandbox) publish(ctx context.Context, staged *snapshot.Staged, man snapshot.Manifest) (*snapshot.Snapshot, func(), error) {
	man.Created, man.Driver, man.Guest = time.Now().UTC(), s.m.cfg.Driver.Name(), s.body.note.Guest
	man.VCPUs, man.MemoryMiB = s.request.Shape.VCPUs, s.request.Shape.MemoryMiB
	snap, release, err := staged.Publish(ctx, man)
	if err != nil {
		return nil, nil, s.explain("snapshot", err)
	}
	s.crash("snapshot published")
	return snap, release, nil
}

// standStill stops the sandbox and writes its disk and machine into staged. It
// goes on when goOn runs, whether standStill failed or not. What can be done
// before it stops is done before.
func (s *Sandbox) standStill(ctx context.Context, staged *snapshot.Staged, goOn *rollback.Stack) error {
	// The memory at most, and it may well be less: if that cannot be had, what is written decides.
	if err := s.m.cfg.Store.Ensure(ctx, int64(s.request.Shape.MemoryMiB)<<20); err != nil && wrenn.CodeOf(err) != wrenn.Exhausted {
		return err
	}
	if machine, ok := s.body.machine.(vm.SnapshotPreparer); ok {
		if err := machine.PrepareSnapshot(ctx, staged.Machine()); err != nil {
			return err
		}
		s.crash("snapshot prepared")
	}
	if err := s.commit("frozen", func(j *journal.Journal) { j.Frozen = true }); err != nil {
		return err
	}
	goOn.Add(s.thaw)
	if err := s.body.freeze(ctx); err != nil {
		return err
	}
	s.crash("guest frozen")
	began := time.Now()
	goOn.Add(s.letRun) // first: a Pause whose answer does not come may have worked
	if err := s.body.machine.Pause(ctx); err != nil {
		return err
	}
	s.crash("machine paused")
	if _, err := storage.Clone(ctx, staged.Disk(), s.body.disk(), 0o600); err != nil {
		return err
	}
	s.crash("disk cloned")
	if err := s.save(ctx, staged.Machine()); err != nil {
		return err
	}
	s.crash("machine saved")
	s.trace("still", began) // how long the guest is kept from running by this
	return nil
}

// freeze stops the guest's processes with all that they wrote on the disk. A
// guest that cannot is synced: its disk alone would boot as well, but its
// processes see a restored machine before its clock is set.
func (b *body) freeze(ctx context.Context) error {
	err := b.guest.Freeze(ctx)
	if wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		return err
	}
	b.s.m.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "the guest cannot freeze its processes", slog.String("sandbox", string(b.s.id)), slog.Any("err", err))
	res, err := b.guest.Exec(ctx, envdclient.Command{Path: "sync", User: "root"})
	if err == nil && res.Code != 0 {
		err = wrenn.Errorf(wrenn.FailedPrecondition, "the sandbox could not write its disk: %s: %.300q", res.Status, res.Stderr)
	}
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// save writes the machine into dir. What a VMM has begun to write may not end
// with ctx; but who destroys the sandbox does not wait for it.
func (s *Sandbox) save(ctx context.Context, dir string) error {
	machine := s.body.machine
	// Not ctx: whoever wanted the snapshot may have left before.
	doomed, doom := context.WithCancel(context.WithoutCancel(ctx))
	defer doom() // when nothing hears it any more

	end := func() { _ = machine.Stop(context.WithoutCancel(ctx)) } // destroy does it again, and says what is wrong
	defer context.AfterFunc(doomed, end)()
	s.doomBy(doom)
	defer s.doomBy(nil)
	err := machine.Snapshot(ctx, dir)
	if err != nil && doomed.Err() != nil {
		return errDestroyed // rather than that the machine is gone
	}
	return err
}

// letRun lets the vCPUs go on. Nothing else would: what does not work is tried
// again by Run, as long as the sandbox runs.
func (s *Sandbox) letRun(ctx context.Context) error {
	err := s.body.machine.Resume(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.stuck = time.Time{}
	if err != nil {
		s.life.stuck = time.Now().Add(retryAfter)
		s.m.rouse()
	}
	return err
}

// goOn takes up what letRun could not do. The caller has the turn.
func (s *Sandbox) goOn(ctx context.Context) error {
	ctx, done := s.interruptible(ctx)
	defer done()
	ctx, cancel := context.WithTimeout(ctx, tidyTimeout) // a VMM may never answer
	defer cancel()
	if err := s.letRun(ctx); err != nil {
		return fmt.Errorf("sandbox %s stands still: %w", s.id, err)
	}
	s.thawLate(ctx)
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "sandbox that stood still goes on", slog.String("sandbox", string(s.id)))
	return nil
}

// thaw lets the guest's processes go on, and notes it. It does not wait for one
// whose machine is gone.
func (s *Sandbox) thaw(ctx context.Context) error {
	machine := s.body.machine
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_ = machine.Wait(waiting) // whatever it ended by, or that nobody waits
		cancel()
	}()
	err := s.body.guest.Thaw(waiting)
	if err != nil && wrenn.CodeOf(err) != wrenn.FailedPrecondition { // it did not freeze either
		return err
	}
	s.noteThawed(ctx)
	return nil
}

// thawLate lets the processes of a guest go on that may have been frozen when
// their vCPUs were stopped. A guest that does not answer thaws by itself.
func (s *Sandbox) thawLate(ctx context.Context) {
	if !s.journal.Frozen {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, thawTimeout)
	defer cancel()
	if err := s.thaw(ctx); err != nil {
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "the processes of a sandbox may stand still for two minutes",
			slog.String("sandbox", string(s.id)), slog.Any("err", err))
	}
}

// noteThawed is for the next agent, which thaws once more at worst.
func (s *Sandbox) noteThawed(ctx context.Context) {
	if err := s.commit("thawed", func(j *journal.Journal) { j.Frozen = false }); err != nil {
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "it cannot be noted that a sandbox goes on", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	}
}

// explain says what was being done, and to the user what they can do about it.
// NotFound is Manager.Get's alone, and means that the sandbox is lost: a guest's
// own, or a snapshot's that the sandbox needs, becomes FailedPrecondition.
func (s *Sandbox) explain(doing string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = &wrenn.Error{Code: wrenn.Exhausted, Message: "this host's disk is full; the sandbox is as before", Err: err}
	}
	if e, ok := errors.AsType[*wrenn.Error](err); ok && e.Code == wrenn.NotFound {
		err = &wrenn.Error{Code: wrenn.FailedPrecondition, Message: doing + ": " + e.Message, Err: err}
	}
	return fmt.Errorf("%s of sandbox %s: %w", doing, s.id, err)
}

// used says that the sandbox was used now.
func (s *Sandbox) used() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.active = time.Now()
}

// need says which snapshots are not to be collected because of the sandbox.
func (s *Sandbox) need(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.needed = ids
}

// litter says that a snapshot may have become nobody's.
func (m *Manager) litter() {
	m.garbage.Store(true)
	m.rouse()
}

// sweepUp collects if there may be something.
func (m *Manager) sweepUp(ctx context.Context) {
	if !m.garbage.Swap(false) {
		return
	}
	if err := m.Collect(ctx); err != nil && ctx.Err() == nil {
		m.garbage.Store(true) // at the next look
		m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "snapshots that nobody needs cannot be removed", slog.Any("err", err))
	}
}

// Collect removes the snapshots that nobody needs; Run does so by itself. None
// is removed while a sandbox is in quarantine: nobody knows what it needs.
func (m *Manager) Collect(ctx context.Context) error {
	defer m.setAside(ctx)
	if m.Quarantined() > 0 {
		return nil
	}
	return m.snapshots.Collect(ctx, func() map[string]bool {
		needed := map[string]bool{}
		for _, s := range m.all() {
			for _, id := range s.needs() {
				needed[id] = true
			}
		}
		return needed
	})
}

// setAside fills the reserve, now that there may be space for it.
func (m *Manager) setAside(ctx context.Context) {
	err := m.reserve.Fill()
	if err != nil {
		m.garbage.Store(true) // at the next look
	}
	if full := err != nil; m.full.Swap(full) != full && full {
		m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "no space is set aside to note what gives some back", slog.Any("err", err))
	}
}

func (s *Sandbox) needs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life.needed
}
