//go:build vm

package qemu

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmtest"
)

// BenchmarkMachine measures what docs/machines.md says, to be compared with
// runs on the same host only.
func BenchmarkMachine(b *testing.B) {
	for _, mib := range []int{256, 512, 2048} {
		b.Run(fmt.Sprintf("%dMiB", mib), func(b *testing.B) { benchmarkMachine(b, mib) })
	}
}

func benchmarkMachine(b *testing.B, mib int) {
	b.Helper()
	store, err := storage.Open(b.Context(), b.TempDir())
	testkit.Must(b, err)
	b.Cleanup(func() { testkit.Must(b, store.Close()) })
	l := &bench{b: b, d: testDriver(b), kernel: testKernel(b), dir: store.Dir, mib: mib}
	disk := filepath.Join(l.dir, "rootfs") // where clones are cheap
	_, err = storage.Clone(b.Context(), disk, testFile(b, "WRENN_TEST_ROOTFS"), 0o600)
	testkit.Must(b, err)
	base := filepath.Join(l.dir, "base")
	b.Run("boot", func(b *testing.B) {
		for b.Loop() {
			m := l.make(b, disk, "")
			if _, err := os.Stat(base); err != nil {
				b.StopTimer()
				l.snapshot(b, m, base)
				b.StartTimer()
			}
			b.ReportMetric(pss(b, m), "PSS-MiB")
			testkit.Must(b, m.Stop(b.Context()))
		}
	})
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			m := l.make(b, disk, base)
			b.ReportMetric(pss(b, m), "PSS-MiB")
			testkit.Must(b, m.Stop(b.Context()))
		}
	})
	b.Run("second snapshot", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			m := l.make(b, disk, base)
			l.snapshot(b, m, filepath.Join(l.dir, fmt.Sprintf("again%d", i)))
			testkit.Must(b, m.Stop(b.Context()))
		}
	})
	b.Run("ten restores", func(b *testing.B) {
		for b.Loop() {
			l.ten(b, disk, base)
		}
	})
}

type bench struct {
	b      *testing.B
	d      *Driver
	kernel vm.Kernel
	dir    string
	mib, n int
	mu     sync.Mutex // guards n
}

// make returns a machine whose agent answers. What it is made of is prepared
// off the clock, unless ten are made at once.
func (l *bench) make(b *testing.B, disk, snapshot string) vm.Machine {
	b.Helper()
	b.StopTimer()
	spec, place := l.prepare(b, disk)
	b.StartTimer()
	m, err := l.ready(b.Context(), spec, place, snapshot)
	testkit.Must(b, err)
	b.StopTimer()
	defer b.StartTimer()
	return m
}

func (l *bench) prepare(b *testing.B, disk string) (vm.Spec, vmtest.Place) {
	b.Helper()
	l.mu.Lock()
	l.n++
	n := l.n
	l.mu.Unlock()
	clone := filepath.Join(l.dir, fmt.Sprintf("disk%d", n))
	_, err := storage.Clone(b.Context(), clone, disk, 0o600)
	testkit.Must(b, err)
	dir, err := os.MkdirTemp("", "vmb") //nolint:usetesting // b.TempDir's names are too long for a socket
	testkit.Must(b, err)
	b.Cleanup(func() { testkit.Must(b, os.RemoveAll(dir)) })
	place := testPlace(b)
	return vm.Spec{
		ID: fmt.Sprintf("bench-%d-%d", os.Getpid(), n), Dir: dir, VCPUs: 1, MemoryMiB: l.mib,
		Kernel: l.kernel, Disks: []vm.Disk{{Path: clone}}, Net: place.NIC, UID: 64_300, GID: 64_300,
	}, place
}

func (l *bench) ready(ctx context.Context, spec vm.Spec, place vmtest.Place, snapshot string) (m vm.Machine, err error) {
	if snapshot == "" {
		m, err = l.d.Start(ctx, spec)
	} else {
		m, err = l.d.Restore(ctx, spec, snapshot)
	}
	if err != nil {
		return nil, err
	}
	agent := envdclient.New(envdclient.Config{Dial: place.Dial, Address: net.JoinHostPort(guestAddr, envdPort)})
	defer agent.Close()
	return m, agent.WaitReady(ctx, m.Wait)
}

// snapshot takes one, and says for how long the guest stood still, and for how
// long it would if the devices' state alone were saved.
func (l *bench) snapshot(b *testing.B, m vm.Machine, dir string) {
	b.Helper()
	ctx := b.Context()
	testkit.Must(b, os.Mkdir(dir, 0o700))
	began := time.Now()
	testkit.Must(b, m.(vm.SnapshotPreparer).PrepareSnapshot(ctx, dir))
	prepared := time.Since(began)
	began = time.Now()
	testkit.Must(b, m.Pause(ctx))
	testkit.Must(b, m.Snapshot(ctx, dir))
	testkit.Must(b, m.Resume(ctx))
	stopped := time.Since(began)
	bare := filepath.Join(b.TempDir(), "state")
	began = time.Now()
	testkit.Must(b, m.Pause(ctx))
	testkit.Must(b, m.(*machine).saveState(ctx, bare))
	testkit.Must(b, m.Resume(ctx))
	b.Logf("snapshot: prepared in %v, stopped for %v, of it %v for the state alone; %d KiB of state and %d MiB of memory",
		prepared, stopped, time.Since(began), size(b, filepath.Join(dir, privateName, stateName))>>10, size(b, filepath.Join(dir, privateName, memoryName))>>20)
	b.ReportMetric(stopped.Seconds()*1e3, "stopped-ms")
}

func (l *bench) ten(b *testing.B, disk, base string) {
	b.Helper()
	const n = 10
	var specs [n]vm.Spec
	var places [n]vmtest.Place
	var machines [n]vm.Machine
	b.StopTimer()
	for i := range n {
		specs[i], places[i] = l.prepare(b, disk)
	}
	b.StartTimer()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var err error
			if machines[i], err = l.ready(b.Context(), specs[i], places[i], base); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	sum := 0.0
	for _, m := range machines {
		sum += pss(b, m)
	}
	b.ReportMetric(sum/n, "PSS-MiB")
	for _, m := range machines {
		testkit.Must(b, m.Stop(b.Context()))
	}
	b.StartTimer()
}

// size is what a file takes on the disk.
func size(b *testing.B, path string) int64 {
	b.Helper()
	var st syscall.Stat_t
	testkit.Must(b, syscall.Stat(path, &st))
	return st.Blocks * 512
}

var pssLine = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB$`)

// pss is the memory of a VMM, with what it shares counted in parts.
func pss(b *testing.B, m vm.Machine) float64 {
	b.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", m.Ref().PID))
	testkit.Must(b, err)
	kb, err := strconv.Atoi(string(pssLine.FindSubmatch(rollup)[1]))
	testkit.Must(b, err)
	return float64(kb) / 1024
}
