// Package scheduler picks hosts for sandboxes. It is pure: it decides by the last
// answers of the hosts. A host that is full since then refuses the sandbox.
package scheduler

import (
	"cmp"
	"slices"

	"wrenn"
)

// Host is a host that can be reached, as it answered last.
type Host struct {
	ID       wrenn.HostID
	Capacity wrenn.Capacity
	// Sent to the host since that answer.
	PendingSandboxes int
	PendingMemoryMB  int64
	PendingDiskMB    int64
}

// Need is what a sandbox takes of a host.
type Need struct {
	MemoryMB int
	DiskMB   int // the size of its disk, however full it will be
}

// Pick returns the host with the smallest used share of its memory, among those with
// room for one more sandbox with that need; the smallest id of several. It is
// Exhausted when none has room, Unavailable when hosts is empty.
func Pick(hosts []Host, need Need) (wrenn.HostID, error) {
	if len(hosts) == 0 {
		return "", wrenn.Errorf(wrenn.Unavailable, "no host can be reached; try again in a moment")
	}
	var best *Host
	for i := range hosts {
		h := &hosts[i]
		if h.fits(need) && (best == nil || h.compare(best, need.MemoryMB) < 0) {
			best = h
		}
	}
	if best == nil {
		return "", wrenn.Errorf(wrenn.Exhausted, "no host has room for a sandbox with %d MB of memory and a disk of %d MB; delete some, or ask for less", need.MemoryMB, need.DiskMB)
	}
	return best.ID, nil
}

// MostDisk returns the host with the most free disk, the smallest id of several. It is
// Unavailable when hosts is empty.
func MostDisk(hosts []Host) (wrenn.HostID, error) {
	if len(hosts) == 0 {
		return "", wrenn.Errorf(wrenn.Unavailable, "no host can be reached; try again in a moment")
	}
	best := slices.MinFunc(hosts, func(a, b Host) int {
		return cmp.Or(cmp.Compare(b.Capacity.DiskMiBFree, a.Capacity.DiskMiBFree), cmp.Compare(a.ID, b.ID))
	})
	return best.ID, nil
}

func (h *Host) fits(need Need) bool {
	c := h.Capacity
	return (c.Sandboxes == 0 || c.SandboxesUsed+h.PendingSandboxes < c.Sandboxes) &&
		(c.MemoryMiB == 0 || c.MemoryMiBUsed+h.PendingMemoryMB+int64(need.MemoryMB) <= c.MemoryMiB) &&
		(c.DisksMiB == 0 || c.DisksMiBUsed+h.PendingDiskMB+int64(need.DiskMB) <= c.DisksMiB)
}

// compare orders hosts by how full they would be: by memory, then by number, then by id.
func (h *Host) compare(o *Host, memoryMB int) int {
	return cmp.Or(
		cmp.Compare(h.memory(memoryMB), o.memory(memoryMB)),
		cmp.Compare(h.number(), o.number()),
		cmp.Compare(h.ID, o.ID),
	)
}

// memory and number return the used shares; without a limit that is 0.
func (h *Host) memory(memoryMB int) float64 {
	if h.Capacity.MemoryMiB == 0 {
		return 0
	}
	return float64(h.Capacity.MemoryMiBUsed+h.PendingMemoryMB+int64(memoryMB)) / float64(h.Capacity.MemoryMiB)
}

func (h *Host) number() float64 {
	if h.Capacity.Sandboxes == 0 {
		return 0
	}
	return float64(h.Capacity.SandboxesUsed+h.PendingSandboxes) / float64(h.Capacity.Sandboxes)
}
