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
	for i := range good {
		for bit := range 8 {
			good[i] ^= 1 << bit
			if unseal(good, &got) == nil {
				t.Errorf("bit %d of byte %d was flipped, and unseal accepted it", bit, i)
			}
			good[i] ^= 1 << bit
		}
		if unseal(good[:i], &got) == nil {
			t.Errorf("it was cut to %d bytes, and unseal accepted it", i)
		}
	}
	for _, bad := range [][]byte{append(good, '\n'), make([]byte, manifestLimit+1), nil} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ReadManifest(path, &got); err == nil || !strings.Contains(err.Error(), "test.json") {
			t.Errorf("%d bytes: ReadManifest() = %v, want an error that names the file", len(bad), err)
		}
	}
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
