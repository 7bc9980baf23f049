package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
)

// machineTimeout bounds a call to a VMM that only starts or stops vCPUs. It is a
// guard against one that hangs, far above what the call needs.
const machineTimeout = 30 * time.Second

// freezing is what is done about the guest's processes before a snapshot.
type freezing int

const (
	freezeNeeded  freezing = iota // without it there is no snapshot
	freezeIfAble                  // a guest that cannot, or does not answer, is saved as it stands
	freezeSkipped                 // the guest is not asked at all
)

// saving is how a sandbox is saved.
type saving struct {
	freezing freezing
	diskOnly bool // without the machine; needs a guest that answers
	held     bool // see wrenn.PauseOptions
}

// newSnapshotID returns an id that no snapshot has.
func newSnapshotID() string { return "s" + strings.ToLower(rand.Text()) }

// Snapshot keeps the sandbox's memory and disk as they are now under a new name,
// from which Restore makes sandboxes; the sandbox continues. The snapshot is whole
// or does not exist, and stays until RemoveSnapshot. AlreadyExists when the name is
// taken.
func (s *Sandbox) Snapshot(ctx context.Context, name string) error {
	return s.SnapshotFor(ctx, "", name, false)
}

// SnapshotFor is Snapshot or, with diskOnly, SnapshotDisk of a template of a team, which
// is stored for other hosts; of "" it is not.
func (s *Sandbox) SnapshotFor(ctx context.Context, owner wrenn.TeamID, name string, diskOnly bool) error {
	return s.snapshot(ctx, snapshot.Manifest{ID: name, DiskOnly: diskOnly, Owner: string(owner)})
}

// SnapshotDisk is Snapshot of the disk alone, and of what its guest's agent was told:
// sandboxes that Restore makes of it boot.
func (s *Sandbox) SnapshotDisk(ctx context.Context, name string) error {
	return s.SnapshotFor(ctx, "", name, true)
}

// snapshot keeps what the sandbox is now as the manifest says.
func (s *Sandbox) snapshot(ctx context.Context, man snapshot.Manifest) error {
	name := man.ID
	man.Pinned = true
	if err := snapshot.CheckID(name); err != nil {
		return err
	}
	if s.host.snapshots.Has(name) {
		return wrenn.Errorf(wrenn.AlreadyExists, "snapshot %s exists already", name)
	}
	locked, err := s.lock(ctx, StatusRunning)
	if err != nil {
		return err
	}
	defer locked.unlock()
	return locked.perform(ctx, operation{name: "snapshot"}, func(ctx context.Context, undo *rollback.Stack) error {
		_, release, err := locked.capture(ctx, undo, man)
		if err == nil {
			release()
		}
		return err
	})
}

// capture makes a snapshot of the running sandbox, which continues. The snapshot
// is leased until release. It is for work of an operation.
func (s locked) capture(ctx context.Context, undo *rollback.Stack, man snapshot.Manifest) (_ *snapshot.Snapshot, release func(), err error) {
	staged, err := s.host.snapshots.Stage()
	if err != nil {
		return nil, nil, err
	}
	undo.Add(staged.Discard)
	var restart rollback.Stack
	err = s.save(ctx, staged, &restart, saving{diskOnly: man.DiskOnly})
	if err := errors.Join(err, restart.Run(ctx)); err != nil {
		return nil, nil, err
	}
	s.state.touch()
	return s.publish(ctx, staged, man)
}

// publish makes what was staged of the sandbox a snapshot.
func (s locked) publish(ctx context.Context, staged *snapshot.Staged, man snapshot.Manifest) (*snapshot.Snapshot, func(), error) {
	man.Created, man.Driver, man.Guest = time.Now().UTC(), s.host.cfg.Driver.Name(), s.instance.Record.Guest
	man.VCPUs, man.MemoryMiB = s.request.VCPUs, s.request.MemoryMiB
	if man.Owner != "" {
		defer s.host.uploads.wake.Notify()
	}
	if s.isStorable() && !man.Transient && (!man.Pinned || man.Owner != "") {
		man.Base = s.host.snapshots.BaseOf(s.instance.Record.Source)
	}
	snap, release, err := staged.Publish(ctx, man)
	if err != nil {
		return nil, nil, err
	}
	if err := s.at("snapshot published"); err != nil {
		release()
		return nil, nil, err
	}
	return snap, release, nil
}

