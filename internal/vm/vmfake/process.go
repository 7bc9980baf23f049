package vmfake

import (
	"context"
	"maps"
	"os"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
)

// consoleSize bounds what is kept of a guest's output.
const consoleSize = 16 << 10

// memory is the part of a guest that a snapshot has.
type memory struct {
	// Files are memory-backed, each full of one byte.
	Files map[string]byte `json:"files"`
	// Counting says that the counter runs; it has run for Counted.
	Counting bool          `json:"counting"`
	Counted  time.Duration `json:"counted"`
}

// process is a VMM and its guest.
type process struct {
	ref    vm.Ref
	spec   vm.Spec
	kernel string // the digest of what it booted, or of what was booted in the snapshot
	world  *World
	disks  []*os.File    // whatever their names are by now
	gone   chan struct{} // closed when all of it has ended

	mu      sync.Mutex    // guards what follows
	running chan struct{} // closed while the vCPUs run
	since   time.Time     // when they began to; zero while paused
	mem     memory        // Counted is as of since
	console []byte
	stop    func()  // ends what World.Boot began
	ended   *ending // nil while it lives
}

// ending is why a machine has ended.
type ending struct {
	reason   string
	orderly  bool // Stop or the guest ended it
	panicked bool // the guest's kernel did
	console  string
}

var (
	stopped    = ending{reason: "stopped", orderly: true}
	poweredOff = ending{reason: "the guest powered off", orderly: true}
)

func died(reason string) ending { return ending{reason: reason} }

func newProcess(w *World, spec vm.Spec, mem memory, kernel string, ref vm.Ref) *process {
	mem.Files = maps.Clone(mem.Files)
	if mem.Files == nil {
		mem.Files = map[string]byte{}
	}
	p := &process{ref: ref, spec: spec, kernel: kernel, world: w, gone: make(chan struct{}), running: make(chan struct{}), mem: mem}
	p.resume()
	return p
}

// boot calls the guest's program, which may end the machine at once.
func (p *process) boot(program func(*Guest) (func(), error)) error {
	guest := &Guest{func() (*process, error) { return p, nil }}
	if program == nil {
		return guest.Print("Linux version 0.0.0 (fake)\n")
	}
	stop, err := program(guest)
	if err != nil || stop == nil {
		return err
	}
	p.mu.Lock()
	over := p.ended != nil
	if !over {
		p.stop = stop
	}
	p.mu.Unlock()
	if over {
		stop()
	}
	return nil
}

// end ends the machine and returns when all of it has ended. The first ending counts.
func (p *process) end(why ending) {
	p.mu.Lock()
	first := p.ended == nil
	var stop func()
	if first {
		why.console = launch.LastLines(p.console)
		p.ended = &why
		p.pause()
		stop = p.stop
	}
	p.mu.Unlock()
	if !first {
		<-p.gone
		return
	}
	if stop != nil {
		stop()
	}
	closeAll(p.disks)
	p.world.forget(p)
	close(p.gone)
}

// exitError returns why the machine has ended, also if that is no error. It must
// have ended.
func (p *process) exitError() *vm.ExitError {
	return &vm.ExitError{Driver: Name, Reason: p.ended.reason, Panicked: p.ended.panicked, Console: p.ended.console}
}

// whileAlive calls f under the lock unless the machine has ended.
func (p *process) whileAlive(f func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil {
		return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the machine has ended", Err: p.exitError()}
	}
	f()
	return nil
}

// pause and resume are allowed twice. The caller holds mu.
func (p *process) pause() {
	if p.since.IsZero() {
		return
	}
	p.mem.Counted = p.counted()
	p.since = time.Time{}
	p.running = make(chan struct{})
}

func (p *process) resume() {
	if p.since.IsZero() {
		p.since = time.Now()
		close(p.running)
	}
}

// counted is how long the counter has run by now. The caller holds mu.
func (p *process) counted() time.Duration {
	if !p.mem.Counting || p.since.IsZero() {
		return p.mem.Counted
	}
	return p.mem.Counted + time.Since(p.since)
}

var errNotPaused = wrenn.Errorf(wrenn.FailedPrecondition, "a machine must be paused for a snapshot")

// copyMemory copies the memory of a paused machine.
func (p *process) copyMemory() (memory, error) {
	var mem memory
	paused := false
	err := p.whileAlive(func() {
		mem, paused = p.mem, p.since.IsZero()
		mem.Files = maps.Clone(p.mem.Files)
	})
	if err == nil && !paused {
		err = errNotPaused
	}
	return mem, err
}

// asGuest calls f as code of the guest: when the vCPUs run, and under the lock.
func (p *process) asGuest(ctx context.Context, f func()) error {
	for {
		var runs <-chan struct{}
		done := false
		err := p.whileAlive(func() {
			runs = p.running
			if done = !p.since.IsZero(); done {
				f()
			}
		})
		if err != nil || done {
			return err
		}
		select {
		case <-runs:
		case <-p.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
