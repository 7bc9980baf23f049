package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// XFS returns a directory on a new file system that can share blocks between files, of
// 320 MiB. It needs root, and goes with the test.
func XFS(tb testing.TB) string {
	tb.Helper()
	dir, image := tb.TempDir(), filepath.Join(tb.TempDir(), "xfs")
	Must(tb, os.WriteFile(image, nil, 0o600))
	Must(tb, os.Truncate(image, 320<<20))
	for _, args := range [][]string{{Program(tb, "mkfs.xfs"), "-q", image}, {Program(tb, "mount"), "-o", "loop", image, dir}} {
		if out, err := exec.CommandContext(tb.Context(), args[0], args[1:]...).CombinedOutput(); err != nil { //nolint:gosec // programs of the test
			tb.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	tb.Cleanup(func() { Must(tb, unix.Unmount(dir, unix.MNT_DETACH)) }) // lazily: a machine of the test may still have a file open
	return dir
}
