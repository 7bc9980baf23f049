package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestManifestNoticesEveryChange(t *testing.T) {
	type manifest struct {
		Format int      `json:"format"`
		Words  []string `json:"words"`
	}
	path := filepath.Join(t.TempDir(), "test.json")
	want := manifest{1, []string{"a", "b\nc"}}
	if err := WriteManifest(path, want); err != nil {
		t.Fatal(err)
	}
	if err := WriteManifest(path, want); !os.IsExist(err) {
		t.Errorf("WriteManifest over a file = %v", err)
	}
	var got manifest
	if err := ReadManifest(path, &got); err != nil || got.Words[1] != "b\nc" {
		t.Fatalf("ReadManifest() = %+v, %v", got, err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, at int, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ReadManifest(path, &got); err == nil || !strings.Contains(err.Error(), "test.json") {
			t.Errorf("%s at %d: ReadManifest() = %v, want an error that names the file", what, at, err)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := []byte(string(good))
			bad[i] ^= 1 << bit
			refused("a flipped bit", i, bad)
		}
		refused("a cut", i, good[:i])
	}
	refused("more", len(good), append(good, '\n'))
	refused("too much", len(good), make([]byte, manifestLimit+1))
}

func TestFileSumNoticesEveryChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("state")
	sum, err := SumFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := sum.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := make([]byte, 5)
	if n, err := f.Read(text); err != nil || string(text[:n]) != "state" {
		t.Errorf("the opened file starts with %q, %v", text[:n], err)
	}
	for _, bad := range []string{"", "stat", "State", "states"} {
		write(bad)
		if f, err := sum.Open(path); err == nil {
			f.Close()
			t.Errorf("%q was taken for the file", bad)
		}
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add(seal([]byte(`{"format":1}`)))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var into struct{ Format int }
		if unseal(data, &into) == nil && string(seal(data[:len(data)-len("\nsha256:\n")-64])) != string(data) {
			t.Errorf("%q was taken for a manifest", data)
		}
	})
}
