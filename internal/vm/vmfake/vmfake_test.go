package vmfake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmtest"
)

var _ vmtest.Guest = (*Guest)(nil)

func kernel(t *testing.T) vm.Kernel {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(path, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Kernel{Image: path}
}

func TestConformance(t *testing.T) {
	var world World
	var places atomic.Int32
	steps := StartSteps()
	vmtest.Run(t, vmtest.Harness{
		Driver: func(*testing.T) vm.Driver { return New(Config{World: &world}) },
		Failing: func(_ *testing.T, step string) vm.Driver {
			return New(Config{World: &world, Hook: FailAt(step)})
		},
		StartSteps: steps, RestoreSteps: steps,
		Place: func(*testing.T) vmtest.Place {
			return vmtest.Place{
				NIC: vm.NIC{Namespace: fmt.Sprint("place-", places.Add(1)), TAP: "tap0", MAC: "02:fc:00:00:00:05"},
				Dial: func(context.Context, string, string) (net.Conn, error) {
					return nil, errors.New("a fake has no network")
				},
			}
		},
		Guest: func(_ *testing.T, p vmtest.Place) vmtest.Guest { return world.Guest(p.NIC.Namespace) },
		Elsewhere: func(t *testing.T, spec vm.Spec, snapshot string) vm.Ref {
			t.Helper()
			other := New(Config{World: &world})
			start := other.Start
			if snapshot != "" {
				start = func(ctx context.Context, spec vm.Spec) (vm.Machine, error) { return other.Restore(ctx, spec, snapshot) }
			}
			m, err := start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			return m.Ref()
		},
		Kill: func(_ *testing.T, ref vm.Ref) { world.Kill(ref) },
		Leftovers: func(_ *testing.T, spec vm.Spec) (left []string) {
			for _, ref := range world.Running() {
				if ref.ID == spec.ID {
					left = append(left, "machine "+ref.ID)
				}
			}
			return left
		},
		Kernel: kernel(t), VCPUs: 1, MemoryMiB: 64,
	})
}

// spec is of a machine without a network.
func spec(t *testing.T) vm.Spec {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmf") //nolint:usetesting // t.TempDir's names are too long for a machine
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return vm.Spec{ID: "one", Dir: dir, VCPUs: 1, MemoryMiB: 64, Kernel: kernel(t)}
}

// Whatever way a machine ends, what its guest began is ended, once.
func TestTheGuestsProgramIsEndedOnce(t *testing.T) {
	type machine struct {
		*World
		vm.Machine
		*Guest
	}
	ctx := t.Context()
	for name, end := range map[string]func(machine) error{
		"Stop": func(m machine) error { return errors.Join(m.Stop(ctx), m.Stop(ctx)) },
		"Kill": func(m machine) error {
			m.Kill(m.Ref())
			m.Kill(m.Ref())
			return m.Stop(ctx)
		},
		"PowerOff": func(m machine) error { return m.PowerOff(ctx) },
		"Die":      func(m machine) error { return m.Die("exit status 1") },
	} {
		t.Run(name, func(t *testing.T) {
			var booted *Guest
			stops := 0
			w := &World{Boot: func(g *Guest) (func(), error) {
				booted = g
				return func() { stops++ }, nil
			}}
			m, err := New(Config{World: w}).Start(t.Context(), spec(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := end(machine{w, m, booted}); err != nil {
				t.Error(err)
			}
			if stops != 1 || len(w.Running()) != 0 {
				t.Errorf("the guest's program was ended %d times, and %v run", stops, w.Running())
			}
		})
	}
}

// A guest may be gone before Start has returned.
func TestAGuestThatDiesAtOnce(t *testing.T) {
	stops := 0
	w := &World{Boot: func(g *Guest) (func(), error) {
		return func() { stops++ }, errors.Join(g.Print("no init\n"), g.Panic(t.Context()))
	}}
	m, err := New(Config{World: w}).Start(t.Context(), spec(t))
	if err != nil {
		t.Fatal(err)
	}
	exit, ok := errors.AsType[*vm.ExitError](m.Wait(t.Context()))
	if !ok || exit.Reason != "guest panicked" || exit.Console != "no init\n" {
		t.Errorf("Wait() = %+v", exit)
	}
	if stops != 1 {
		t.Errorf("the guest's program was ended %d times", stops)
	}
}

func TestAGuestThatCannotBoot(t *testing.T) {
	w := &World{Boot: func(*Guest) (func(), error) { return nil, errors.New("no such guest") }}
	s := spec(t)
	if _, err := New(Config{World: w}).Start(t.Context(), s); err == nil {
		t.Error("Start succeeded")
	}
	if err := vm.CheckEmpty(s.Dir); err != nil || len(w.Running()) != 0 {
		t.Errorf("left: %v, %v", err, w.Running())
	}
}

func TestSnapshotFailuresLeaveNothing(t *testing.T) {
	for _, step := range SnapshotSteps() {
		t.Run(step, func(t *testing.T) {
			m, err := New(Config{World: &World{}, Hook: FailAt(step)}).Start(t.Context(), spec(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := m.Snapshot(t.Context(), dir); err == nil {
				t.Error("Snapshot succeeded")
			}
			if err := vm.CheckEmpty(dir); err != nil {
				t.Error(err)
			}
		})
	}
}

// Two machines cannot have one TAP, as in the kernel.
func TestATAPIsForOneMachine(t *testing.T) {
	d := New(Config{World: &World{}})
	first, second := spec(t), spec(t)
	first.Net = vm.NIC{Namespace: "n", TAP: "tap0", MAC: "02:fc:00:00:00:05"}
	second.Net = first.Net
	m, err := d.Start(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(t.Context(), second); err == nil {
		t.Error("a second machine has the TAP")
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(t.Context(), second); err != nil {
		t.Errorf("after the first is gone: %v", err)
	}
}
