package firecracker

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn"
)

// aSnapshot writes a snapshot that fits the driver and shape that it returns.
func aSnapshot(t *testing.T) (dir string, d *Driver, made manifest) {
	t.Helper()
	d = &Driver{version: Version{Major: 1, Minor: 16, Patch: 1}}
	made = manifest{
		Format: manifestFormat, Version: d.version, CPU: cpuModel(), StateSize: 3, MemorySize: 64 << 20,
		Machine: shape{VCPUs: 1, MemoryMiB: 64, Disks: []diskShape{{Size: 5}}, TAP: "tap0", MAC: "02:fc:00:00:00:05"},
	}
	dir = t.TempDir()
	write(t, filepath.Join(dir, stateFile), "abc")
	write(t, filepath.Join(dir, memoryFile), "")
	if err := os.Truncate(filepath.Join(dir, memoryFile), made.MemorySize); err != nil {
		t.Fatal(err)
	}
	writeManifest(t, dir, made)
	return dir, d, made
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeManifest(t *testing.T, dir string, made manifest) {
	t.Helper()
	data, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, manifestFile), string(data))
}

func TestCheckSnapshot(t *testing.T) {
	dir, d, want := aSnapshot(t)
	got, err := d.checkSnapshot(want.Machine, dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	elsewhere := want.Machine
	elsewhere.TAP = "tap7"
	if _, err := d.checkSnapshot(elsewhere, dir); err != nil {
		t.Errorf("another TAP: %v", err)
	}
}

func TestCheckSnapshotRefuses(t *testing.T) {
	for name, spoil := range map[string]func(made *manifest, want *shape){
		"format":      func(made *manifest, _ *shape) { made.Format++ },
		"version":     func(made *manifest, _ *shape) { made.Version.Minor++ },
		"processor":   func(made *manifest, _ *shape) { made.CPU = "i486" },
		"vCPUs":       func(_ *manifest, want *shape) { want.VCPUs++ },
		"memory":      func(_ *manifest, want *shape) { want.MemoryMiB += 2 },
		"disks":       func(_ *manifest, want *shape) { want.Disks = nil },
		"disk's size": func(_ *manifest, want *shape) { want.Disks = []diskShape{{Size: 6}} },
		"read-only":   func(_ *manifest, want *shape) { want.Disks = []diskShape{{Size: 5, ReadOnly: true}} },
		"no network":  func(_ *manifest, want *shape) { want.TAP, want.MAC = "", "" },
		"MAC":         func(_ *manifest, want *shape) { want.MAC = "02:fc:00:00:00:06" },
		"cut memory": func(made *manifest, want *shape) {
			made.MemorySize, made.Machine.MemoryMiB, want.MemoryMiB = 66<<20, 66, 66
		},
		"another state":  func(made *manifest, _ *shape) { made.StateSize++ },
		"memory's claim": func(made *manifest, _ *shape) { made.MemorySize++ },
	} {
		t.Run(name, func(t *testing.T) {
			dir, d, made := aSnapshot(t)
			want := made.Machine
			spoil(&made, &want)
			writeManifest(t, dir, made)
			if _, err := d.checkSnapshot(want, dir); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
				t.Errorf("checkSnapshot() = %v, want FailedPrecondition", err)
			} else {
				t.Log(err)
			}
		})
	}
}

func TestCheckSnapshotWithoutManifest(t *testing.T) {
	dir, d, made := aSnapshot(t)
	for _, text := range []string{"", "{", "[]", `{"format":1,"version":"x"}`} {
		write(t, filepath.Join(dir, manifestFile), text)
		if _, err := d.checkSnapshot(made.Machine, dir); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("manifest %q: %v, want FailedPrecondition", text, err)
		}
	}
	if _, err := d.checkSnapshot(made.Machine, t.TempDir()); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("an empty directory: %v, want FailedPrecondition", err)
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"format":1,"version":"1.16.1","machine":{"memory_mib":64},"memory_size":67108864}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		made, err := parseManifest(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(made)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again); err != nil {
			t.Errorf("a manifest that is not read again: %s: %v", again, err)
		}
	})
}

func TestCPUModelOf(t *testing.T) {
	info := "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 2\n\n" +
		"processor\t: 1\nvendor_id\t: Other\n"
	if got := cpuModelOf([]byte(info)); got != "AuthenticAMD 23 1 2" {
		t.Errorf("cpuModelOf() = %q", got)
	}
}
