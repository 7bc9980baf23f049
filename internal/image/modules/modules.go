// Package modules extracts kernel modules from a kernel's package: the few that a
// guest boots with, and the tree from which it loads others on demand.
package modules

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// maxModule bounds an unpacked module; the largest of Debian's are about 10 MiB.
const maxModule = 64 << 20

// Module is a kernel module, unpacked.
type Module struct {
	Name string // as in lsmod: with underscores
	Path string // of the file below the modules' directory, without a compression's suffix
	Data []byte
}

// Resolve returns the wanted modules of a kernel tree and their dependencies, in an
// order in which they can be loaded. It skips wanted modules that are built in or
// unknown; a missing dependency is an error. It reads dependencies from the modules,
// because a package that was never installed has no modules.dep.
func Resolve(tree string, wanted []string) ([]Module, error) {
	dir, err := modulesDir(tree)
	if err != nil {
		return nil, err
	}
	files, err := index(dir)
	if err != nil {
		return nil, err
	}
	builtin, err := builtins(dir)
	if err != nil {
		return nil, err
	}
	r := resolver{dir: dir, files: files, builtin: builtin, done: map[string]bool{}}
	for _, name := range wanted {
		name = canonical(name)
		if _, ok := files[name]; !ok {
			continue
		}
		if err := r.add(name); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// modulesDir finds VERSION's directory in a tree with exactly one kernel.
func modulesDir(tree string) (string, error) {
	var found []string
	for _, pattern := range []string{"lib/modules/*", "usr/lib/modules/*"} { // the latter since Debian 13
		matches, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return "", err
		}
		found = append(found, matches...)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("want the modules of one kernel, found %d", len(found))
	}
	return found[0], nil
}

// index maps canonical names to files.
func index(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, _, ok := strings.Cut(entry.Name(), ".ko"); ok && entry.Type().IsRegular() {
			files[canonical(name)] = path
		}
		return nil
	})
	return files, err
}

func builtins(dir string) (map[string]bool, error) {
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(filepath.Base(strings.TrimSpace(line)), ".ko")
		names[canonical(name)] = true
	}
	return names, nil
}

// canonical returns the kernel's name of a module, which may differ from its file's.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

type resolver struct {
	dir     string
	files   map[string]string
	builtin map[string]bool
	done    map[string]bool
	order   []Module
}

// add appends a module after its dependencies.
func (r *resolver) add(name string) error {
	if r.done[name] || r.builtin[name] {
		return nil
	}
	r.done[name] = true // before its dependencies: a cycle must end too
	file, ok := r.files[name]
	if !ok {
		return fmt.Errorf("module %s is not in this kernel", name)
	}
	data, err := readModule(file)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	needs, soft, err := dependencies(data)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, need := range needs {
		if err := r.add(need); err != nil {
			return fmt.Errorf("for %s: %w", name, err)
		}
	}
	for _, need := range soft {
		if _, ok := r.files[need]; !ok {
			continue
		}
		if err := r.add(need); err != nil {
			return fmt.Errorf("for %s: %w", name, err)
		}
	}
	path, err := filepath.Rel(r.dir, file)
	if err != nil {
		return err
	}
	path, _, _ = strings.Cut(path, ".ko")
	r.order = append(r.order, Module{Name: name, Path: path + ".ko", Data: unsigned(data)})
	return nil
}

// dependencies reads the .modinfo section, NUL-terminated key=value strings:
// "depends" names what must be loaded first, "softdep=pre:" what should be.
func dependencies(module []byte) (needs, soft []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			needs = append(needs, strings.FieldsFunc(canonical(value), func(r rune) bool { return r == ',' })...)
		case "softdep":
			before, _, _ := strings.Cut(value, "post:")
			for name := range strings.FieldsSeq(strings.TrimPrefix(before, "pre:")) {
				// A crypto algorithm is requested by its name; the module with the
				// portable code has this suffix.
				soft = append(soft, canonical(name), canonical(name)+"_generic")
			}
		}
	}
	return needs, soft, nil
}

// readModule reads and unpacks a module, so that stage0 need not unpack it.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := decompress(f, filepath.Ext(file))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxModule {
		return nil, fmt.Errorf("larger than %d MiB", maxModule>>20)
	}
	return data, nil
}

func decompress(r io.Reader, ext string) (io.Reader, error) {
	switch ext {
	case ".xz":
		return xz.NewReader(r, xz.DefaultDictMax)
	case ".gz":
		return gzip.NewReader(r)
	case ".zst":
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule))
	}
	return r, nil
}

// signatureMagic ends a signed module; struct module_signature is before it, and
// before that the signature (the kernel's include/linux/module_signature.h).
const (
	signatureMagic  = "~Module signature appended~\n"
	signatureHeader = 12
)

// unsigned returns the module without its signature. The initramfs is trusted like
// the kernel beside it, and on an emulated CPU checking a signature takes as long as
// the rest of loading.
func unsigned(module []byte) []byte {
	body, ok := bytes.CutSuffix(module, []byte(signatureMagic))
	if !ok || len(body) < signatureHeader {
		return module
	}
	size := uint64(binary.BigEndian.Uint32(body[len(body)-4:])) + signatureHeader
	if size > uint64(len(body)) {
		return module
	}
	return body[:uint64(len(body))-size]
}
