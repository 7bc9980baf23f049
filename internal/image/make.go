package image

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"wrenn.dev"
	"wrenn.dev/images"
	"wrenn.dev/internal/image/initramfs"
	"wrenn.dev/internal/image/kernel"
	"wrenn.dev/internal/image/modules"
	"wrenn.dev/internal/image/rootfs"
	"wrenn.dev/internal/storage"
)

// The files of a base and of a guest.
const (
	baseFile    = "base.ext4"
	kernelFile  = "vmlinux"
	modulesFile = "modules.cpio"
	initrdFile  = "initrd"
	rootfsFile  = "rootfs.ext4"
	tiniFile    = "tini"
	// modulesTree has the directory of the kernel's version, as below modules.Dir in a guest.
	modulesTree = "modules"
	// modprobeFile is a static modprobe, for images without one.
	modprobeFile = "modprobe"
)

// guestModules are the modules that a guest needs for its disk, its network,
// entropy and the host's clock.
var guestModules = []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "ptp_kvm", "ext4"}

// Paths of files in a guest.
const (
	envdPath      = "/usr/local/bin/envd"
	initPath      = "/usr/local/bin/wrenn-init"
	chronyPTPPath = "/etc/chrony/chrony.conf"
	chronyNTPPath = "/etc/chrony/wrenn-ntp.conf"
	tiniPath      = "/sbin/tini"
	modprobePath  = "/sbin/modprobe" // the kernel itself runs it to load a module
)

// make makes the guest, and first its base if necessary.
func (p *preparation) make(ctx context.Context) error {
	return p.underLock(ctx, func() error {
		if p.store.has(p.guest) { // another process was faster
			return nil
		}
		if err := p.ensureBase(ctx); err != nil {
			return err
		}
		fmt.Fprintln(p.cfg.Out, "putting the agent into the guest's image")
		return p.store.build(p.guest, func(dir string) error { return p.makeGuest(ctx, dir) })
	})
}

// underLock runs work with the store's lock, and prunes the store afterwards.
func (p *preparation) underLock(ctx context.Context, work func() error) error {
	lock, err := p.store.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	p.debian.Lock = lock
	if err := work(); err != nil {
		return err
	}
	return p.store.prune()
}

// ensureBase makes the base unless it exists.
func (p *preparation) ensureBase(ctx context.Context) error {
	if p.store.has(p.base) {
		p.store.touch(p.base)
		return nil
	}
	fmt.Fprintf(p.cfg.Out, "making a Debian %s for guests, once; this takes a minute or two\n", p.debian.Suite)
	return p.store.build(p.base, func(dir string) error { return p.makeBase(ctx, dir) })
}

// makeBase makes a Debian and its kernel in dir.
func (p *preparation) makeBase(ctx context.Context, dir string) error {
	if err := needSpace(dir, baseSpace); err != nil {
		return err
	}
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	if err := p.debian.Bootstrap(ctx, p.cfg.Out, work); err != nil {
		return err
	}
	tree := filepath.Join(work, "tree")
	fmt.Fprintln(p.cfg.Out, "  unpacking the kernel")
	version, err := unpackKernel(ctx, filepath.Join(work, "kernel"), dir, tree)
	if err != nil {
		return err
	}
	fmt.Fprintln(p.cfg.Out, "  making the file system")
	if err := rootfs.MakeExt4(ctx, tree, filepath.Join(dir, baseFile), p.cfg.Size); err != nil {
		return err
	}
	tini, err := os.ReadFile(filepath.Join(tree, "usr/sbin/tini"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, tiniFile), tini, 0o755); err != nil {
		return err
	}
	if err := keepModules(tree, dir, version); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

// keepModules moves the modules out of a tree of which the image has been made.
func keepModules(tree, dir, version string) error {
	if err := os.Mkdir(filepath.Join(dir, modulesTree), 0o755); err != nil {
		return err
	}
	return os.Rename(filepath.Join(tree, modules.Dir, version), filepath.Join(dir, modulesTree, version))
}

// unpackKernel makes vmlinux, modules.cpio and modprobe in dir from the packages
// in from, and adds the kernel's modules to the tree. It returns the kernel's version.
func unpackKernel(ctx context.Context, from, dir, tree string) (version string, err error) {
	unpacked := filepath.Join(from, "kernel")
	if err := unpackPackage(ctx, filepath.Join(from, "linux-image-*.deb"), unpacked); err != nil {
		return "", err
	}
	if err := writeKernel(unpacked, filepath.Join(dir, kernelFile)); err != nil {
		return "", err
	}
	list, err := modules.Resolve(unpacked, guestModules)
	if err != nil {
		return "", err
	}
	var archive bytes.Buffer
	if err := initramfs.WriteModules(&archive, list); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, modulesFile), archive.Bytes(), 0o644); err != nil {
		return "", err
	}
	if err := unpackModprobe(ctx, from, dir); err != nil {
		return "", err
	}
	return modules.Install(ctx, unpacked, tree)
}

