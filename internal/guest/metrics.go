package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// metrics is the answer of /metrics.
type metrics struct {
	Timestamp   int64   `json:"ts"` // Unix seconds
	CPUCount    int     `json:"cpu_count"`
	CPUUsedPct  float64 `json:"cpu_used_pct"` // of all CPUs together, since the last call
	MemTotal    uint64  `json:"mem_total"`
	MemUsed     uint64  `json:"mem_used"` // what is not available to programs
	MemCache    uint64  `json:"mem_cache"`
	MemTotalMiB uint64  `json:"mem_total_mib"`
	MemUsedMiB  uint64  `json:"mem_used_mib"`
	DiskUsed    uint64  `json:"disk_used"`
	DiskTotal   uint64  `json:"disk_total"`
}

func (a *Agent) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	m, err := a.usage.read()
	if err != nil {
		answerError(w, http.StatusInternalServerError, fmt.Sprintf("metrics: %v", err))
		return
	}
	answerJSON(w, http.StatusOK, m)
}

// shortest is the shortest time over which a share of CPU time means
// something: the kernel counts in ticks of up to 10 ms.
const shortest = 500 * time.Millisecond

// usage measures the machine.
type usage struct {
	now func() time.Time

	mu   sync.Mutex // guards the following
	at   time.Time
	last cpuTimes
	pct  float64
}

// newUsage measures from the machine's start on, at first.
func newUsage() *usage { return &usage{now: time.Now} }

func (u *usage) read() (*metrics, error) {
	stat, statErr := os.ReadFile("/proc/stat")
	meminfo, memErr := os.ReadFile("/proc/meminfo")
	var disk unix.Statfs_t
	diskErr := unix.Statfs("/", &disk)
	if err := errors.Join(statErr, memErr, diskErr); err != nil {
		return nil, err
	}
	cpu, err := parseStat(stat)
	if err != nil {
		return nil, err
	}
	mem := parseMeminfo(meminfo)
	used := mem["MemTotal"] - min(mem["MemAvailable"], mem["MemTotal"])
	return &metrics{
		Timestamp:   u.now().Unix(),
		CPUCount:    runtime.NumCPU(),
		CPUUsedPct:  u.percent(cpu),
		MemTotal:    mem["MemTotal"],
		MemUsed:     used,
		MemCache:    mem["Cached"],
		MemTotalMiB: mem["MemTotal"] >> 20,
		MemUsedMiB:  used >> 20,
		DiskUsed:    (disk.Blocks - disk.Bfree) * uint64(disk.Bsize),
		DiskTotal:   disk.Blocks * uint64(disk.Bsize),
	}, nil
}

// percent is the share of CPU time that was used since the last call, or that
// call's answer when it was a moment ago.
func (u *usage) percent(cpu cpuTimes) float64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.now()
	if !u.at.IsZero() && now.Sub(u.at) < shortest {
		return u.pct
	}
	total, busy := cpu.total-u.last.total, cpu.busy-u.last.busy
	u.at, u.last, u.pct = now, cpu, 0
	if total > 0 && busy > 0 {
		u.pct = min(100, 100*float64(busy)/float64(total))
	}
	return u.pct
}

// cpuTimes are sums since the machine's start, in ticks.
type cpuTimes struct{ total, busy int64 }

// parseStat reads the first line of /proc/stat (proc_stat(5)).
func parseStat(stat []byte) (cpuTimes, error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	// cpu user nice system idle iowait irq softirq steal; guest times are part of user.
	if len(fields) < 5 || fields[0] != "cpu" {
		return cpuTimes{}, errors.New("/proc/stat does not begin with cpu times")
	}
	var t cpuTimes
	for i, field := range fields[1:min(len(fields), 9)] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return cpuTimes{}, fmt.Errorf("/proc/stat: %w", err)
		}
		t.total += ticks
		if i != 3 && i != 4 {
			t.busy += ticks
		}
	}
	return t, nil
}

// parseMeminfo reads /proc/meminfo (proc_meminfo(5)) into bytes.
func parseMeminfo(meminfo []byte) map[string]uint64 {
	values := make(map[string]uint64)
	lines := bufio.NewScanner(bytes.NewReader(meminfo))
	for lines.Scan() {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		number, unit, _ := strings.Cut(strings.TrimSpace(rest), " ")
		n, err := strconv.ParseUint(number, 10, 53)
		if err == nil && unit == "kB" {
			values[name] = n << 10
		}
	}
	return values
}
