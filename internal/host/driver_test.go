package host

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/probe"
)

// program writes a shell script that stands for a VMM's program.
func program(t *testing.T, name, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestChooseDriver(t *testing.T) {
	qemu := program(t, "qemu", "echo QEMU emulator version 7.2.22")
	const none = "/no/such/program"
	for _, tc := range []struct {
		name   string
		cfg    DriverConfig
		driver string // "" for an error
		want   string // in the line that is printed, or in the error
	}{
		{"QEMU configured", DriverConfig{Name: QEMU, QEMU: qemu, Firecracker: none}, QEMU, "configured"},
		{"no Firecracker", DriverConfig{QEMU: qemu, Firecracker: none}, QEMU, "software emulation"},
		{"a Firecracker that does not run", DriverConfig{Name: Auto, QEMU: qemu, Firecracker: program(t, "firecracker", "exit 1")}, QEMU, "software emulation"},
		{"no VMM", DriverConfig{QEMU: none, Firecracker: none}, "", "apt-get install qemu-system-x86"},
		{"a QEMU that does not run", DriverConfig{Name: QEMU, QEMU: program(t, "qemu", "exit 1")}, "", "QEMU does not run"},
		{"Firecracker configured, but missing", DriverConfig{Name: Firecracker, QEMU: qemu, Firecracker: none}, "", "does not work here"},
		{"QEMU with KVM configured, but missing", DriverConfig{Name: QEMUKVM, QEMU: none, Firecracker: none}, "", "does not work here"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			h := &Host{cfg: Config{StateDir: t.TempDir(), RunDir: t.TempDir(), Driver: tc.cfg, Out: &out, Log: slog.New(slog.DiscardHandler)}}
			h.guest.Kernel.Image = program(t, "kernel", "") // where KVM works, a probe reads it and fails
			err := h.chooseDriver(t.Context())
			if tc.driver == "" {
				if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("chooseDriver() = %v, want a failed precondition with %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Driver.Name() != tc.driver || !strings.Contains(out.String(), tc.want) {
				t.Errorf("chose %s and said %q, want %s and %q", h.Driver.Name(), &out, tc.driver, tc.want)
			}
		})
	}
}

// works and fails are attempts whose probe has had that result.
func works(name string) attempt {
	return attempt{name, name, func(context.Context) (vm.Driver, probe.Verdict, error) {
		return named{name: name}, probe.Verdict{Works: true, Reason: "the guest kernel booted"}, nil
	}}
}

func fails(name string) attempt {
	return attempt{name, name, func(context.Context) (vm.Driver, probe.Verdict, error) { return not("%s hangs", name) }}
}

func TestTheFirstDriverThatWorks(t *testing.T) {
	for _, tc := range []struct {
		name     string
		forced   string
		attempts []attempt
		driver   string // "" for an error
		others   []string
	}{
		{"Firecracker works", Auto, []attempt{works(Firecracker), works(QEMUKVM)}, Firecracker, nil},
		{"QEMU is second", Auto, []attempt{fails(Firecracker), works(QEMUKVM)}, QEMUKVM, []string{"firecracker does not work here: firecracker hangs"}},
		{"emulation is last", "", []attempt{fails(Firecracker), fails(QEMUKVM)}, QEMU, []string{"firecracker does not work here: firecracker hangs", "qemu-kvm does not work here: qemu-kvm hangs"}},
		{"QEMU with KVM is configured", QEMUKVM, []attempt{fails(QEMUKVM)}, "", nil},
		{"Firecracker is configured", Firecracker, []attempt{fails(Firecracker)}, "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := &Host{cfg: Config{Driver: DriverConfig{Name: tc.forced, QEMU: program(t, "qemu", "echo QEMU emulator version 7.2.22")}}}
			got, err := h.firstOf(t.Context(), tc.attempts)
			if tc.driver == "" {
				if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), tc.forced+" hangs") {
					t.Errorf("firstOf() = %v, want a failed precondition that says why", err)
				}
				return
			}
			if err != nil || got.Name() != tc.driver || !slices.Equal(got.others, tc.others) {
				t.Errorf("firstOf() = %+v, %v; want %s and %q", got, err, tc.driver, tc.others)
			}
		})
	}
}

// What is configured is tried alone.
func TestAttempts(t *testing.T) {
	for name, want := range map[string]string{Auto: Firecracker + " " + QEMUKVM, "": Firecracker + " " + QEMUKVM, Firecracker: Firecracker, QEMUKVM: QEMUKVM} {
		var got []string
		for _, a := range (&Host{cfg: Config{Driver: DriverConfig{Name: name}}}).attempts() {
			got = append(got, a.name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("with %q it tries %q, want %q", name, got, want)
		}
	}
}

// Guests on KVM are not given the time and the warm pool of emulated ones.
func TestOnlyQEMUWithoutKVMIsEmulation(t *testing.T) {
	for name, want := range map[string]bool{QEMU: true, QEMUKVM: false, Firecracker: false} {
		h := &Host{Driver: named{name: name}}
		if h.isEmulated() != want || (h.pool() > 0) != want {
			t.Errorf("%s: emulated %t with a pool of %d", name, h.isEmulated(), h.pool())
		}
	}
}

func TestMachinesRunAsOtherUsers(t *testing.T) {
	h := &Host{cfg: Config{Driver: DriverConfig{Name: QEMU, QEMU: program(t, "qemu", "echo QEMU emulator version 10.0.2")}, Out: &bytes.Buffer{}}}
	if err := h.chooseDriver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := h.cfg.Network.FirstUser(machineUIDs); h.firstUID() != want {
		t.Errorf("machines run as users from %d, want %d", h.firstUID(), want)
	}
}

// named stands for a driver that works.
type named struct {
	vm.Driver
	name string
}

func (n named) Name() string { return n.name }

func TestUnjailedMachinesAreRefused(t *testing.T) {
	var out bytes.Buffer
	h := &Host{Driver: named{name: Firecracker}, cfg: Config{Driver: DriverConfig{Jailer: "/no/such/program"}, Out: &out}}
	if err := h.checkJail(); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "driver.unjailed") {
		t.Errorf("checkJail() = %v, want a failed precondition that names driver.unjailed", err)
	}
	h.cfg.Driver.Unjailed = true
	if err := h.checkJail(); err != nil || !strings.Contains(out.String(), "as root") {
		t.Errorf("checkJail() = %v, and said %q", err, &out)
	}
	h.cfg.Driver = DriverConfig{Jailer: program(t, "jailer", "")}
	if err := h.checkJail(); err != nil {
		t.Error(err)
	}
}
