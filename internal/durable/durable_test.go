package durable

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFileReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, want := range []string{"old", "new and longer"} {
		if err := WriteFile(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("content = %q, %v; want %q", got, err, want)
		}
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Errorf("mode = %v", info.Mode())
	}
	onlyEntry(t, filepath.Dir(path))
}

func TestWriteFileThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "d") // a directory cannot be replaced by a file
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(target, []byte("x"), 0o644); err == nil {
		t.Error("WriteFile over a directory succeeded")
	}
	onlyEntry(t, dir)
}

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	staged, final := filepath.Join(dir, "staged"), filepath.Join(dir, "final")
	if err := os.Mkdir(staged, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(staged, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Publish(staged, final); err != nil {
		t.Fatal(err)
	}
	onlyEntry(t, dir)
	if got, err := os.ReadFile(filepath.Join(final, "f")); err != nil || string(got) != "x" {
		t.Errorf("published content = %q, %v", got, err)
	}
	if err := os.Mkdir(staged, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Publish(staged, final); err == nil {
		t.Error("Publish over a full directory succeeded")
	}
}

func onlyEntry(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("%s holds %v, want one entry", dir, entries)
	}
}
