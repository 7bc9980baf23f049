package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
)

func TestSpecCheck(t *testing.T) {
	good := Spec{
		ID: "i0", Dir: "/run/x", VCPUs: 1, MemoryMiB: 64, Kernel: Kernel{Image: "vmlinux"},
		Disks: []Disk{{Path: "root.ext4"}},
		Net:   NIC{TAP: "tap0", MAC: "02:fc:00:00:00:05"},
	}
	if err := good.Check(true); err != nil {
		t.Fatalf("a good spec: %v", err)
	}
	for name, spoil := range map[string]func(*Spec){
		"no id":            func(s *Spec) { s.ID = "" },
		"path as id":       func(s *Spec) { s.ID = "../x" },
		"long id":          func(s *Spec) { s.ID = strings.Repeat("a", 41) },
		"no directory":     func(s *Spec) { s.Dir = "" },
		"long directory":   func(s *Spec) { s.Dir = strings.Repeat("d", 61) },
		"no vCPU":          func(s *Spec) { s.VCPUs = 0 },
		"many vCPUs":       func(s *Spec) { s.VCPUs = 33 },
		"little memory":    func(s *Spec) { s.MemoryMiB = 62 },
		"odd memory":       func(s *Spec) { s.MemoryMiB = 65 },
		"overflow":         func(s *Spec) { s.MemoryMiB = 1 << 44 },
		"no kernel":        func(s *Spec) { s.Kernel.Image = "" },
		"many disks":       func(s *Spec) { s.Disks = make([]Disk, 9) },
		"disk of nothing":  func(s *Spec) { s.Disks = []Disk{{}} },
		"TAP with options": func(s *Spec) { s.Net.TAP = "tap0,script=/bin/sh" },
		"no MAC":           func(s *Spec) { s.Net.MAC = "" },
		"multicast MAC":    func(s *Spec) { s.Net.MAC = "03:fc:00:00:00:05" },
		"group alone":      func(s *Spec) { s.GID = 5 },
	} {
		bad := good
		spoil(&bad)
		if err := bad.Check(true); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("%s: Check() = %v, want Invalid", name, err)
		}
	}
	good.Kernel = Kernel{}
	if err := good.Check(false); err != nil {
		t.Errorf("a spec to restore: %v", err)
	}
}

func TestCheckEmpty(t *testing.T) {
	dir := t.TempDir()
	if err := CheckEmpty(dir); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{dir, file, filepath.Join(dir, "none")} {
		if err := CheckEmpty(bad); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("CheckEmpty(%s) = %v, want FailedPrecondition", bad, err)
		}
	}
}
