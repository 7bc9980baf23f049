package image

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"wrenn"
	"wrenn/images"
	"wrenn/internal/image/initramfs"
	"wrenn/internal/image/kernel"
	"wrenn/internal/image/rootfs"
	"wrenn/internal/storage"
)

// The files of a base and of a guest.
const (
	baseFile    = "base.ext4"
	kernelFile  = "vmlinux"
	modulesFile = "modules.cpio"
	initrdFile  = "initrd"
	rootfsFile  = "rootfs.ext4"
	tiniFile    = "tini"
)

// guestModules are what a guest needs to find its disk, its network, entropy
// and the host's clock.
var guestModules = []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "ptp_kvm", "ext4"}

// Where our programs are in a guest; tini is there before.
const (
	envdPath      = "/usr/local/bin/envd"
	initPath      = "/usr/local/bin/wrenn-init"
	chronyPTPPath = "/etc/chrony/chrony.conf"
	chronyNTPPath = "/etc/chrony/wrenn-ntp.conf"
	tiniPath      = "/sbin/tini"
)

// make makes the guest and, when needed, its base first.
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

// underLock runs work while nobody else writes to the store, and tidies up after it.
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

// ensureBase makes the base unless it is there.
func (p *preparation) ensureBase(ctx context.Context) error {
	if p.store.has(p.base) {
		p.store.touch(p.base)
		return nil
	}
	fmt.Fprintf(p.cfg.Out, "making a Debian %s for guests, once; this takes a minute or two\n", p.debian.Suite)
	return p.store.build(p.base, func(dir string) error { return p.makeBase(ctx, dir) })
}

// makeBase fills dir with a Debian and its kernel.
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
	fmt.Fprintln(p.cfg.Out, "  unpacking the kernel")
	if err := unpackKernel(ctx, filepath.Join(work, "kernel"), dir); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

// unpackKernel makes vmlinux and modules.cpio in dir of the one package in from.
func unpackKernel(ctx context.Context, from, dir string) error {
	packages, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("want one kernel package, found %d", len(packages))
	}
	tree := filepath.Join(from, "tree")
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", packages[0], tree).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %.300s", filepath.Base(packages[0]), err, out)
	}
	found, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("want one kernel in %s, found %d", filepath.Base(packages[0]), len(found))
	}
	packed, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	vmlinux, err := kernel.Vmlinux(packed)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(found[0]), err)
	}
	if err := os.WriteFile(filepath.Join(dir, kernelFile), vmlinux, 0o644); err != nil {
		return err
	}
	var modules bytes.Buffer
	if err := initramfs.WriteModules(&modules, tree, guestModules); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, modulesFile), modules.Bytes(), 0o644)
}

// makeGuest fills dir from the base and our programs.
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
	modules, err := os.ReadFile(p.store.path(p.base, modulesFile))
	if err != nil {
		return err
	}
	var initrd bytes.Buffer
	if err := initramfs.WriteStage0(&initrd, p.stage0); err != nil {
		return err
	}
	initrd.Write(modules)
	return os.WriteFile(filepath.Join(dir, initrdFile), initrd.Bytes(), 0o644)
}

// inject puts files into an image and checks that it is whole afterwards.
func (p *preparation) inject(ctx context.Context, image, scratch string, files []rootfs.File) error {
	if err := rootfs.Inject(ctx, image, scratch, files); err != nil {
		return err
	}
	return rootfs.Check(ctx, image)
}

// files is what a guest's root file system gets from us.
func (p *preparation) files() []rootfs.File {
	return append([]rootfs.File{
		{Path: envdPath, Data: p.envd, Mode: 0o755},
		{Path: initPath, Data: p.cfg.Init, Mode: 0o755},
	}, chronyFiles()...)
}

// chronyFiles are the settings of a guest's clock, of which its init takes one.
func chronyFiles() []rootfs.File {
	return []rootfs.File{
		{Path: chronyPTPPath, Data: images.ChronyPTP, Mode: 0o644},
		{Path: chronyNTPPath, Data: images.ChronyNTP, Mode: 0o644},
	}
}

// readProgram reads a program that runs in guests, where no library can be
// relied on.
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
