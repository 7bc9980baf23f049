package vmfake

import (
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"wrenn.dev/internal/vm"
)

// firstPID is beyond the kernel's PID_MAX_LIMIT (2^22): a fake's PID never is
// that of a real process.
const firstPID = 1 << 30

// World holds machines. The zero value is an empty world; it is safe for
// concurrent use and must not be copied.
type World struct {
	// Boot, if set, is the guest's program: it is called once for each machine
	// that starts or is restored, before Start or Restore return. What it
	// returns is called once when the machine is gone; it may be nil. An error
	// makes Start fail. What is returned must not itself end the machine, which
	// waits for it. Without Boot a guest prints a line, as a kernel would.
	// Set it before the first machine starts.
	Boot func(*Guest) (stop func(), err error)

	mu       sync.Mutex // guards what follows
	bootID   string
	spawned  int
	machines map[int]*process // that run, by PID
}

// Running returns the refs of all machines that run, oldest first.
func (w *World) Running() []vm.Ref {
	w.mu.Lock()
	defer w.mu.Unlock()
	var refs []vm.Ref
	for _, pid := range slices.Sorted(maps.Keys(w.machines)) {
		refs = append(refs, w.machines[pid].ref)
	}
	return refs
}

// Kill ends a machine as SIGKILL from outside would. One that is gone already
// is no error.
func (w *World) Kill(ref vm.Ref) {
	if p := w.find(ref); p != nil {
		p.end(died("signal: killed"))
	}
}

// Guest is the guest of whichever machine runs in the network namespace when
// a method is called.
func (w *World) Guest(namespace string) *Guest {
	return &Guest{func() (*process, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, p := range w.machines {
			if p.spec.Net.Namespace == namespace {
				return p, nil
			}
		}
		return nil, fmt.Errorf("no machine runs in %q", namespace)
	}}
}

// GuestOf is the guest of a machine.
func (w *World) GuestOf(ref vm.Ref) *Guest {
	return &Guest{func() (*process, error) {
		if p := w.find(ref); p != nil {
			return p, nil
		}
		return nil, fmt.Errorf("machine %s has ended", ref.ID)
	}}
}

// spawn makes a machine whose guest does not run yet. As in the kernel, one
// machine at a time has a TAP. The disks are the machine's to close.
func (w *World) spawn(spec vm.Spec, mem memory, kernel string, disks []*os.File) (*process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range w.machines {
		if nic := other.spec.Net; nic.TAP != "" && nic.TAP == spec.Net.TAP && nic.Namespace == spec.Net.Namespace {
			return nil, fmt.Errorf("attach to %s: device busy, machine %s has it", nic.TAP, other.ref.ID)
		}
	}
	if w.machines == nil {
		w.machines, w.bootID = map[int]*process{}, rand.Text()
	}
	w.spawned++
	p := newProcess(w, spec, mem, kernel, vm.Ref{
		Driver: Name, ID: spec.ID, Dir: spec.Dir,
		PID: firstPID + w.spawned, StartTime: uint64(w.spawned), BootID: w.bootID,
	})
	p.disks = disks
	w.machines[p.ref.PID] = p
	return p, nil
}

// find returns the running machine that ref means, or nil.
func (w *World) find(ref vm.Ref) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.machines[ref.PID]
	if p == nil || p.ref.StartTime != ref.StartTime || p.ref.BootID != ref.BootID {
		return nil
	}
	return p
}

func (w *World) forget(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.machines, p.ref.PID)
}
