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
}

// Pick returns the host with the smallest used share of its memory, among those with
// room for one more sandbox of that much memory; the smallest id of several. It is
// Exhausted when none has room, Unavailable when hosts is empty.
func Pick(hosts []Host, memoryMB int) (wrenn.HostID, error) {
	if len(hosts) == 0 {
		return "", wrenn.Errorf(wrenn.Unavailable, "no host can be reached; try again in a moment")
	}
	var best *Host
	for i := range hosts {
		h := &hosts[i]
		if h.fits(memoryMB) && (best == nil || h.compare(best, memoryMB) < 0) {
			best = h
		}
	}
	if best == nil {
		return "", wrenn.Errorf(wrenn.Exhausted, "no host has room for a sandbox with %d MB of memory; delete some, or ask for less", memoryMB)
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

func (h *Host) fits(memoryMB int) bool {
	c := h.Capacity
	return (c.Sandboxes == 0 || c.SandboxesUsed+h.PendingSandboxes < c.Sandboxes) &&
		(c.MemoryMiB == 0 || c.MemoryMiBUsed+h.PendingMemoryMB+int64(memoryMB) <= c.MemoryMiB)
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
