package sandbox

import "wrenn"

// Limits bound what the sandboxes of a host may take together. Zero is no limit.
type Limits struct {
	Sandboxes int
	MemoryMiB int // of their machines, as they are told
	// DiskFreeMiB is what must be free in the state directory for a new one:
	// disks are clones that grow as they are written.
	DiskFreeMiB int
}

// Capacity is what the limits allow and what is taken.
type Capacity struct {
	Limits      Limits
	Sandboxes   int
	MemoryMiB   int
	DiskMiB     int // of the file system that the disks are on
	DiskFreeMiB int
}

// Capacity returns the counts of this moment.
func (m *Manager) Capacity() (Capacity, error) {
	total, free, err := m.diskMiB()
	if err != nil {
		return Capacity{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	count, memory := m.taken()
	return Capacity{Limits: m.cfg.Limits, Sandboxes: count, MemoryMiB: memory, DiskMiB: total, DiskFreeMiB: free}, nil
}

// admit says whether there is room for one more. The caller holds mu.
func (m *Manager) admit(shape Shape, diskFreeMiB int) error {
	limits := m.cfg.Limits
	count, memory := m.taken()
	switch {
	case limits.Sandboxes > 0 && count >= limits.Sandboxes:
		return wrenn.Errorf(wrenn.Exhausted, "this host has %d sandboxes, as many as it may: destroy some, or raise limits.sandboxes of its agent", count)
	case limits.MemoryMiB > 0 && memory+shape.MemoryMiB > limits.MemoryMiB:
		return wrenn.Errorf(wrenn.Exhausted, "%d MB of memory do not fit on this host: %d of %d MB are taken; pause or destroy sandboxes, ask for less, or raise limits.memory_mb of its agent",
			shape.MemoryMiB, memory, limits.MemoryMiB)
	case limits.DiskFreeMiB > 0 && diskFreeMiB < limits.DiskFreeMiB:
		return wrenn.Errorf(wrenn.Exhausted, "this host's disk is full: %d MB are free and %d must be (limits.disk_free_mb of its agent)", diskFreeMiB, limits.DiskFreeMiB)
	}
	return nil
}

// admitResume says whether there is room for the memory of a paused sandbox,
// and marks it as resuming in one step with that.
func (m *Manager) admitResume(s *Sandbox) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, memory := m.taken()
	if limit, want := m.cfg.Limits.MemoryMiB, s.request.Shape.MemoryMiB; limit > 0 && memory+want > limit {
		return wrenn.Errorf(wrenn.Exhausted, "%d MB of memory do not fit on this host now: %d of %d MB are taken; the sandbox stays paused", want, memory, limit)
	}
	s.set(StatusResuming, "")
	return nil
}

// taken counts the sandboxes that are not over, and the memory of those that
// are not paused either. The stock does not count: it gives way. The caller holds mu.
func (m *Manager) taken() (count, memoryMiB int) {
	for _, s := range m.boxes {
		switch info := s.Info(); {
		case info.isStock():
		case info.Status == StatusStopped, info.Status == StatusFailed, info.Status == statusRemoved:
		case info.Status == StatusPaused:
			count++
		default:
			count++
			memoryMiB += info.Shape.MemoryMiB
		}
	}
	return count, memoryMiB
}

func (m *Manager) diskFreeMiB() (int, error) {
	_, free, err := m.diskMiB()
	return free, err
}

func (m *Manager) diskMiB() (total, free int, err error) {
	space, err := m.cfg.Store.Space()
	return int(space.Total >> 20), int(space.Free >> 20), err
}
