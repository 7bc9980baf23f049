package vmfake

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"wrenn/internal/vm"
	"wrenn/internal/vm/vmtest"
)

func TestConformance(t *testing.T) {
	host := NewHost()
	var places atomic.Int32
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	vmtest.Run(t, vmtest.Harness{
		Driver:       func(*testing.T) vm.Driver { return New(host) },
		Failing:      func(_ *testing.T, step string) vm.Driver { return &Driver{host: host, Fail: step} },
		StartSteps:   Steps(),
		RestoreSteps: Steps(),
		Place: func(*testing.T) vmtest.Place {
			return vmtest.Place{NIC: vm.NIC{Namespace: fmt.Sprint(places.Add(1)), TAP: "tap0", MAC: "02:fc:00:00:00:05"}}
		},
		Guest: func(_ *testing.T, p vmtest.Place) vmtest.Guest { return host.Guest(p.NIC.Namespace) },
		Elsewhere: func(t *testing.T, spec vm.Spec, snapshot string) vm.Ref {
			d := New(host) // another driver on the same host is another agent
			start := func() (vm.Machine, error) { return d.Start(t.Context(), spec) }
			if snapshot != "" {
				start = func() (vm.Machine, error) { return d.Restore(t.Context(), spec, snapshot) }
			}
			m, err := start()
			if err != nil {
				t.Fatal(err)
			}
			return m.Ref()
		},
		Kill:   func(_ *testing.T, ref vm.Ref) { host.Kill(ref) },
		Kernel: vm.Kernel{Image: kernel},
		VCPUs:  1, MemoryMiB: 64,
		Leftovers: func(_ *testing.T, spec vm.Spec) []string {
			if m := host.in(spec.Net.Namespace); m != nil {
				return []string{"fake machine " + m.ref.ID}
			}
			return nil
		},
	})
}