// save stops the sandbox and writes its disk and its machine into staged. The
// sandbox continues when restart runs, whether save failed or not. What can be done
// before it stops is done before.
func (s locked) save(ctx context.Context, staged *snapshot.Staged, restart *rollback.Stack, how saving) error {
	if err := s.saveSettings(ctx, staged, how); err != nil {
		return err
	}
	if err := s.prepareSave(ctx, staged, how); err != nil {
		return err
	}
	if err := s.freeze(ctx, restart, how.freezing); err != nil {
		return err
	}
	began := time.Now()
	steps := []rollback.Step{
		{Name: "machine paused", Do: s.stopCPUs},
		{Name: "disk cloned", Do: func(ctx context.Context) error {
			_, err := storage.Clone(ctx, staged.Disk(), s.instance.Disk(), 0o600)
			return err
		}},
	}
	if !how.diskOnly {
		steps = append(steps, rollback.Step{Name: "machine saved", Do: func(ctx context.Context) error { return s.saveMachine(ctx, staged.Machine()) }})
	}
	for _, step := range steps {
		if err := step.Do(ctx); err != nil {
			return err
		}
		if err := s.at(step.Name); err != nil {
			return err
		}
	}
	s.trace(ctx, "still", time.Since(began)) // how long this keeps the guest from running
	return nil
}

// freeze stops the guest's processes with everything that they wrote on the disk,
// as far as how asks for it, so that the machine can be paused next. The sandbox
// continues when restart runs, whether freeze failed or not, and whether the machine
// was paused or not.
func (s locked) freeze(ctx context.Context, restart *rollback.Stack, how freezing) error {
	if how != freezeSkipped {
		if err := s.freezeGuest(ctx, restart, how); err != nil {
			return err
		}
	}
	restart.Add(s.letRun) // before: a Pause whose answer does not come may have worked
	return nil
}

func (s locked) freezeGuest(ctx context.Context, restart *rollback.Stack, how freezing) error {
	if err := s.journal.commit("frozen", func(j *journal.Journal) { j.Frozen = true }); err != nil {
		return err
	}
	restart.Add(s.thaw)
	err := s.instance.Freeze(ctx)
	if err != nil && how == freezeIfAble && ctx.Err() == nil {
		s.logError(ctx, slog.LevelWarn, "guest cannot be frozen; its machine is saved as it stands", err)
		err = nil
	}
	if err != nil {
		return err
	}
	return s.at("guest frozen")
}

// stopCPUs stops the vCPUs of the instance.
func (s locked) stopCPUs(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, machineTimeout, errMachineSilent)
	defer cancel()
	s.state.setStill(true)
	return s.instance.Machine.Pause(ctx)
}

// errMachineSilent is the cause of the end of a call to a VMM that does not answer.
var errMachineSilent = wrenn.Errorf(wrenn.DeadlineExceeded, "its machine did not answer within %s", machineTimeout)

// settingsTimeout bounds the wait for the settings of a guest that is saved with its
// memory, where they are.
const settingsTimeout = 2 * time.Second

// saveSettings writes down what the guest keeps in memory, for a boot from the disk.
// A guest that does not answer is saved without, if its memory is saved.
func (s locked) saveSettings(ctx context.Context, staged *snapshot.Staged, how saving) error {
	if how.freezing == freezeSkipped || !how.diskOnly && s.Info().Unresponsive != nil {
		return nil
	}
	asking := ctx
	if !how.diskOnly {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, settingsTimeout)
		defer cancel()
	}
	settings, err := s.instance.Guest.Settings(asking)
	if err != nil && !how.diskOnly && ctx.Err() == nil {
		s.logError(ctx, slog.LevelDebug, "guest is saved without its settings", err)
		return nil
	}
	if err != nil {
		return err
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	return os.WriteFile(staged.Settings(), text, 0o600)
}

