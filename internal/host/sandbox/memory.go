package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// The parts of the host's memory below which the stock does not grow, and below
// which it is given up.
const (
	stockGrows = 8
	stockEnds  = 16
)

// memory is that of this machine.
type memory struct{ totalKiB, availableKiB int }

// memoryBelow says whether less than one part of so many of the memory is left.
// Who cannot tell says no.
func (m *Manager) memoryBelow(parts int) bool {
	now, err := m.stock.memory()
	return err == nil && now.availableKiB < now.totalKiB/parts
}

// readMemory reads /proc/meminfo, see proc_meminfo(5).
func readMemory() (memory, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return memory{}, err
	}
	defer f.Close()
	var now memory
	found := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		into := map[string]*int{"MemTotal": &now.totalKiB, "MemAvailable": &now.availableKiB}[name]
		if into == nil {
			continue
		}
		if _, err := fmt.Sscan(rest, into); err != nil {
			return memory{}, fmt.Errorf("/proc/meminfo: %s: %w", name, err)
		}
		found++
	}
	if found != 2 {
		return memory{}, fmt.Errorf("/proc/meminfo: no MemTotal or no MemAvailable")
	}
	return now, nil
}
