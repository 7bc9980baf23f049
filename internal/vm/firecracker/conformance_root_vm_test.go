//go:build root && vm

package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmtest"
)

func TestMain(m *testing.M) {
	vmtest.Main(m, func() (vm.Driver, error) { return New(context.Background(), configFromEnv()) })
}

// firstUID is the first of the users that the tests' VMMs run as.
const firstUID = 2_000_100_000

func configFromEnv() Config {
	return Config{
		Program: os.Getenv("WRENN_TEST_FIRECRACKER"),
		Jailer:  os.Getenv("WRENN_TEST_JAILER"),
		Log:     slog.New(slog.DiscardHandler),
	}
}

func TestConformance(t *testing.T) { vmtest.Run(t, harness(t, firstUID)) }

// TestConformanceWithoutJailer is what a developer's machine runs.
func TestConformanceWithoutJailer(t *testing.T) { vmtest.Run(t, harness(t, 0)) }

// harness is the suite's, for real guests; uid 0 is without the jailer.
func harness(t *testing.T, uid uint32) vmtest.Harness {
	t.Helper()
	env := map[string]string{}
	for _, name := range []string{"WRENN_TEST_FIRECRACKER", "WRENN_TEST_JAILER", "WRENN_TEST_KERNEL", "WRENN_TEST_INITRD", "WRENN_TEST_ROOTFS"} {
		env[name] = needEnv(t, name)
	}
	slots := openSlots(t)
	return vmtest.Harness{
		Driver:       working,
		Failing:      failing,
		StartSteps:   []string{"directory", "files", "launch", "connect", "machine", "boot source", "disks", "network", "entropy", "start"},
		RestoreSteps: []string{"directory", "files", "launch", "connect", "load"},
		Place: func(t *testing.T) vmtest.Place {
			t.Helper()
			slot, err := slots.Acquire(t.Context(), t.Name())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := slot.Release(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
			return vmtest.Place{NIC: vm.NIC{Namespace: slot.Namespace(), TAP: slot.TAP(), MAC: slot.MAC()}, Dial: slot.DialContext}
		},
		Guest: func(t *testing.T, p vmtest.Place) vmtest.Guest {
			t.Helper()
			// A guest cannot power the machine off: it resets it, see bootArgs.
			return vmtest.Envd(t, p, vmtest.EnvdConfig{Address: network.EnvdAddress, PowerOff: "b"})
		},
		Elsewhere:   vmtest.Elsewhere,
		Kill:        vmtest.Kill,
		FillConsole: vmtest.FillConsole,
		Leftovers: func(_ *testing.T, spec vm.Spec) []string {
			left, _ := filepath.Glob(filepath.Join(launch.CgroupRoot, launch.CgroupParent, spec.ID))
			return left
		},
		Kernel: vm.Kernel{Image: env["WRENN_TEST_KERNEL"], Initrd: env["WRENN_TEST_INITRD"], Args: []string{
			"root=/dev/vda", "rw", "ip=169.254.0.21::169.254.0.22:255.255.255.252:sandbox:eth0:off", "init=/usr/local/bin/wrenn-init",
		}},
		RootFS: env["WRENN_TEST_ROOTFS"], VCPUs: 1, MemoryMiB: 256, UID: uid,
	}
}

func needEnv(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" && os.Getenv("WRENN_CI") == "1" {
		t.Fatalf("%s is not set, and WRENN_CI=1 allows nothing to be left out", name)
	}
	if value == "" {
		t.Skipf("%s is not set", name)
	}
	return value
}

func openSlots(t *testing.T) *network.Pool {
	t.Helper()
	pool, err := network.Open(t.Context(), network.Config{Prefix: "fctest", Ready: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return pool
}

func newDriver(t *testing.T) *Driver {
	t.Helper()
	d, err := New(t.Context(), configFromEnv())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func working(t *testing.T) vm.Driver {
	t.Helper()
	return newDriver(t)
}

func failing(t *testing.T, step string) vm.Driver {
	t.Helper()
	d := newDriver(t)
	d.runner.Hook = func(at string) error {
		if at == step {
			return errors.New("injected: " + step)
		}
		return nil
	}
	return d
}

// TestVMMHasLimits looks at the limits of a jailed VMM, and at a cgroup as QEMU's
// driver makes it: only where this test runs in continuous integration there is a
// cgroup2 hierarchy with all controllers.
func TestVMMHasLimits(t *testing.T) {
	if !launch.CgroupsLimit() {
		t.Fatal("this machine has no cgroups that limit")
	}
	h := harness(t, firstUID)
	dir, err := os.MkdirTemp("", "fcl") //nolint:usetesting // t.TempDir's names are too long for a machine
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, os.RemoveAll(dir)) })
	testkit.Must(t, os.Chmod(dir, 0o711))
	disk := filepath.Join(t.TempDir(), "disk")
	testkit.Must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	spec := vm.Spec{
		ID: "limits", Dir: dir, VCPUs: 2, MemoryMiB: 128, Kernel: h.Kernel, Disks: []vm.Disk{{Path: disk}},
		Net: h.Place(t).NIC, UID: firstUID, GID: firstUID,
	}
	m, err := newDriver(t).Start(t.Context(), spec)
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, m.Stop(context.WithoutCancel(t.Context()))) })

	group := filepath.Join(launch.CgroupRoot, launch.CgroupParent, spec.ID)
	proc := fmt.Sprintf("/proc/%d", m.Ref().PID)
	procs, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	testkit.Must(t, err)
	if !slices.Contains(strings.Fields(string(procs)), fmt.Sprint(m.Ref().PID)) { // KVM has a thread in it, too
		t.Errorf("the VMM %d is not in its cgroup, which has %q", m.Ref().PID, procs)
	}
	wantContent(t, filepath.Join(group, "cpu.max"), "300000 100000")
	wantContent(t, filepath.Join(group, "cpu.weight"), "300")
	wantContent(t, filepath.Join(group, "memory.max"), fmt.Sprint((2*128+vmmMemoryMiB)<<20))
	wantContent(t, filepath.Join(proc, "oom_score_adj"), "500")
	limits, err := os.ReadFile(filepath.Join(proc, "limits"))
	testkit.Must(t, err)
	if _, rest, _ := strings.Cut(string(limits), "Max file size"); !strings.HasPrefix(strings.TrimSpace(rest), fmt.Sprint(128<<20)+" ") {
		t.Errorf("the largest file is %.40q", rest)
	}

	made, err := launch.MakeCgroup("limits-of-qemu", launch.CgroupLimits{MemoryBytes: 64 << 20, Tasks: 9, CPUs: 1})
	testkit.Must(t, err)
	wantContent(t, filepath.Join(made, "memory.max"), fmt.Sprint(64<<20))
	wantContent(t, filepath.Join(made, "pids.max"), "9")
	open, err := os.Open(made)
	testkit.Must(t, err)
	defer open.Close()
	p, err := launch.Start(launch.Command{Path: os.Args[0], Args: []string{"-test.run=^$"}, Cgroup: open})
	testkit.Must(t, err)
	_, err = p.Wait(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, launch.RemoveCgroup(t.Context(), made))
}

func wantContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("%s = %q, %v; want %q", path, got, err, want)
	}
}
