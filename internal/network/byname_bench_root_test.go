//go:build root

package network

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

// BenchmarkDownload compares downloads of a guest by plain NAT with those by name, which
// the agent passes on, in alternation. It reports the medians of the pairs' ratios: of the
// throughput, whose goal is 0.8 or more, and of the CPU time of both ends and all between
// them. The guest's card has the offloads that a VMM asks for.
func BenchmarkDownload(b *testing.B) {
	const size = 256 << 20
	n := newNamesWorld(b)
	n.slot = acquire(b, n.open(b, nil), "a")
	n.guest = newGuest(b, n.slot)
	for _, card := range []*os.File{n.guest.tap, n.guest.card} {
		offload(b, card)
	}
	nat, name := n.client(b, worldPublic), n.client(b, somewhere)
	b.SetBytes(2 * size)
	var speed, cpu []float64
	for b.Loop() {
		testkit.Must(b, n.slot.SetPolicy(b.Context(), policy(b, false, nil, nil)))
		plainTook, plainCPU := download(b, nat, size)
		testkit.Must(b, n.slot.SetPolicy(b.Context(), policy(b, true, []string{"example.com"}, nil)))
		nameTook, nameCPU := download(b, name, size)
		speed = append(speed, float64(plainTook)/float64(nameTook))
		cpu = append(cpu, float64(nameCPU)/float64(plainCPU))
	}
	for unit, ratios := range map[string][]float64{"name/nat": speed, "cpu-name/cpu-nat": cpu} {
		slices.Sort(ratios)
		b.ReportMetric(ratios[len(ratios)/4], unit+"-lower-quartile")
		b.ReportMetric(ratios[len(ratios)/2], unit)
	}
}

// download returns the time and the CPU time of a download of n zeros.
func download(b *testing.B, client *http.Client, n int64) (took, cpu time.Duration) {
	b.Helper()
	defer client.CloseIdleConnections() // the next policy ends them
	used, began := cpuTime(b), time.Now()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, fmt.Sprintf("http://example.com/zeros?n=%d", n), nil)
	testkit.Must(b, err)
	resp, err := client.Do(req)
	testkit.Must(b, err)
	defer resp.Body.Close()
	got, err := io.Copy(io.Discard, resp.Body)
	if testkit.Must(b, err); got != n {
		b.Fatalf("got %d bytes", got)
	}
	return time.Since(began), cpuTime(b) - used
}

// cpuTime returns the CPU time of this process, which has both ends and the agent.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var use unix.Rusage
	testkit.Must(b, unix.Getrusage(unix.RUSAGE_SELF, &use))
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// offload has the kernel leave checksums and segments to the other end of a TAP, as VMMs
// and the guests in them do.
func offload(b *testing.B, tap *os.File) {
	b.Helper()
	raw, err := tap.SyscallConn()
	testkit.Must(b, err)
	var failed error
	testkit.Must(b, raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN)
	}))
	testkit.Must(b, failed)
}
