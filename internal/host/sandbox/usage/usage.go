// Package usage keeps what sandboxes used: samples of a sandbox's CPU, memory and
// disk, within a bound however long the sandbox lives, and the CPU time of its VMM.
package usage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"wrenn.dev"
)

// maxSamples bounds the samples of a sandbox: 80 KiB of memory, and about 180 KiB in a file.
const maxSamples = 1024

// Series has the samples of a sandbox. When it is full, every second sample of
// the older half is dropped: it covers the sandbox's whole life, the last half hour
// in full. The zero value is empty and ready to use. It is safe for concurrent use.
type Series struct {
	mu      sync.Mutex
	samples []wrenn.MetricsSample // guarded by mu; oldest first
	changed bool                  // guarded by mu; since Save or Load
}

// Add appends a sample. One that is not later than the last is dropped: a clock
// may have been set back.
func (s *Series) Add(sample wrenn.MetricsSample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.samples); n > 0 && !sample.At.After(s.samples[n-1].At) {
		return
	}
	if len(s.samples) >= maxSamples {
		s.thin()
	}
	if len(s.samples) == maxSamples/2 {
		s.samples = slices.Grow(s.samples, maxSamples/2) // and no more
	}
	s.samples, s.changed = append(s.samples, sample), true
}

// thin drops every second sample of the older half. The caller must hold mu.
func (s *Series) thin() {
	half := len(s.samples) / 2
	kept := s.samples[:0]
	for i, sample := range s.samples {
		if i >= half || i%2 == 0 {
			kept = append(kept, sample)
		}
	}
	s.samples = kept
}

// Between returns the samples from one moment to another, both included, oldest
// first. A zero time is no bound.
func (s *Series) Between(from, to time.Time) []wrenn.MetricsSample {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := func(at time.Time) int {
		return slices.IndexFunc(s.samples, func(m wrenn.MetricsSample) bool { return !m.At.Before(at) })
	}
	first, end := 0, len(s.samples)
	if !from.IsZero() {
		if first = before(from); first < 0 {
			return nil
		}
	}
	if !to.IsZero() {
		if after := before(to.Add(time.Nanosecond)); after >= 0 {
			end = after
		}
	}
	if first >= end {
		return nil
	}
	return slices.Clone(s.samples[first:end])
}

// Save writes the samples to a file, which is replaced as a whole, unless nothing was
// added since the last Save or Load. A power cut may leave the file damaged, which
// Load reports. One Save runs at a time.
func (s *Series) Save(path string) error {
	data, err := s.unsaved()
	if data == nil || err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// unsaved returns the text of a file with the samples; nil if Save has written it.
func (s *Series) unsaved() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.changed {
		return nil, nil
	}
	s.changed = false
	return json.Marshal(s.samples)
}

// Load reads the samples that Save wrote. No file is no samples.
func (s *Series) Load(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var samples []wrenn.MetricsSample
	if err == nil {
		err = json.Unmarshal(data, &samples)
	}
	if err != nil {
		return fmt.Errorf("metrics %s: %w", path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples = samples[max(0, len(samples)-maxSamples):]
	return nil
}

// ticksPerSecond is the kernel's USER_HZ, which is 100 on every platform that
// Linux runs on as a host of microVMs.
const ticksPerSecond = 100

// CPUTime returns the CPU time that a process has used, all its threads together.
func CPUTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseCPUTime(stat)
}

// parseCPUTime reads utime and stime of proc_pid_stat(5).
func parseCPUTime(stat []byte) (time.Duration, error) {
	_, rest, found := cutLast(stat, ')') // the name before it may have any character
	fields := bytes.Fields(rest)
	const utime, stime = 11, 12 // counted from the state
	if !found || len(fields) <= stime {
		return 0, errors.New("/proc/PID/stat has too few fields")
	}
	var ticks int64
	for _, field := range [][]byte{fields[utime], fields[stime]} {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / ticksPerSecond), nil
}

func cutLast(b []byte, c byte) (before, after []byte, found bool) {
	i := bytes.LastIndexByte(b, c)
	if i < 0 {
		return b, nil, false
	}
	return b[:i], b[i+1:], true
}
