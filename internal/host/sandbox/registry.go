package sandbox

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"

	"wrenn.dev"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
)

// Limits bound what the sandboxes of a host may use together. Zero is no limit.
type Limits struct {
	Sandboxes int
	MemoryMiB int // of their machines, as they are promised, with OverheadMiB for each
	// OverheadMiB is what a machine takes of the host besides its guest's memory.
	OverheadMiB int
	// DiskFreeMiB is what must be free in the state directory for a new one:
	// disks are clones that grow as they are written.
	DiskFreeMiB int
	DisksMiB    int // of their disks, as they are promised
	// DiskRate bounds the reads and writes of each sandbox. A sandbox that runs keeps the
	// rate that it was started or resumed with.
	DiskRate vm.DiskRate
}

// registry has the sandboxes of a host by their ids, and decides whether there is
// room for another one.
type registry struct {
	limits Limits
	store  *storage.Store

	mu        sync.Mutex // guards sandboxes; comes before that of a sandbox's state
	sandboxes map[wrenn.SandboxID]*Sandbox
}

// get returns the sandbox with that id. NotFound when there is none.
func (r *registry) get(id wrenn.SandboxID) (*Sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sandboxes[id]; s != nil {
		return s, nil
	}
	return nil, wrenn.Errorf(wrenn.NotFound, "sandbox %s is not on this host", id)
}

// all returns the sandboxes in the order of their ids.
func (r *registry) all() []*Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*Sandbox, 0, len(r.sandboxes))
	for _, id := range slices.Sorted(maps.Keys(r.sandboxes)) {
		all = append(all, r.sandboxes[id])
	}
	return all
}

// add enters a sandbox that no limit applies to.
func (r *registry) add(s *Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sandboxes[s.id] = s
}

// admit enters s, or returns the sandbox that has its id already. Exhausted when
// a limit does not allow another one.
func (r *registry) admit(s *Sandbox) (existing *Sandbox, err error) {
	free, err := r.diskFreeMiB()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if existing := r.sandboxes[s.id]; existing != nil {
		return existing, nil
	}
	if err := r.checkRoom(s.request.Size, s.disk(), free); err != nil {
		return nil, err
	}
	r.sandboxes[s.id] = s
	return nil, nil
}

// forget removes the sandbox. Its id may have another owner by then.
func (r *registry) forget(s *Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandboxes[s.id] == s {
		delete(r.sandboxes, s.id)
	}
}

// disk returns the size of the sandbox's disk, in MiB, for counting: that of one that
// an older agent made is not known.
func (s *Sandbox) disk() int { return cmp.Or(s.request.DiskMiB, wrenn.DefaultDiskMiB) }

// checkRoom returns Exhausted unless there is room for one more, with a disk of diskMiB,
// 0 for one that does not count. The caller holds mu.
func (r *registry) checkRoom(size wrenn.Size, diskMiB, diskFreeMiB int) error {
	count, memory, disks := r.used()
	switch limits := r.limits; {
	case limits.Sandboxes > 0 && count >= limits.Sandboxes:
		return wrenn.Errorf(wrenn.Exhausted, "this host is at its limit of %d sandboxes: destroy some, or raise limits.sandboxes of its agent", count)
	case limits.MemoryMiB > 0 && memory+r.cost(size) > limits.MemoryMiB:
		return wrenn.Errorf(wrenn.Exhausted, "%d MiB of memory do not fit on this host: %d of %d MiB are used; pause or destroy sandboxes, ask for less, or raise limits.memory_mb of its agent",
			r.cost(size), memory, limits.MemoryMiB)
	case limits.DisksMiB > 0 && disks+diskMiB > limits.DisksMiB:
		return wrenn.Errorf(wrenn.Exhausted, "a disk of %d MiB does not fit on this host: the disks of its sandboxes have %d of %d MiB; destroy some, ask for less, or raise limits.disks_mb of its agent", diskMiB, disks, limits.DisksMiB)
	case limits.DiskFreeMiB > 0 && diskFreeMiB < limits.DiskFreeMiB:
		return wrenn.Errorf(wrenn.Exhausted, "this host's disk is full: %d MiB are free and %d must be (limits.disk_free_mb of its agent)", diskFreeMiB, limits.DiskFreeMiB)
	}
	return nil
}

