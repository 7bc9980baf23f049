package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// memory is that of this machine.
type memory struct{ totalKiB, availableKiB int }

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
