package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// statusMiB reads a size of /proc/PID/status, see proc_pid_status(5).
func statusMiB(pid int, field string) (float64, error) {
	return sumMiB(fmt.Sprintf("/proc/%d/status", pid), func(name string) bool { return name == field })
}

// privateMiB returns the memory that only this process uses. Private_Dirty would also
// count a snapshot's memory, which is dirty because it is on no disk, as long as only
// one process has read it.
func privateMiB(pid int) (float64, error) {
	return sumMiB(fmt.Sprintf("/proc/%d/smaps_rollup", pid), func(name string) bool { return name == "Anonymous" })
}

// proportionalMiB returns a process's memory with its share of what it shares with others.
func proportionalMiB(pid int) (float64, error) {
	return sumMiB(fmt.Sprintf("/proc/%d/smaps_rollup", pid), func(name string) bool { return name == "Pss" })
}

// resetPeak resets the peak VmHWM, see proc_pid_clear_refs(5).
func resetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// sumMiB adds up the lines "Name: N kB" of a file that have one of the names.
func sumMiB(path string, wanted func(name string) bool) (float64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(data)) {
		name, rest, _ := strings.Cut(line, ":")
		if !wanted(name) {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
		if err != nil {
			return 0, err
		}
		sum, found = sum+kib/1024, true
	}
	if !found {
		return 0, errors.New("none of the lines wanted is in " + path)
	}
	return sum, nil
}
