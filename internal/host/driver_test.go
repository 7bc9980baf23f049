package host

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn"
	"wrenn/internal/vm"
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
		{"no Firecracker", DriverConfig{QEMU: qemu, Firecracker: none}, QEMU, "software emulation, because"},
		{"a Firecracker that does not run", DriverConfig{Name: Auto, QEMU: qemu, Firecracker: program(t, "firecracker", "exit 1")}, QEMU, "software emulation, because"},
		{"no VMM", DriverConfig{QEMU: none, Firecracker: none}, "", "apt-get install qemu-system-x86"},
		{"a QEMU that does not run", DriverConfig{Name: QEMU, QEMU: program(t, "qemu", "exit 1")}, "", "QEMU does not run"},
		{"Firecracker configured, but missing", DriverConfig{Name: Firecracker, QEMU: qemu, Firecracker: none}, "", "Firecracker does not work here"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			h := &Host{cfg: Config{StateDir: t.TempDir(), RunDir: t.TempDir(), Driver: tc.cfg, Out: &out, Log: slog.New(slog.DiscardHandler)}}
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

func TestMachinesRunAsOtherUsers(t *testing.T) {
	h := &Host{cfg: Config{Driver: DriverConfig{Name: QEMU, QEMU: program(t, "qemu", "echo QEMU emulator version 10.0.2")}, Out: &bytes.Buffer{}}}
	if err := h.chooseDriver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := h.cfg.Network.FirstUser(machineUIDs); h.firstUID() != want {
		t.Errorf("machines run as users from %d, want %d", h.firstUID(), want)
	}
}

// unjailed stands for a Firecracker that works.
type unjailed struct{ vm.Driver }

func (unjailed) Name() string { return Firecracker }

func TestUnjailedMachinesAreRefused(t *testing.T) {
	var out bytes.Buffer
	h := &Host{Driver: unjailed{}, cfg: Config{Driver: DriverConfig{Jailer: "/no/such/program"}, Out: &out}}
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
