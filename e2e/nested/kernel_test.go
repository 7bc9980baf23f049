//go:build nested

package nested

import (
	"bytes"
	"cmp"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// wanted are the modules of L1's kernel, which loads them with all that they
// need in this order: its disks and file systems, KVM, and a slot's network.
var wanted = []string{
	"virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "xfs",
	"kvm-amd", "tun", "veth",
	"nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_limit", "nft_fib_inet", "nft_reject_inet",
	"nf_conntrack_netlink",
}

// l1Kernel is the distribution's kernel with its modules, which can be a KVM
// host on the machine that QEMU emulates.
type l1Kernel struct {
	image   string   // bzImage
	modules []string // files, in the order in which they load
}

// fetchKernel downloads the newest kernel of the distribution, once.
func fetchKernel(t *testing.T, cache string) l1Kernel {
	t.Helper()
	pkg := kernelPackage(t)
	dir := filepath.Join(cache, pkg)
	if _, err := os.Stat(dir); err != nil {
		staged := dir + ".new"
		must(t, os.RemoveAll(staged))
		must(t, os.MkdirAll(staged, 0o755))
		output(t, staged, "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", pkg)
		debs, _ := filepath.Glob(filepath.Join(staged, "*.deb"))
		if len(debs) != 1 {
			t.Fatalf("apt-get download %s: got %v", pkg, debs)
		}
		output(t, staged, "dpkg-deb", "-x", debs[0], ".")
		must(t, os.Remove(debs[0]))
		must(t, os.Rename(staged, dir))
	}
	images, _ := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if len(images) != 1 {
		t.Fatalf("package %s: no single kernel in boot/: %v", pkg, images)
	}
	return l1Kernel{image: images[0], modules: modulesInOrder(t, dir)}
}

// kernelPackage is the package that Debian's linux-image-amd64 stands for. The
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

// modulesInOrder finds the files of the wanted modules and of what they depend on.
func modulesInOrder(t *testing.T, dir string) []string {
	t.Helper()
	files := map[string]string{}
	builtin := map[string]bool{}
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			files[moduleName(path)] = path
		}
		if err == nil && e.Name() == "modules.builtin" {
			list, err := os.ReadFile(path)
			for line := range strings.Lines(string(list)) {
				builtin[moduleName(strings.TrimSpace(line))] = true
			}
			return err
		}
		return err
	}))
	var order []string
	var add func(name string)
	add = func(name string) {
		name = moduleName(name)
		path, ok := files[name]
		if builtin[name] || slices.Contains(order, path) {
			return
		}
		if !ok {
			t.Fatalf("L1's kernel has no module %s", name)
		}
		for _, dep := range moduleDepends(t, path) {
			add(dep)
		}
		order = append(order, path)
	}
	for _, name := range wanted {
		add(name)
	}
	return order
}

// moduleName: a file may have dashes where the module's name has underscores.
func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

// moduleDepends reads depends= from the module's .modinfo section, NUL-separated key=value pairs.
func moduleDepends(t *testing.T, path string) []string {
	t.Helper()
	f, err := elf.Open(path)
	must(t, err)
	defer f.Close()
	info, err := f.Section(".modinfo").Data()
	must(t, err)
	for pair := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(pair), "depends="); ok && list != "" {
			return strings.Split(list, ",")
		}
	}
	return nil
}

// writeInitramfs writes L1's initramfs: the init program and the modules.
func writeInitramfs(t *testing.T, path, init string, modules []string) {
	t.Helper()
	w := &cpio{}
	w.dir("dev")
	w.dir("proc")
	w.dir("sys")
	w.dir("disk")
	w.dir("modules")
	w.file(t, "init", init)
	for i, m := range modules {
		w.file(t, fmt.Sprintf("modules/%03d-%s", i, filepath.Base(m)), m)
	}
	must(t, os.WriteFile(path, w.close(), 0o644))
}

// cpio writes the "newc" format that the kernel unpacks.
type cpio struct {
	buf bytes.Buffer
	ino int
}

func (c *cpio) dir(name string) { c.entry(name, 0o40755, nil) }

func (c *cpio) file(t *testing.T, name, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(t, err)
	c.entry(name, 0o100755, data)
}

func (c *cpio) entry(name string, mode int, data []byte) {
	c.ino++
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	c.pad()
	c.buf.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}

func (c *cpio) close() []byte {
	c.entry("TRAILER!!!", 0, nil)
	return c.buf.Bytes()
}

// output runs a program to its end and returns what it printed.
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// skip leaves the test out, which CI does not allow.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("WRENN_CI") == "1" {
		t.Fatalf("WRENN_CI=1 allows nothing to be left out: %s", why)
	}
	t.Skip(why)
}