// unpackModprobe makes dir/modprobe from busybox, which acts by the name that it
// is called by.
func unpackModprobe(ctx context.Context, from, dir string) error {
	unpacked := filepath.Join(from, "busybox")
	if err := unpackPackage(ctx, filepath.Join(from, "busybox-static_*.deb"), unpacked); err != nil {
		return err
	}
	for _, name := range []string{"bin/busybox", "usr/bin/busybox"} { // the latter since Debian 13
		program, err := os.ReadFile(filepath.Join(unpacked, name))
		if err == nil {
			return os.WriteFile(filepath.Join(dir, modprobeFile), program, 0o755)
		}
	}
	return errors.New("no busybox in its package")
}

// unpackPackage unpacks the only package that the pattern matches into a new directory.
func unpackPackage(ctx context.Context, pattern, into string) error {
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return fmt.Errorf("want one package %s, found %d", filepath.Base(pattern), len(found))
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", found[0], into).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %.300s", filepath.Base(found[0]), err, out)
	}
	return nil
}

// writeKernel writes the only kernel of an unpacked package as an ELF.
func writeKernel(unpacked, file string) error {
	found, err := filepath.Glob(filepath.Join(unpacked, "boot/vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("want one kernel in its package, found %d", len(found))
	}
	packed, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	vmlinux, err := kernel.Vmlinux(packed)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(found[0]), err)
	}
	return os.WriteFile(file, vmlinux, 0o644)
}

// makeGuest makes a guest in dir from the base and Wrenn's programs.
func (p *preparation) makeGuest(ctx context.Context, dir string) error {
	image := filepath.Join(dir, rootfsFile)
	if _, err := storage.Clone(ctx, image, p.store.path(p.base, baseFile), 0o644); err != nil {
		return err
	}
	if err := p.inject(ctx, image, dir, p.files()); err != nil {
		return err
	}
	if err := os.Link(p.store.path(p.base, kernelFile), filepath.Join(dir, kernelFile)); err != nil {
		return err
	}
	archive, err := os.ReadFile(p.store.path(p.base, modulesFile))
	if err != nil {
		return err
	}
	var initrd bytes.Buffer
	if err := initramfs.WriteStage0(&initrd, p.stage0); err != nil {
		return err
	}
	initrd.Write(archive)
	return os.WriteFile(filepath.Join(dir, initrdFile), initrd.Bytes(), 0o644)
}

// inject writes files into an image, removes others, and checks the image
// afterwards.
func (p *preparation) inject(ctx context.Context, image, scratch string, files []rootfs.File, gone ...string) error {
	if err := rootfs.Inject(ctx, image, scratch, files, gone...); err != nil {
		return err
	}
	return rootfs.Check(ctx, image)
}

// files are those that a guest gets beyond its base.
func (p *preparation) files() []rootfs.File {
	return append([]rootfs.File{
		{Path: envdPath, Data: p.envd, Mode: 0o755},
		{Path: initPath, Data: p.stage0, Mode: 0o755},
	}, chronyFiles()...)
}

// chronyFiles are the settings of a guest's clock; its init chooses one.
func chronyFiles() []rootfs.File {
	return []rootfs.File{
		{Path: chronyPTPPath, Data: images.ChronyPTP, Mode: 0o644},
		{Path: chronyNTPPath, Data: images.ChronyNTP, Mode: 0o644},
	}
}

// readProgram reads a program for guests. It must be static, because a guest may
// have no libraries.
func readProgram(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "%s is no program: %v", filepath.Base(path), err)
	}
	if f.Machine != elf.EM_X86_64 {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "%s is not for x86-64", filepath.Base(path))
	}
	for _, segment := range f.Progs {
		if segment.Type == elf.PT_INTERP {
			return nil, wrenn.Errorf(wrenn.FailedPrecondition, "%s is not static: build it with CGO_ENABLED=0 (make build)", filepath.Base(path))
		}
	}
	return data, nil
}
