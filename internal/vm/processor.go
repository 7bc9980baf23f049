package vm

import (
	"os"
	"strings"
)

// HostProcessor identifies the host's processor: its vendor, family, model and stepping.
// A snapshot of a guest that sees the processor is restored on an equal one.
func HostProcessor() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	return processorOf(info)
}

// processorOf returns vendor, family, model and stepping of the first processor.
func processorOf(cpuinfo []byte) string {
	first, _, _ := strings.Cut(string(cpuinfo), "\n\n")
	var parts []string
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "cpu family", "model", "stepping":
			parts = append(parts, strings.TrimSpace(value))
		}
	}
	return strings.Join(parts, " ")
}