// admitAs sets the status of a sandbox to one that takes the memory of one more machine:
// StatusResuming, or StatusRestoring, in which the old machine still exists. If there is
// no room for that it returns Exhausted, and the status is as before.
func (r *registry) admitAs(s *Sandbox, next Status) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, memory, _ := r.used()
	if limit, want := r.limits.MemoryMiB, r.cost(s.request.Size); limit > 0 && memory+want > limit {
		return wrenn.Errorf(wrenn.Exhausted, "%d MiB of memory do not fit on this host now: %d of %d MiB are used; the sandbox stays %s", want, memory, limit, s.Info().Status)
	}
	s.state.set(next, "")
	return nil
}

// cost returns the memory of the host that a machine takes, in MiB.
func (r *registry) cost(size wrenn.Size) int { return size.MemoryMiB + r.limits.OverheadMiB }

// hasRoom reports whether the limits allow another sandbox of the size.
func (r *registry) hasRoom(size wrenn.Size) bool { return r.findRoom(size) == nil }

// findRoom returns Exhausted unless the limits allow another sandbox of the size.
func (r *registry) findRoom(size wrenn.Size) error {
	free, err := r.diskFreeMiB()
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checkRoom(size, 0, free)
}

// memoryRoom returns how much memory the limit leaves, in MiB.
func (r *registry) memoryRoom() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limits.MemoryMiB == 0 {
		return math.MaxInt
	}
	_, memory, _ := r.used()
	return r.limits.MemoryMiB - memory
}

// isBusy reports whether a caller waits for a sandbox that starts or resumes. The
// end of that changes the sandbox's status.
func (r *registry) isBusy() bool {
	return slices.ContainsFunc(r.all(), func(s *Sandbox) bool {
		switch s.Info().Status {
		case StatusStarting, StatusResuming, StatusRestoring:
			return true
		default:
			return false
		}
	})
}

// used counts the sandboxes that have not ended, with their disks, and the memory of
// those that are not paused either. A sandbox that is being restored has two machines. The warm
// pool does not count: it gives way. The caller holds mu.
func (r *registry) used() (count, memoryMiB, disksMiB int) {
	for _, s := range r.sandboxes {
		switch info := s.Info(); {
		case info.isPooled():
		case info.Status == StatusStopped, info.Status == StatusFailed, info.Status == statusRemoved:
		case info.Status == StatusPaused:
			count++
			disksMiB += s.disk()
		default:
			count++
			disksMiB += s.disk()
			memoryMiB += r.cost(info.Size)
			if info.Status == StatusRestoring {
				memoryMiB += r.cost(info.Size)
			}
		}
	}
	return count, memoryMiB, disksMiB
}

// capacity returns the counts of this moment.
func (r *registry) capacity() (wrenn.Capacity, error) {
	total, free, err := r.diskMiB()
	if err != nil {
		return wrenn.Capacity{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	count, memory, disks := r.used()
	return wrenn.Capacity{
		DisksMiB: int64(r.limits.DisksMiB), DisksMiBUsed: int64(disks),
		Sandboxes: r.limits.Sandboxes, SandboxesUsed: count,
		MemoryMiB: int64(r.limits.MemoryMiB), MemoryMiBUsed: int64(memory),
		DiskMiB: int64(total), DiskMiBFree: int64(free),
	}, nil
}

func (r *registry) diskFreeMiB() (int, error) {
	_, free, err := r.diskMiB()
	return free, err
}

func (r *registry) diskMiB() (total, free int, err error) {
	space, err := r.store.Space()
	return int(space.Total >> 20), int(space.Free >> 20), err
}

// quarantined counts the sandboxes in quarantine.
func (r *registry) quarantined() (n int) {
	for _, s := range r.all() {
		if s.Info().Status == StatusQuarantined {
			n++
		}
	}
	return n
}
