//go:build root

package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"wrenn.dev"
	"wrenn.dev/internal/image/initramfs"
	"wrenn.dev/internal/image/oci"
	"wrenn.dev/internal/image/rootfs"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/testkit"
)

// withBase adds a fake base to a configuration's store: a real one takes a minute
// and the network.
func withBase(t *testing.T, cfg Config) *preparation {
	t.Helper()
	p := prepared(t, cfg)
	tree := t.TempDir()
	for _, dir := range []string{"usr/local/bin", "usr/sbin", "etc/chrony"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := p.store.build(p.base, func(dir string) error {
		var archive bytes.Buffer
		return errors.Join(
			addKernel(dir, "6.1.0-old", "overlay.ko", "veth.ko"),
			os.WriteFile(filepath.Join(dir, modprobeFile), []byte("static modprobe"), 0o755),
			rootfs.MakeExt4(t.Context(), tree, filepath.Join(dir, baseFile), p.cfg.Size),
			os.WriteFile(filepath.Join(dir, kernelFile), []byte("kernel"), 0o644),
			os.WriteFile(filepath.Join(dir, tiniFile), []byte("tini"), 0o755),
			initramfs.Write(&archive, nil),
			os.WriteFile(filepath.Join(dir, modulesFile), archive.Bytes(), 0o644))
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// addKernel writes the modules of a kernel for the base in dir.
func addKernel(dir, version string, names ...string) error {
	var errs []error
	for _, name := range names {
		file := filepath.Join(dir, modulesTree, version, "kernel/some", name)
		errs = append(errs, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(version+" "+name), 0o644))
	}
	return errors.Join(errs...)
}

func readImage(t *testing.T, image, name string) string {
	t.Helper()
	data, err := rootfs.ReadFile(t.Context(), image, t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func readHost(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPrepareMakesWhatIsNotThere(t *testing.T) {
	var out bytes.Buffer
	cfg := testConfig(t)
	cfg.Out = &out
	withBase(t, cfg)
	first, err := Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := rootfs.Check(t.Context(), first.RootFS); err != nil {
		t.Error(err)
	}
	if got := readImage(t, first.RootFS, envdPath); got != readHost(t, cfg.Envd) {
		t.Error("envd in the image is another")
	}
	if got := readImage(t, first.RootFS, initPath); got != readHost(t, cfg.Stage0) {
		t.Error("wrenn-init in the image is another")
	}
	if !strings.Contains(readHost(t, first.Initrd), readHost(t, cfg.Stage0)) {
		t.Error("stage0 is not in the initramfs")
	}

	out.Reset()
	again, err := Prepare(t.Context(), cfg)
	if err != nil || out.Len() > 0 {
		t.Errorf("the second Prepare = %v, and said %q", err, out.String())
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the second Prepare gave another guest (-first +second):\n%s", diff)
	}

	cfg.Envd = staticProgram(t, "newer", elf.PT_LOAD)
	newer, err := Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if newer.Digest == first.Digest || readImage(t, newer.RootFS, envdPath) != readHost(t, cfg.Envd) {
		t.Error("a new envd did not make a new image")
	}
	if strings.Contains(out.String(), "Debian") {
		t.Errorf("a new envd made the base again: %q", out.String())
	}

	cfg.Kernel, cfg.Initrd = "/my/vmlinux", "/my/initrd"
	own, err := Prepare(t.Context(), cfg)
	if err != nil || own.Kernel != cfg.Kernel || own.Initrd != cfg.Initrd || own.RootFS != newer.RootFS {
		t.Errorf("with a kernel of one's own: %+v, %v", own, err)
	}
}

func TestPrepareAtOnce(t *testing.T) {
	cfg := testConfig(t)
	withBase(t, cfg)
	var wg sync.WaitGroup
	guests, errs := make([]Guest, 4), make([]error, 4)
	for i := range guests {
		wg.Go(func() { guests[i], errs[i] = Prepare(t.Context(), cfg) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, g := range guests[1:] {
		if diff := cmp.Diff(guests[0], g); diff != "" {
			t.Errorf("two made different guests:\n%s", diff)
		}
	}
}

// container returns an export of a small container.
func container(t *testing.T, without ...string) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755},
		{Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin", Mode: 0o777},
		{Typeflag: tar.TypeSymlink, Name: "sbin", Linkname: "/usr/sbin", Mode: 0o777},
		{Typeflag: tar.TypeReg, Name: "usr/bin/busybox", Mode: 0o755},
		{Typeflag: tar.TypeSymlink, Name: "usr/bin/sh", Linkname: "/usr/bin/busybox", Mode: 0o777},
		{Typeflag: tar.TypeReg, Name: "usr/bin/sudo", Mode: 0o4755},
		{Typeflag: tar.TypeReg, Name: "usr/bin/git", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "usr/bin/bash", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "home/node/x", Mode: 0o600, Uid: 1000, Gid: 1000},
		{Typeflag: tar.TypeSymlink, Name: "etc/resolv.conf", Linkname: "/run/systemd/resolve/stub-resolv.conf", Mode: 0o777},
	} {
		if slices.Contains(without, h.Name) {
			continue
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n"
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644, Size: int64(len(passwd))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, passwd); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func TestFromContainer(t *testing.T) {
	var out bytes.Buffer
	cfg := testConfig(t)
	cfg.Out = &out
	p := withBase(t, cfg)
	if err := FromContainer(t.Context(), cfg, "mine", container(t), false); err != nil {
		t.Fatal(err)
	}
	image := p.store.path("mine", rootfsFile)
	if err := rootfs.Check(t.Context(), image); err != nil {
		t.Error(err)
	}
	want := map[string]string{
		envdPath:              readHost(t, cfg.Envd),
		initPath:              readHost(t, cfg.Stage0),
		"/usr/sbin/tini":      "tini",
		"/etc/hostname":       "sandbox\n",
		"/etc/resolv.conf":    "nameserver 1.1.1.1\nnameserver 8.8.8.8\n",
		"/etc/passwd":         "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\nuser:*:1001:1001::/home/user:/bin/bash\n",
		"/etc/group":          "root:x:0:\nuser:x:1001:\n",
		"/etc/sudoers":        "#includedir /etc/sudoers.d\n",
		"/etc/sudoers.d/user": "user ALL=(ALL:ALL) NOPASSWD: ALL\n",
		modprobePath:          "static modprobe",
		"/lib/modules/6.1.0-old/kernel/some/overlay.ko": "6.1.0-old overlay.ko",
		"/lib/modules/6.1.0-old/kernel/some/veth.ko":    "6.1.0-old veth.ko",
	}
	got := map[string]string{}
	for name := range want {
		got[name] = readImage(t, image, name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image mismatch (-want +got):\n%s", diff)
	}
	for _, missing := range []string{"chronyd", "curl", "ps", "socat"} {
		if !strings.Contains(out.String(), "missing in the container: "+missing) {
			t.Errorf("%s is missing and it did not say so: %q", missing, out.String())
		}
	}
	if strings.Contains(out.String(), "container: git") {
		t.Errorf("git is installed: %q", out.String())
	}
	cfg.Name = "mine"
	guest, err := Prepare(t.Context(), cfg)
	if err != nil || readImage(t, guest.RootFS, "/etc/hostname") != "sandbox\n" || guest.Note != "mine" {
		t.Errorf("Prepare of it = %+v, %v", guest, err)
	}
}

func TestFromOCI(t *testing.T) {
	cfg := testConfig(t)
	p := withBase(t, cfg)
	files, err := io.ReadAll(container(t))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil })
	if err != nil {
		t.Fatal(err)
	}
	built, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, name.MustParseReference("app:1"), built); err != nil {
		t.Fatal(err)
	}
	source, err := oci.Open(t.Context(), "docker-archive:"+archive, oci.Access{})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if err := FromOCI(t.Context(), cfg, "mine", source, false); err != nil {
		t.Fatal(err)
	}
	image := p.store.path("mine", rootfsFile)
	if err := rootfs.Check(t.Context(), image); err != nil {
		t.Error(err)
	}
	if got := readImage(t, image, initPath); got != readHost(t, cfg.Stage0) {
		t.Error("the image's init is another")
	}
	if got := readImage(t, image, "/etc/group"); got != "root:x:0:\nuser:x:1001:\n" {
		t.Errorf("the image's groups are %q", got)
	}
}

func TestFromContainerKeepsNothingHalf(t *testing.T) {
	cfg := testConfig(t)
	p := withBase(t, cfg)
	before := content(t, p.store)
	whole, err := io.ReadAll(container(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		archive io.Reader
		code    wrenn.Code
	}{
		{"no shell", container(t, "usr/bin/sh"), wrenn.FailedPrecondition},
		{"cut off", bytes.NewReader(whole[:len(whole)/1024*512]), wrenn.Invalid},
		{"nothing", bytes.NewReader(nil), wrenn.Invalid},
		{"no archive", strings.NewReader(strings.Repeat("hello ", 1000)), wrenn.Invalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := FromContainer(t.Context(), cfg, "mine", tt.archive, false); wrenn.CodeOf(err) != tt.code {
				t.Errorf("FromContainer() = %v, want %s", err, tt.code)
			}
			if diff := cmp.Diff(before, content(t, p.store)); diff != "" {
				t.Errorf("something is left (-want +got):\n%s", diff)
			}
		})
	}
}

// opened is a reader that reports its first Read.
type opened struct {
	io.Reader
	read func()
}

func (o opened) Read(p []byte) (int, error) {
	o.read()
	return o.Reader.Read(p)
}

// TestSlowContainerBlocksNoOther: its files come slowly, or never.
func TestSlowContainerBlocksNoOther(t *testing.T) {
	cfg := testConfig(t)
	p := withBase(t, cfg)
	files, sender := io.Pipe()
	defer files.Close()
	begun, done := make(chan struct{}), make(chan error, 1)
	slow := opened{files, sync.OnceFunc(func() { close(begun) })}
	go func() { done <- FromContainer(t.Context(), cfg, "slow", slow, false) }()
	select {
	case <-begun:
	case err := <-done:
		t.Fatalf("FromContainer() = %v before its files came", err)
	}
	for _, name := range []string{"fast", "slow"} { // a name is whose image is whole first
		if err := FromContainer(t.Context(), cfg, name, container(t), false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(sender, container(t)); err != nil {
		t.Fatal(err)
	}
	sender.Close()
	if err := <-done; wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("FromContainer() of a name that was taken meanwhile = %v, want %s", err, wrenn.AlreadyExists)
	}
	if got := content(t, p.store); len(got) != 5 { // base, two images, two names
		t.Errorf("the store holds %v", got)
	}
}

func TestFromContainerReplacesWhenAsked(t *testing.T) {
	cfg := testConfig(t)
	p := withBase(t, cfg)
	for _, replace := range []bool{false, true} {
		if err := FromContainer(t.Context(), cfg, "mine", container(t), replace); err != nil {
			t.Fatal(err)
		}
	}
	if err := FromContainer(t.Context(), cfg, "mine", container(t), false); wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("FromContainer() over an image = %v", err)
	}
	if got := content(t, p.store); len(got) != 3 { // base, image, name
		t.Errorf("the store holds %v", got)
	}
}

func TestUpdate(t *testing.T) {
	cfg := testConfig(t)
	p := withBase(t, cfg)
	if err := Update(t.Context(), cfg, "mine"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Update() of nothing = %v", err)
	}
	if err := FromContainer(t.Context(), cfg, "mine", container(t), false); err != nil {
		t.Fatal(err)
	}
	image := p.store.path("mine", rootfsFile)
	old, err := os.Open(image) // a machine that runs on it, say
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	oldEnvd := readHost(t, cfg.Envd)

	cfg.Envd = staticProgram(t, strings.Repeat("newer and larger", 1<<16), elf.PT_LOAD)
	cfg.Stage0 = staticProgram(t, "newer", elf.PT_LOAD)
	if err := Update(t.Context(), cfg, "mine"); err != nil {
		t.Fatal(err)
	}
	if err := rootfs.Check(t.Context(), image); err != nil {
		t.Error(err)
	}
	if got := readImage(t, image, envdPath); got != readHost(t, cfg.Envd) {
		t.Error("envd was not replaced")
	}
	if got := readImage(t, image, initPath); got != readHost(t, cfg.Stage0) {
		t.Error("init was not replaced")
	}
	if got := readImage(t, image, "/etc/hostname"); got != "sandbox\n" {
		t.Errorf("the rest of the image: hostname = %q", got)
	}
	copied := filepath.Join(t.TempDir(), "old")
	_, err = storage.Clone(t.Context(), copied, fmt.Sprintf("/proc/self/fd/%d", old.Fd()), 0o600)
	testkit.Must(t, err)
	if got := readImage(t, copied, envdPath); got != oldEnvd {
		t.Error("the old image changed under its user")
	}
}

// TestImagesFollowTheKernel boots images that were made with one kernel with another.
func TestImagesFollowTheKernel(t *testing.T) {
	cfg := testConfig(t)
	p := withBase(t, cfg)
	if err := FromContainer(t.Context(), cfg, "ours", container(t), false); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(p.store.dir, p.base)
	if err := errors.Join(
		os.RemoveAll(filepath.Join(base, modulesTree)),
		addKernel(base, "6.1.0-new", "overlay.ko"),
		os.WriteFile(filepath.Join(base, modprobeFile), []byte("newer modprobe"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cfg.Name, cfg.Out = "ours", &out
	first, err := Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "modules") {
		t.Errorf("Prepare() said %q", out.String())
	}
	if err := rootfs.Check(t.Context(), first.RootFS); err != nil {
		t.Error(err)
	}
	if got := readImage(t, first.RootFS, "/lib/modules/6.1.0-new/kernel/some/overlay.ko"); got != "6.1.0-new overlay.ko" {
		t.Errorf("the module is %q", got)
	}
	if got := readImage(t, first.RootFS, modprobePath); got != "static modprobe" {
		t.Errorf("the image's modprobe became %q", got)
	}
	_, err = rootfs.ReadFile(t.Context(), first.RootFS, t.TempDir(), "/lib/modules/6.1.0-old/kernel/some/veth.ko")
	if wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("a module of the old kernel: %v", err)
	}
	out.Reset()
	if again, err := Prepare(t.Context(), cfg); err != nil || again.RootFS != first.RootFS || out.Len() > 0 {
		t.Errorf("the second Prepare() = %+v, %v, and said %q", again, err, out.String())
	}
}