// prepareSave does what can be done while the sandbox runs.
func (s locked) prepareSave(ctx context.Context, staged *snapshot.Staged, how saving) error {
	if how.diskOnly { // a clone shares all blocks
		return nil
	}
	// The memory at most, and it may well be less: if that cannot be had, what is written decides.
	if err := s.host.cfg.Store.Ensure(ctx, int64(s.request.MemoryMiB)<<20); err != nil && wrenn.CodeOf(err) != wrenn.Exhausted {
		return err
	}
	machine, ok := s.instance.Machine.(vm.SnapshotPreparer)
	if !ok {
		return nil
	}
	if err := machine.PrepareSnapshot(ctx, staged.Machine()); err != nil {
		return err
	}
	return s.at("snapshot prepared")
}

// saveMachine writes the machine into dir. What a VMM has begun to write may not
// end with ctx; but Destroy does not wait for it: it ends the machine.
func (s locked) saveMachine(ctx context.Context, dir string) error {
	machine := s.instance.Machine
	// Not ctx: the caller that wanted the snapshot may have left before.
	alive, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()

	stop := func() { _ = machine.Stop(context.WithoutCancel(ctx)) } // destroy does it again, and returns the error
	defer context.AfterFunc(alive, stop)()
	defer s.cancel.onCancel(kill)()
	err := machine.Snapshot(ctx, dir)
	if err != nil && alive.Err() != nil {
		return errDestroyed // rather than that the machine has ended
	}
	return err
}

// letRun lets the vCPUs run again. What fails is tried again by Run, as long as
// the sandbox runs. Destroy does not wait for it.
func (s locked) letRun(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, machineTimeout, errMachineSilent)
	defer cancel()
	defer s.cancel.onCancel(cancel)()
	err := s.instance.Machine.Resume(ctx)
	s.state.setStalled(err != nil)
	if err == nil {
		s.state.setStill(false)
	}
	return err
}

// retryRun is for Run: it does what letRun could not do.
func retryRun(ctx context.Context, s locked) error {
	return s.perform(ctx, operation{}, func(ctx context.Context, _ *rollback.Stack) error {
		ctx, cancel := context.WithTimeout(ctx, detachedTimeout) // a VMM may never answer
		defer cancel()
		if err := s.letRun(ctx); err != nil {
			return fmt.Errorf("sandbox %s stands still: %w", s.id, err)
		}
		s.tryThaw(ctx)
		s.log(ctx, slog.LevelInfo, "sandbox that stood still runs again")
		return nil
	})
}

// thaw lets the guest's processes run again, and records that. It does not wait
// long for a guest, and not at all for one whose machine has ended or that is to be
// destroyed.
func (s locked) thaw(ctx context.Context) error {
	machine := s.instance.Machine
	waiting, cancel := context.WithTimeout(ctx, s.host.cfg.FreezeTimeout)
	defer cancel()
	defer s.cancel.onCancel(cancel)()
	go func() {
		_ = machine.Wait(waiting) // whatever ended it
		cancel()
	}()
	err := s.instance.Guest.Thaw(waiting)
	if err != nil && wrenn.CodeOf(err) != wrenn.FailedPrecondition { // it did not freeze either
		return err
	}
	s.recordThawed(ctx)
	return nil
}

// tryThaw lets the processes of a guest run that may have been frozen when its
// vCPUs were stopped. A guest that does not answer thaws by itself.
func (s locked) tryThaw(ctx context.Context) {
	if !s.journal.Frozen {
		return
	}
	if err := s.thaw(ctx); err != nil {
		s.logError(ctx, slog.LevelWarn, "processes of a sandbox may stand still for two minutes", err)
	}
}

// recordThawed is for the next agent. If it fails, that one thaws the guest again.
func (s locked) recordThawed(ctx context.Context) {
	if err := s.journal.commit("thawed", func(j *journal.Journal) { j.Frozen = false }); err != nil {
		s.logError(ctx, slog.LevelWarn, "cannot record that the guest was thawed", err)
	}
}
