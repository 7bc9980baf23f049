//go:build nested

package nested

import (
	"os"
	"path/filepath"
	"testing"

	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/testkit"
)

// The guest that is booted inside L1, and the environment that names its files.
// Its directory has the same layout as on this machine.
var guestFiles = []string{"WRENN_TEST_KERNEL", "WRENN_TEST_INITRD", "WRENN_TEST_ROOTFS"}

// putGuest puts the guest's files below root and returns the environment that
// names them there, and the state directory that they are in.
func putGuest(t *testing.T, root string) []string {
	t.Helper()
	const state = "/guest"
	env := []string{"WRENN_TEST_IMAGES=" + state}
	for _, name := range guestFiles {
		from := os.Getenv(name)
		if from == "" {
			skip(t, "the guest is missing: set "+name+" (bin/host-agent image prepare --export)")
		}
		where := filepath.Join(state, "images", filepath.Base(filepath.Dir(from)), filepath.Base(from))
		put(t, root, where, from, 0o644)
		env = append(env, name+"="+where)
	}
	return env
}

// put makes root/where a copy of the file from.
func put(t *testing.T, root, where, from string, mode os.FileMode) {
	t.Helper()
	to := filepath.Join(root, where)
	testkit.Must(t, os.MkdirAll(filepath.Dir(to), 0o755))
	_, err := storage.Clone(t.Context(), to, from, mode)
	testkit.Must(t, err)
}
