package vault_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/testkit"
)

func newKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secrets.key")
	testkit.Must(t, vault.Create(path))
	return path
}

func load(t *testing.T, files ...string) *vault.Vault {
	t.Helper()
	v, err := vault.Load(files)
	testkit.Must(t, err)
	return v
}

// TestRotation: the first key encrypts, each of them decrypts.
func TestRotation(t *testing.T) {
	t.Parallel()
	before, after := newKey(t), newKey(t)
	value := []byte("a\x00value")
	sealed, err := load(t, before).Seal("team/id", value)
	testkit.Must(t, err)
	both := load(t, after, before)
	if got, err := both.Open("team/id", sealed); err != nil || !bytes.Equal(got, value) {
		t.Errorf("opened %q, %v", got, err)
	}
	again, err := both.Seal("team/id", value)
	testkit.Must(t, err)
	if got, err := load(t, after).Open("team/id", again); err != nil || !bytes.Equal(got, value) {
		t.Errorf("opened %q, %v", got, err)
	}
	if _, err := load(t, before).Open("team/id", again); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("without its key: %v", err)
	}
	if both.KeyID() == load(t, before).KeyID() || bytes.Contains(again, []byte("value")) || bytes.Contains(again, []byte("team")) {
		t.Errorf("sealed by %s: %q", both.KeyID(), again)
	}
}

// TestRefused: what was changed, or belongs to another secret.
func TestRefused(t *testing.T) {
	t.Parallel()
	v := load(t, newKey(t))
	sealed, err := v.Seal("team/id", []byte("value"))
	testkit.Must(t, err)
	for _, other := range []string{"", "team", "team/id2", "team/i"} {
		if got, err := v.Open(other, sealed); err == nil {
			t.Errorf("as %q it is %q", other, got)
		}
	}
	for _, at := range []int{0, len(sealed) / 2, len(sealed) - 1} {
		bad := bytes.Clone(sealed)
		bad[at] ^= 1
		if got, err := v.Open("team/id", bad); err == nil {
			t.Errorf("with another byte %d it is %q", at, got)
		}
	}
	none := load(t)
	if _, err := none.Seal("x", nil); wrenn.CodeOf(err) != wrenn.FailedPrecondition || none.KeyID() != "" {
		t.Errorf("without keys: %v", err)
	}
}

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	path := newKey(t)
	first := load(t, path).KeyID()
	testkit.Must(t, vault.Create(path)) // stays
	if load(t, path).KeyID() != first {
		t.Error("a key was replaced")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key has %v, %v", info.Mode(), err)
	}
	testkit.Must(t, os.Chmod(path, 0o644))
	const text = "AGE-SECRET-KEY-NOT"
	bad := filepath.Join(t.TempDir(), "bad")
	testkit.Must(t, os.WriteFile(bad, []byte(text), 0o600))
	for _, file := range []string{path, bad, filepath.Join(t.TempDir(), "none")} {
		if _, err := vault.Load([]string{file}); err == nil || strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", file, err)
		}
	}
}
