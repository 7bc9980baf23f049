// Command arm64 boots Wrenn's guest programs for arm64, by emulation on any machine, and
// uses them: make verify/arm64. It needs root, mmdebstrap, mke2fs, Go and
// qemu-system-aarch64.
//
// The root file system has Debian's packages as they are unpacked: their scripts would
// need a program that runs arm64's here.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev/internal/image/initramfs"
	"wrenn.dev/internal/image/modules"
	"wrenn.dev/internal/image/rootfs"
)

const (
	suite   = "bookworm"
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	// packages are what init and agent use of a root file system, and a kernel.
	packages = "base-files,base-passwd,bash,coreutils,dash,grep,iproute2,kmod,libc-bin,linux-image-cloud-arm64,mount,procps,sed,tini,util-linux"
	diskSize = 2 << 30
)

// guestModules are those that a guest boots with; internal/image has the same for x86-64.
var guestModules = []string{"virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "ext4"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dir := ".cache/arm64"
	if len(os.Args) > 1 {
		dir = os.Args[1]
	}
	if err := verify(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, "arm64:", err)
		os.Exit(1)
	}
}

// verify makes a guest in dir, where the tree of an earlier call is used again, and uses it.
func verify(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	for _, step := range []struct {
		what string
		do   func(context.Context, string) error
	}{
		{"unpacking Debian's packages for arm64", bootstrap},
		{"building the guest's programs", install},
		{"making the disk", makeDisk},
		{"making the initramfs", makeInitrd},
		{"booting", use},
	} {
		began := time.Now()
		fmt.Println(step.what)
		if err := step.do(ctx, tree); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Printf("  %.1f s\n", time.Since(began).Seconds())
	}
	return nil
}

// beside returns the path of a file in the directory of the tree.
func beside(tree, name string) string { return filepath.Join(filepath.Dir(tree), name) }

// command runs a program, and returns its output with an error.
func command(ctx context.Context, name string, args ...string) error {
	return output(exec.CommandContext(ctx, name, args...))
}

func output(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd.Args[0], err, out)
	}
	return nil
}

// bootstrap unpacks the packages into tree, unless it exists.
func bootstrap(ctx context.Context, tree string) error {
	if _, err := os.Stat(tree); err == nil {
		return nil
	}
	staged := tree + ".new"
	if err := os.RemoveAll(staged); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=extract", "--architectures=arm64", "--format=directory", "--include=" + packages, "--keyring=" + keyring,
		"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--aptopt=Acquire::Languages none",
	}
	for _, dir := range []string{"doc", "man", "locale"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
	}
	args = append(args, suite, staged)
	if err := command(ctx, "mmdebstrap", append(args, rootfs.HostSources(ctx, suite)...)...); err != nil {
		return err
	}
	return os.Rename(staged, tree)
}

// install writes the guest's programs, and the files that packages' scripts would have made.
func install(ctx context.Context, tree string) error {
	for program, path := range map[string]string{"envd": "usr/local/bin/envd", "stage0": "usr/local/bin/wrenn-init"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(tree, path), "./cmd/"+program)
		cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
		if err := output(cmd); err != nil {
			return err
		}
	}
	tini, err := os.ReadFile(filepath.Join(tree, "usr/bin/tini-static"))
	if err != nil {
		return err
	}
	files := []rootfs.File{
		{Path: "usr/sbin/tini", Data: tini, Mode: 0o755},
		{Path: "etc/hostname", Data: []byte("sandbox\n"), Mode: 0o644},
	}
	for _, name := range []string{"passwd", "group"} {
		master, err := os.ReadFile(filepath.Join(tree, "usr/share/base-passwd", name+".master"))
		if err != nil {
			return err
		}
		line := map[string]string{"passwd": "user:x:1000:1000::/home/user:/bin/bash\n", "group": "user:x:1000:\n"}[name]
		files = append(files, rootfs.File{Path: "etc/" + name, Data: append(master, line...), Mode: 0o644})
	}
	for _, f := range files {
		path := filepath.Join(tree, f.Path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.Data, f.Mode)); err != nil {
			return err
		}
	}
	home := filepath.Join(tree, "home/user")
	return errors.Join(os.MkdirAll(home, 0o755), os.Chown(home, 1000, 1000))
}

func makeDisk(ctx context.Context, tree string) error {
	if err := os.RemoveAll(beside(tree, "disk")); err != nil {
		return err
	}
	return rootfs.MakeExt4(ctx, tree, beside(tree, "disk"), diskSize)
}

// makeInitrd makes the initramfs as that of x86-64, with the program that is also the init.
func makeInitrd(_ context.Context, tree string) error {
	program, err := os.ReadFile(filepath.Join(tree, "usr/local/bin/wrenn-init"))
	if err != nil {
		return err
	}
	// A tree of the kernel alone: in that of the guest /lib is a link to /usr/lib, which has the modules too.
	kernel := beside(tree, "kernel")
	if err := errors.Join(os.RemoveAll(kernel), os.MkdirAll(kernel, 0o755), os.Symlink(filepath.Join(tree, "usr/lib"), filepath.Join(kernel, "lib"))); err != nil {
		return err
	}
	list, err := modules.Resolve(kernel, guestModules)
	if err != nil {
		return err
	}
	var names []string
	for _, m := range list {
		names = append(names, m.Name)
	}
	fmt.Println("  modules:", strings.Join(names, " "))
	out, err := os.Create(beside(tree, "initrd"))
	if err != nil {
		return err
	}
	return errors.Join(initramfs.WriteStage0(out, program), initramfs.WriteModules(out, list), out.Close())
}
