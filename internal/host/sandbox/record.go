package sandbox

import (
	"sync/atomic"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/rollback"
)

// record is the journal of a sandbox, which only the holder of the operation lock
// may use, and what others may know of it at any time.
type record struct {
	*journal.Journal // nil before launch

	reserve *durable.Reserve
	hook    rollback.Hook
	latest  atomic.Pointer[journal.Journal] // a copy
	pins    atomic.Pointer[[]string]
}

// open makes j the journal.
func (r *record) open(j *journal.Journal) {
	r.Journal = j
	r.publish()
}

// commit changes the journal, on the disk and in memory. After an error neither
// has changed.
func (r *record) commit(what string, change func(*journal.Journal)) error {
	return r.commitBy(durable.WriteFile, what, change)
}

// commitFreeing is a commit of a change by which the sandbox needs less space: it
// works on a full disk.
func (r *record) commitFreeing(what string, change func(*journal.Journal)) error {
	return r.commitBy(r.reserve.WriteFile, what, change)
}

func (r *record) commitBy(write durable.WriteFunc, what string, change func(*journal.Journal)) error {
	if err := r.hook.At(what + " to be recorded"); err != nil {
		return err
	}
	pins := append(r.Snapshots(), r.With(change).Snapshots()...)
	r.pins.Store(&pins)
	err := r.Commit(write, change)
	r.publish()
	if err != nil {
		return err
	}
	return r.hook.At(what + " recorded")
}

// assume changes the journal in memory alone, because the disk is full. The next
// commit writes the change.
func (r *record) assume(change func(*journal.Journal)) {
	change(r.Journal)
	r.publish()
}

func (r *record) publish() {
	pins := r.Snapshots()
	r.pins.Store(&pins)
	r.latest.Store(r.With(func(*journal.Journal) {}))
}

// pinned returns the snapshots that the sandbox needs, or may need in a moment.
// It is safe without the operation lock.
func (r *record) pinned() []string {
	if pins := r.pins.Load(); pins != nil {
		return *pins
	}
	return nil
}

// stored returns where the snapshot of a paused sandbox is stored, if it is. It is safe
// without the operation lock.
func (r *record) stored() wrenn.Stored {
	j := r.latest.Load()
	if j == nil || j.Stored == nil || j.Stored.Snapshot != j.Snapshot {
		return wrenn.Stored{}
	}
	return j.Stored.Stored
}

// newestStored returns the newest checkpoint that is stored, nil for none. It is safe
// without the operation lock.
func (r *record) newestStored() *wrenn.Checkpoint {
	if j := r.latest.Load(); j != nil {
		return j.NewestStored()
	}
	return nil
}

// checkpoints returns those of the journal. It is safe without the operation lock.
func (r *record) checkpoints() ([]wrenn.Checkpoint, wrenn.CheckpointID) {
	if j := r.latest.Load(); j != nil {
		return j.Checkpoints, j.Head
	}
	return nil, ""
}
