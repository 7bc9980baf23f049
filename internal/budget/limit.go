package budget

import (
	"math"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// SetLimit sets the memory that this process should use at most, and returns it in
// bytes: GOMEMLIMIT if it is set, else mib if that is above 0, else the default. That is
// a 32nd of the machine's memory, at least 512 MiB, and at most nine tenths of what
// the process's cgroup allows. The runtime collects garbage more often near the limit.
func SetLimit(mib int) int64 {
	if os.Getenv("GOMEMLIMIT") != "" {
		if set := debug.SetMemoryLimit(-1); set < math.MaxInt64 {
			return set
		}
	}
	limit := int64(mib) << 20
	if mib <= 0 {
		limit = defaultLimit(memlimit.FromSystem, memlimit.FromCgroup)
	}
	debug.SetMemoryLimit(limit)
	return limit
}

// defaultLimit returns the limit on a machine and in a cgroup with that memory; an error
// of cgroup means that it has no limit.
func defaultLimit(machine, cgroup memlimit.Provider) int64 {
	const least = 512 << 20
	limit := uint64(least)
	if total, err := machine(); err == nil {
		limit = max(limit, total/32)
	}
	if own, err := cgroup(); err == nil {
		limit = min(limit, own/10*9)
	}
	return int64(limit) //nolint:gosec // a 32nd of the memory of a machine
}

// Share returns how much of a process's limit its budget has: a quarter.
func Share(limit int64) int64 { return limit / 4 }
