package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/vm"
)

// aSnapshot writes a snapshot that fits the driver and shape that it returns.
func aSnapshot(t *testing.T) (dir string, d *Driver, made manifest) {
	t.Helper()
	d = &Driver{version: Version{Major: 1, Minor: 16, Patch: 1}}
	made = manifest{
		Format: manifestFormat, Version: d.version, CPU: vm.HostProcessor(), Kernel: "k1", MemorySize: 64 << 20,
		Machine: shape{VCPUs: 1, MemoryMiB: 64, Disks: []diskShape{{Size: 5}}, TAP: "tap0", MAC: "02:fc:00:00:00:05"},
	}
	dir = t.TempDir()
	write(t, filepath.Join(dir, stateFile), "abc")
	var err error
	if made.State, err = vm.SumFile(filepath.Join(dir, stateFile)); err != nil {
		t.Fatal(err)
	}
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
	path := filepath.Join(dir, manifestFile)
	_ = os.Remove(path) // the first time there is none
	if err := vm.WriteManifest(path, made); err != nil {
		t.Fatal(err)
	}
}

func TestCheckSnapshot(t *testing.T) {
	dir, d, want := aSnapshot(t)
	got, err := d.checkSnapshot(want.Machine, "", dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	elsewhere := want.Machine
	elsewhere.TAP = "tap7"
	if _, err := d.checkSnapshot(elsewhere, "k1", dir); err != nil {
		t.Errorf("another TAP: %v", err)
	}
}

func TestCheckSnapshotRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(made *manifest, want *shape)
		says  string
	}{
		"format":      {func(made *manifest, _ *shape) { made.Format++ }, "format 3"},
		"version":     {func(made *manifest, _ *shape) { made.Version.Minor++ }, "Firecracker 1.17.1"},
		"processor":   {func(made *manifest, _ *shape) { made.CPU = "i486" }, "another processor: i486"},
		"kernel":      {func(made *manifest, _ *shape) { made.Kernel = "k2" }, `the kernel "k2", not "k1"`},
		"vCPUs":       {func(_ *manifest, want *shape) { want.VCPUs++ }, "vCPUs"},
		"memory":      {func(_ *manifest, want *shape) { want.MemoryMiB += 2 }, "MiB of memory"},
		"disks":       {func(_ *manifest, want *shape) { want.Disks = nil }, "disks"},
		"disk's size": {func(_ *manifest, want *shape) { want.Disks = []diskShape{{Size: 6}} }, "other sizes"},
		"read-only":   {func(_ *manifest, want *shape) { want.Disks = []diskShape{{Size: 5, ReadOnly: true}} }, "read-only"},
		"no network":  {func(_ *manifest, want *shape) { want.TAP, want.MAC = "", "" }, "network"},
		"MAC":         {func(_ *manifest, want *shape) { want.MAC = "02:fc:00:00:00:06" }, "MAC"},
		"cut memory": {func(made *manifest, want *shape) {
			made.MemorySize, made.Machine.MemoryMiB, want.MemoryMiB = 66<<20, 66, 66
		}, "memory has 67108864 bytes"},
		"longer state":   {func(made *manifest, _ *shape) { made.State.Size++ }, "state has 3 bytes"},
		"another state":  {func(made *manifest, _ *shape) { made.State.SHA256 = "00" }, "state: it is not what was written"},
		"memory's claim": {func(made *manifest, _ *shape) { made.MemorySize++ }, manifestFile},
	} {
		t.Run(name, func(t *testing.T) {
			dir, d, made := aSnapshot(t)
			want := made.Machine
			c.spoil(&made, &want)
			writeManifest(t, dir, made)
			_, err := d.checkSnapshot(want, "k1", dir)
			if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), c.says) {
				t.Errorf("checkSnapshot() = %v, want FailedPrecondition with %q", err, c.says)
			}
		})
	}
}

func TestCheckSnapshotWithoutManifest(t *testing.T) {
	dir, d, made := aSnapshot(t)
	for _, text := range []string{"", "{", "[]", `{"format":2,"version":"x"}`} {
		write(t, filepath.Join(dir, manifestFile), text)
		if _, err := d.checkSnapshot(made.Machine, "", dir); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("manifest %q: %v, want FailedPrecondition", text, err)
		}
	}
	if _, err := d.checkSnapshot(made.Machine, "", t.TempDir()); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("an empty directory: %v, want FailedPrecondition", err)
	}
}

// memoryIn makes a directory with a memory file of the given content.
func memoryIn(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, memoryFile), content)
	return dir
}

// wantClone checks what is in a snapshot's directory before the VMM writes: a
// memory file with the content, or with "" none.
func wantClone(t *testing.T, dir, content string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, memoryFile))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil || string(got) != content {
		t.Errorf("the clone holds %q, %v; want %q", got, err, content)
	}
}

func TestLineage(t *testing.T) {
	ctx := t.Context()
	prepare := func(l *lineage, dir string) {
		t.Helper()
		if err := l.prepare(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	ready := func(l *lineage, dir, content string) {
		t.Helper()
		if err := l.ready(ctx, dir); err != nil {
			t.Fatal(err)
		}
		wantClone(t, dir, content)
	}
	var l lineage
	defer l.end()
	ready(&l, t.TempDir(), "") // it has no base: all is written

	first := memoryIn(t, "first")
	l.begin(first)
	if err := os.RemoveAll(first); err != nil { // its name is not needed any more
		t.Fatal(err)
	}
	ready(&l, t.TempDir(), "first")

	early := t.TempDir()
	prepare(&l, early)
	wantClone(t, early, "first")
	ready(&l, early, "first")
	if err := l.ready(ctx, early); wrenn.CodeOf(err) != wrenn.FailedPrecondition { // prepared once, and used
		t.Errorf("ready in a directory in use = %v, want FailedPrecondition", err)
	}

	early = t.TempDir()
	prepare(&l, early)
	ready(&l, t.TempDir(), "first") // another snapshot came between
	l.begin(memoryIn(t, "second"))
	ready(&l, early, "second")

	early = t.TempDir()
	prepare(&l, early)
	l.end() // a snapshot failed between
	ready(&l, early, "")

	l.begin(t.TempDir()) // no memory there
	if l.known() {
		t.Error("a base that is not there is known")
	}
}

func TestAdoptKnowsOfSnapshots(t *testing.T) {
	c := &jail{dir: t.TempDir()}
	if c.wasSnapshotted() {
		t.Error("a new machine was snapshotted")
	}
	for range 2 {
		if err := c.recordSnapshot(); err != nil {
			t.Fatal(err)
		}
	}
	if !c.wasSnapshotted() {
		t.Error("the note was not found")
	}
}
