package image

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/image/modules"
	"wrenn.dev/internal/image/rootfs"
)

// listFile lists, in the directory of an image that was made from a container, the
// files of its modules: a path on each line.
const listFile = "modules.list"

// loadable are the modules of the base's kernel as files of a guest.
func (p *preparation) loadable() ([]rootfs.File, error) {
	dir := p.store.path(p.base, modulesTree)
	var files []rootfs.File
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		below, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(file)
		files = append(files, rootfs.File{Path: path.Join(modules.Dir, below), Data: data, Mode: 0o644})
		return err
	})
	return files, err
}

// modprobe returns a modprobe for an image that has none.
func (p *preparation) modprobe() (rootfs.File, error) {
	program, err := os.ReadFile(p.store.path(p.base, modprobeFile))
	return rootfs.File{Path: modprobePath, Data: program, Mode: 0o755}, err
}

// addModules adds the kernel's modules, and a modprobe, to a tree that is to become
// the image in dir.
func (p *preparation) addModules(tree *rootfs.Tree, dir string) error {
	files, err := p.loadable()
	if err != nil {
		return err
	}
	if err := writeList(dir, files); err != nil {
		return err
	}
	if !tree.Executable(modprobePath) {
		program, err := p.modprobe()
		if err != nil {
			return err
		}
		files = append(files, program)
	}
	for _, f := range files {
		if err := tree.WriteFile(f.Path, f.Data, f.Mode); err != nil {
			return err
		}
	}
	return nil
}

// replaceModules adds the kernel's modules, and a modprobe, to the image in dir, a
// copy of the image in from, and removes those of another kernel.
func (p *preparation) replaceModules(ctx context.Context, dir, from string) error {
	image := filepath.Join(dir, rootfsFile)
	files, err := p.loadable()
	if err != nil {
		return err
	}
	if err := writeList(dir, files); err != nil {
		return err
	}
	gone := slices.DeleteFunc(readList(from), func(name string) bool {
		return slices.ContainsFunc(files, func(f rootfs.File) bool { return f.Path == name })
	})
	_, err = rootfs.ReadFile(ctx, image, dir, modprobePath)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		program, err := p.modprobe()
		if err != nil {
			return err
		}
		files = append(files, program)
	} else if err != nil {
		return err
	}
	return p.inject(ctx, image, dir, files, gone...)
}

// writeList lists in an image's directory which of its files are modules.
func writeList(dir string, files []rootfs.File) error {
	var text strings.Builder
	for _, f := range files {
		fmt.Fprintln(&text, f.Path)
	}
	return os.WriteFile(filepath.Join(dir, listFile), []byte(text.String()), 0o644)
}

// readList returns the list of writeList, empty for an image without modules.
func readList(dir string) []string {
	data, _ := os.ReadFile(filepath.Join(dir, listFile))
	return strings.Fields(string(data))
}

// fits reports whether a named image has the modules of the base's kernel.
func (p *preparation) fits(name string) (bool, error) {
	versions, err := os.ReadDir(p.store.path(p.base, modulesTree))
	if err != nil {
		return false, err
	}
	if len(versions) != 1 {
		return false, fmt.Errorf("want the modules of one kernel in %s, found %d", p.base, len(versions))
	}
	dir := path.Join(modules.Dir, versions[0].Name()) + "/"
	return slices.ContainsFunc(readList(filepath.Join(p.store.dir, name)), func(file string) bool {
		return strings.HasPrefix(file, dir)
	}), nil
}

// fit gives a named image the modules of the base's kernel: the image may have been
// made with another base.
func (p *preparation) fit(ctx context.Context, name string) error {
	if fits, err := p.fits(name); fits || err != nil {
		return err
	}
	return p.underLock(ctx, func() error {
		if fits, err := p.fits(name); fits || err != nil { // another process was faster
			return err
		}
		fmt.Fprintf(p.cfg.Out, "putting this kernel's modules into a copy of the image %s\n", name)
		return p.replaceImage(ctx, name, p.replaceModules)
	})
}
