//go:build root && vm

package e2e

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/testkit"
)

// cyclesVariable is the environment variable with the number of cycles of TestSandboxesLeaveNothing.
const cyclesVariable = "WRENN_TEST_CYCLES"

const (
	cycles     = 30 // the default
	warmCycles = 50 // cycles until pools, caches and heaps have their final size; at most a third of all
	// threadNoise is how many more threads a Go program may start when much happens
	// at once. They stay; a leak would have as many as there are cycles.
	threadNoise = 3
	// heapNoise is how much the resident memory of a Go program may differ between
	// two moments with the same work.
	heapNoise = 4 << 20
)

// After any number of sandboxes were created, used and destroyed, the host's
// programs use no more resources than when their pools and caches had filled.
func TestSandboxesLeaveNothing(t *testing.T) {
	n := cycles
	if text := os.Getenv(cyclesVariable); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 3 {
			t.Fatalf("%s=%q: use a number from 3 on", cyclesVariable, text)
		}
	}
	s := newSoak(t)
	warm := min(warmCycles, n/3)
	began := time.Now()
	s.cycle(t, warm)
	before := s.census(t)
	memory := s.cycle(t, n-warm)
	took := time.Since(began)
	t.Logf("%d cycles, %s each; resources after %d:\n%s", n, (took / time.Duration(n)).Round(time.Millisecond), warm, before)
	testkit.WaitNoError(t, "nothing is left of the sandboxes", func() error { return before.grewInto(s.census(t)) })
	for name, samples := range memory {
		first, last := edges(samples)
		t.Logf("%s, resident: %.1f MiB at first, %.1f MiB at last", name, mib(first), mib(last))
		if last > first+first/10+heapNoise {
			t.Errorf("%s grew from %.1f to %.1f MiB", name, mib(first), mib(last))
		}
	}
}

func mib(bytes int) float64 { return float64(bytes) / (1 << 20) }

// edges returns the medians of the first and the last quarter.
func edges(samples []int) (first, last int) {
	quarter := max(1, len(samples)/4)
	median := func(part []int) int { return slices.Sorted(slices.Values(part))[len(part)/2] }
	return median(samples[:quarter]), median(samples[len(samples)-quarter:])
}

// soak is a stack whose programs export the number of their goroutines.
type soak struct {
	*stack
	metrics map[string]string // addresses, by program
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{newStack(t, "wsoak", "10.233.0.0/16"), map[string]string{}}
	s.agent.stop(t, syscall.SIGTERM)
	s.controlPlane.stop(t, syscall.SIGTERM)
	s.metrics["agent"] = expose(t, s.agent.config, `metrics = "off"`, "metrics = %q")
	s.metrics["control plane"] = expose(t, s.config, `metrics_listen = ""`, "metrics_listen = %q")
	s.agent.start(t)
	s.startControlPlane(t)
	return s
}

// expose adds an address for metrics to a configuration.
func expose(t *testing.T, path, line, instead string) (address string) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.222.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), line, fmt.Sprintf(instead, l.Addr()), 1)
	if changed == string(text) {
		t.Fatalf("%s has no line %q", path, line)
	}
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

func (s *soak) pids() map[string]int {
	return map[string]int{"agent": s.agent.cmd.Process.Pid, "control plane": s.controlPlane.cmd.Process.Pid}
}

// cycle creates, uses and destroys sandboxes, one after the other, and returns
// the memory of the programs after each.
func (s *soak) cycle(t *testing.T, n int) (memory map[string][]int) {
	t.Helper()
	memory = map[string][]int{}
	for range n {
		sb, err := s.create(t, "soak")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.usable(t, sb.ID); err != nil {
			t.Fatal(err)
		}
		content := strings.NewReader(strings.Repeat("x", 1<<20))
		if err := s.api.WriteFile(t.Context(), sb.ID, "/srv/file", content, client.FileOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := s.api.DeleteSandbox(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
		for name, pid := range s.pids() {
			memory[name] = append(memory[name], resident(t, pid))
		}
	}
	return memory
}

// resident returns the second field of /proc/PID/statm, proc_pid_statm(5), in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	var size, pages int
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err == nil {
		_, err = fmt.Sscan(string(text), &size, &pages)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

const threads = ": threads"

// census counts resources of the host, by kind.
type census map[string]int

func (c census) String() string {
	var text strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&text, "%6d %s\n", c[kind], kind)
	}
	return text.String()
}

// grewInto returns an error for each kind of which there is more in later.
func (c census) grewInto(later census) error {
	var errs []error
	for kind, n := range later {
		slack := 0
		if strings.HasSuffix(kind, threads) {
			slack = threadNoise
		}
		if n > c[kind]+slack {
			errs = append(errs, fmt.Errorf("%s: %d, then %d", kind, c[kind], n))
		}
	}
	return errors.Join(errs...)
}

func (s *soak) census(t *testing.T) census {
	t.Helper()
	c := census{
		"mounts":       s.mounts(t),
		"loop devices": loops(t, s.agent.dir),
		"files":        files(t, s.agent.dir),
		"links":        len(glob(t, "/sys/class/net/"+s.agent.prefix+"*")),
	}
	for _, namespace := range glob(t, netns.Path(s.agent.prefix+"-*")) {
		c["namespaces"]++
		err := netns.Do(namespace, func() error {
			links, err := net.Interfaces()
			c["links in namespaces"] += len(links)
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // just removed
			t.Fatal(err)
		}
	}
	for name, pid := range s.pids() {
		c[name+": descriptors"] = len(glob(t, fmt.Sprintf("/proc/%d/fd/*", pid)))
		c[name+threads] = len(glob(t, fmt.Sprintf("/proc/%d/task/*", pid)))
		c[name+": processes that it started"] = children(t, pid)
		c[name+": goroutines"] = goroutines(t, s.metrics[name])
	}
	return c
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func (s *soak) mounts(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, s.agent.dir) || strings.Contains(line, "/netns/"+s.agent.prefix+"-") {
			n++
		}
	}
	return n
}

func loops(t *testing.T, dir string) (n int) {
	t.Helper()
	for _, path := range glob(t, "/sys/block/loop*/loop/backing_file") {
		if of, _ := os.ReadFile(path); strings.HasPrefix(string(of), dir) { // a detached one has none
			n++
		}
	}
	return n
}

func files(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
		n++
		if errors.Is(err, fs.ErrNotExist) { // just removed
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// children counts the children of a process, including zombies: field 4 of
// /proc/PID/stat, proc_pid_stat(5).
func children(t *testing.T, parent int) (n int) {
	t.Helper()
	for _, path := range glob(t, "/proc/[0-9]*/stat") {
		text, _ := os.ReadFile(path) // it may have ended
		_, rest, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			n++
		}
	}
	return n
}

func goroutines(t *testing.T, address string) (n int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // otherwise the connection would be counted
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\ngo_goroutines ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatalf("number of goroutines: %v in\n%s", err, text)
	}
	return n
}
