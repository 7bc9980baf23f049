//go:build nested

package nested

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/internal/image/initramfs"
	"wrenn.dev/internal/image/modules"
	"wrenn.dev/internal/testkit"
)

// wanted are the modules that L1 loads, with their dependencies, in this order:
// its disks and file systems, KVM, and a slot's network.
var wanted = []string{
	"virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "xfs",
	"kvm-amd", "tun", "veth",
	"nf_tables", "nft_ct", "nft_connlimit", "nft_limit", "nft_chain_nat", "nft_nat", "nft_masq", "nft_fib_inet", "nft_redir", "nft_log", "nfnetlink_log", "nf_conntrack_netlink",
}

// fetchKernel downloads the distribution's kernel, once, and returns the
// directory with its unpacked package.
func fetchKernel(t *testing.T, cache string) string {
	t.Helper()
	pkg := kernelPackage(t)
	dir := filepath.Join(cache, pkg)
	if _, err := os.Stat(dir); err != nil {
		staged := dir + ".new"
		testkit.Must(t, os.RemoveAll(staged))
		testkit.Must(t, os.MkdirAll(staged, 0o755))
		output(t, staged, "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", pkg)
		debs, _ := filepath.Glob(filepath.Join(staged, "*.deb"))
		if len(debs) != 1 {
			t.Fatalf("apt-get download %s: got %v", pkg, debs)
		}
		output(t, staged, "dpkg-deb", "-x", debs[0], ".")
		testkit.Must(t, os.Remove(debs[0]))
		testkit.Must(t, os.Rename(staged, dir))
	}
	return dir
}

// kernelImage returns the bzImage of an unpacked package.
func kernelImage(t *testing.T, tree string) string {
	t.Helper()
	images, _ := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if len(images) != 1 {
		t.Fatalf("%s: no single kernel in boot/: %v", tree, images)
	}
	return images[0]
}

// kernelPackage returns the package that Debian's linux-image-amd64 depends on. The
// smaller cloud kernel has no KVM for AMD's processors.
func kernelPackage(t *testing.T) string {
	t.Helper()
	depends := output(t, "", "apt-cache", "depends", "--important", "linux-image-amd64")
	for line := range strings.Lines(depends) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + name
		}
	}
	skip(t, "the nested machine's kernel is Debian's linux-image-amd64, which this distribution's package lists do not have")
	return ""
}

// writeInitramfs writes L1's initramfs: the init program, then the modules.
func writeInitramfs(t *testing.T, path, init, kernelTree string) {
	t.Helper()
	program, err := os.ReadFile(init)
	testkit.Must(t, err)
	f, err := os.Create(path)
	testkit.Must(t, err)
	defer f.Close()
	testkit.Must(t, initramfs.WriteStage0(f, program))
	list, err := modules.Resolve(kernelTree, wanted)
	testkit.Must(t, err)
	testkit.Must(t, initramfs.WriteModules(f, list))
}

// output runs a program, waits until it ends, and returns its output.
func output(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "CGO_ENABLED=0", "PATH="+cmp.Or(os.Getenv("PATH"), "/bin")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// skip skips the test, or fails it in CI.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("WRENN_CI") == "1" {
		t.Fatalf("WRENN_CI=1 allows nothing to be left out: %s", why)
	}
	t.Skip(why)
}
