//go:build nested

package nested

import (
	"os"
	"path/filepath"
	"testing"

	"wrenn/internal/storage"
)

// The guest that is booted inside L1, on L1's disk and in the environment.
var guestFiles = []struct{ env, name string }{
	{"WRENN_TEST_KERNEL", "vmlinux"},
	{"WRENN_TEST_INITRD", "initrd"},
	{"WRENN_TEST_ROOTFS", "rootfs.ext4"},
}

// putGuest puts the guest's files below root and returns the environment that
// names them there.
func putGuest(t *testing.T, root string) []string {
	t.Helper()
	var env []string
	must(t, os.MkdirAll(filepath.Join(root, "guest"), 0o755))
	for _, f := range guestFiles {
		from := os.Getenv(f.env)
		if from == "" {
			skip(t, "the guest is missing: set "+f.env+" (bin/host-agent image prepare --export)")
		}
		_, err := storage.Clone(t.Context(), filepath.Join(root, "guest", f.name), from, 0o644)
		must(t, err)
		env = append(env, f.env+"=/guest/"+f.name)
	}
	return env
}
