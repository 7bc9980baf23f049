package modules

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Dir is the directory of modules in a guest, for its programs and its kernel's modprobe.
const Dir = "/lib/modules"

// driverDirs are the directories below kernel/drivers that a guest can use: its
// devices are virtio devices, and those that the kernel makes itself. The others
// are two thirds of all modules.
var driverDirs = []string{"block", "char", "dax", "input", "md", "net", "nvdimm", "ptp", "vhost", "virtio"}

// hardwareDirs are the directories below driverDirs for devices that a guest never has.
var hardwareDirs = []string{
	"block/xen-blkback", "char/ipmi", "char/tpm", "net/ethernet", "net/hyperv", "net/vmxnet3", "net/wwan", "net/xen-netback",
}

// Install copies the modules that a guest can use from an unpacked kernel package
// to Dir in a root file system, without signatures. It makes modprobe's indexes with
// the depmod of that file system, which needs root. It returns the kernel's version.
func Install(ctx context.Context, tree, root string) (version string, err error) {
	dir, err := modulesDir(tree)
	if err != nil {
		return "", err
	}
	names, err := forGuests(dir)
	if err != nil {
		return "", err
	}
	list, err := Resolve(tree, names)
	if err != nil {
		return "", err
	}
	version = filepath.Base(dir)
	into := filepath.Join(root, Dir, version)
	for _, m := range list {
		if err := writeFile(filepath.Join(into, m.Path), m.Data); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		if err := copyFile(filepath.Join(into, name), filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return version, depmod(ctx, root, version)
}

// forGuests returns the sorted names of the modules that a guest can use.
func forGuests(dir string) ([]string, error) {
	files, err := index(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for name, file := range files {
		path, err := filepath.Rel(dir, file)
		if err != nil {
			return nil, err
		}
		if forGuest(path) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// forGuest reports whether a guest can use the module at path, which is relative to
// the modules' directory.
func forGuest(path string) bool {
	driver, ok := strings.CutPrefix(path, "kernel/drivers/")
	if !ok {
		return true
	}
	below := func(dir string) bool { return strings.HasPrefix(driver, dir+"/") }
	return slices.ContainsFunc(driverDirs, below) && !slices.ContainsFunc(hardwareDirs, below)
}

func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// copyFile copies a file, if it exists: not every kernel package has it.
func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return writeFile(to, data)
}

// depmod runs the depmod of the root: the host may have none.
func depmod(ctx context.Context, root, version string) error {
	cmd := exec.CommandContext(ctx, "/sbin/depmod", version)
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w: %.300s", err, out)
	}
	return nil
}
