// Package image makes the files that a guest boots: a kernel, an initramfs and a
// root file system. They are immutable, named by the digest of their inputs, and
// stored in <state>/images:
//
//	base-DIGEST/   the expensive part, a Debian: base.ext4, vmlinux, modules.cpio, modules/VERSION, modprobe
//	guest-DIGEST/  the base with Wrenn's programs: rootfs.ext4, vmlinux, initrd
//	image-RANDOM/  made from a container: rootfs.ext4, modules.list
//	NAME           a link to an image-RANDOM
//
// Only this package writes there, under a lock. The exception is the incomplete
// image of a container, whose sender may be slow. Everything appears by a rename
// when it is complete.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wrenn.dev"
	"wrenn.dev/images"
	"wrenn.dev/internal/image/rootfs"
	"wrenn.dev/internal/parts"
)

// DefaultSize is the default size of a root file system, in bytes. The image is
// sparse: it takes only the space of its content.
const DefaultSize = 10 << 30

// Config configures Prepare. Only StateDir or Dir is required.
type Config struct {
	StateDir string
	// Dir is the directory of images; "" is "images" in StateDir. A directory that has
	// other things gets "images" in it, as every directory did in earlier versions.
	Dir string
	// Out gets a line about each step that takes time; nil for none.
	Out io.Writer
	// Name is an image of FromContainer, to boot instead of Debian.
	Name string
	// Envd and Stage0 are the paths of the guest's static programs; default: envd
	// and stage0 beside the running executable.
	Envd, Stage0 string
	// Kernel replaces the distribution's kernel: an uncompressed ELF (vmlinux).
	// Its drivers must be built in or in Initrd.
	Kernel string
	// Initrd is the initramfs for Kernel; empty for none.
	Initrd string
	// Packages are installed beyond Debian's minimal base; default: images/packages.txt.
	Packages []string
	// Size of the root file system in bytes; default DefaultSize.
	Size int64
	// MinFree are the bytes that stay free on the disk while a container is unpacked.
	MinFree int64
}

// Guest has the files that a machine boots. They never change: the caller must
// boot a clone of the root file system.
type Guest struct {
	// Kernel is an uncompressed ELF; Initrd is empty when the kernel needs none.
	Kernel, Initrd string
	// RootFS is an ext4 image.
	RootFS string
	// Args is the kernel's command line, without the VMM's part.
	Args []string
	// Digest names the content of RootFS.
	Digest string
	// Note describes the image, for people.
	Note string
}

// GuestArgs is the command line of every guest: its disk, its address (the same
// in every slot), its init.
func GuestArgs() []string {
	return []string{
		"root=/dev/vda", "rw",
		"ip=169.254.0.21::169.254.0.22:255.255.255.252:sandbox:eth0:off",
		"init=/usr/local/bin/wrenn-init",
		// Nothing loads a policy, and Docker insists on loading its own, with a
		// program that few images have, where the kernel has AppArmor.
		"apparmor=0",
	}
}

// Prepare returns the guest and makes the files that do not exist yet. The first
// call takes a minute and needs root and the network, later ones milliseconds. Any
// number of processes may call it at once: one works, the others wait for it. An
// interrupted call leaves only incomplete files, which the next one removes.
func Prepare(ctx context.Context, cfg Config) (Guest, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Guest{}, err
	}
	p, err := newPreparation(cfg)
	if err != nil {
		return Guest{}, err
	}
	if cfg.Name != "" && !p.store.has(cfg.Name) {
		return Guest{}, noImage(cfg.Name)
	}
	if !p.store.has(p.guest) {
		if err := p.make(ctx); err != nil {
			return Guest{}, err
		}
	}
	if cfg.Name != "" {
		if err := p.fit(ctx, cfg.Name); err != nil {
			return Guest{}, err
		}
	}
	p.store.touch(p.base, p.guest)
	return p.result()
}

// dir returns the directory of images.
func (cfg Config) dir() string {
	if cfg.Dir == "" {
		return filepath.Join(cfg.StateDir, imagesDir)
	}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil || len(entries) == 0 || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == lockName }) {
		return cfg.Dir
	}
	return filepath.Join(cfg.Dir, imagesDir)
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.StateDir == "" && cfg.Dir == "" {
		return cfg, wrenn.Errorf(wrenn.Invalid, "the state directory is not set")
	}
	if cfg.Initrd != "" && cfg.Kernel == "" {
		return cfg, wrenn.Errorf(wrenn.Invalid, "an initramfs needs its kernel: set both")
	}
	if cfg.Name != "" {
		if err := checkName(cfg.Name); err != nil {
			return cfg, err
		}
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	if cfg.Packages == nil {
		cfg.Packages = DefaultPackages()
	}
	cfg.Packages = slices.Compact(slices.Sorted(slices.Values(cfg.Packages))) // the order is no input of the digest
	if cfg.Size == 0 {
		cfg.Size = DefaultSize
	}
	var err error
	if cfg.Envd, err = program(cfg.Envd, "envd"); err != nil {
		return cfg, err
	}
	cfg.Stage0, err = program(cfg.Stage0, "stage0")
	return cfg, err
}

// DefaultPackages returns the default of Config.Packages.
func DefaultPackages() []string { return parsePackages(images.Packages) }

// parsePackages reads a list with a name each line, sorted; # starts a comment.
func parsePackages(text string) []string {
	var names []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		names = append(names, strings.Fields(line)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// preparation is a call of Prepare, with its inputs read and the names of its results.
type preparation struct {
	cfg          Config
	store        *store
	debian       rootfs.Debian
	envd, stage0 []byte
	base, guest  string // names in the store
}

func newPreparation(cfg Config) (*preparation, error) {
	st, err := openStore(cfg.dir(), cfg.Out)
	if err != nil {
		return nil, err
	}
	p := &preparation{cfg: cfg, store: st, debian: rootfs.Debian{
		Suite: rootfs.HostSuite(), Packages: cfg.Packages, Customize: images.Customize,
	}}
	if p.envd, err = readProgram(cfg.Envd); err != nil {
		return nil, err
	}
	if p.stage0, err = readProgram(cfg.Stage0); err != nil {
		return nil, err
	}
	// The packages' mirror is no input: all mirrors have the same packages.
	p.base = basePrefix + digest(baseFormat, p.debian.Suite, p.debian.Packages, p.debian.Customize, guestModules, cfg.Size)
	p.guest = guestPrefix + digest(guestFormat, p.base, p.envd, p.stage0, images.ChronyPTP, images.ChronyNTP)
	return p, nil
}

// Prefixes of names in the store.
const (
	basePrefix  = "base-"
	guestPrefix = "guest-"
)

// The formats are inputs of the digests: raise one when the code makes a
// different result of the same inputs.
const (
	baseFormat  = 2
	guestFormat = 1
)

// digest returns a name for a set of inputs: their hash as a JSON array. Byte
// slices, which are whole programs, are hashed while they are encoded, because
// encoding/json would buffer them.
func digest(inputs ...any) string {
	sum := sha256.New() // whose Write never fails
	separator := "["
	for _, input := range inputs {
		_, _ = io.WriteString(sum, separator)
		separator = ","
		if data, ok := input.([]byte); ok && data != nil {
			_, _ = io.WriteString(sum, `"`)
			encoder := base64.NewEncoder(base64.StdEncoding, sum)
			_, _ = encoder.Write(data)
			_ = encoder.Close()
			_, _ = io.WriteString(sum, `"`)
			continue
		}
		data, err := json.Marshal(input)
		if err != nil {
			panic(err) // the inputs are numbers, strings and bytes
		}
		_, _ = sum.Write(data)
	}
	_, _ = io.WriteString(sum, "]")
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

func (p *preparation) result() (Guest, error) {
	g := Guest{
		Kernel: p.store.path(p.guest, kernelFile),
		Initrd: p.store.path(p.guest, initrdFile),
		RootFS: p.store.path(p.guest, rootfsFile),
		Args:   GuestArgs(),
		Digest: strings.TrimPrefix(p.guest, guestPrefix),
		Note:   "Debian " + p.debian.Suite,
	}
	if p.cfg.Name != "" {
		target, err := os.Readlink(filepath.Join(p.store.dir, p.cfg.Name))
		if err != nil {
			return Guest{}, noImage(p.cfg.Name)
		}
		g.RootFS, g.Digest, g.Note = p.store.path(target, rootfsFile), strings.TrimPrefix(target, imagePrefix), p.cfg.Name
	}
	if p.cfg.Kernel != "" {
		g.Kernel, g.Initrd = p.cfg.Kernel, p.cfg.Initrd
		g.Note += " with the kernel " + p.cfg.Kernel + "; guests can load no modules for it"
	}
	return g, nil
}

// Export prints the guest as the environment of the tests with real machines.
func (g Guest) Export(w io.Writer) error {
	for _, v := range []struct{ name, value string }{
		{"WRENN_TEST_KERNEL", g.Kernel}, {"WRENN_TEST_INITRD", g.Initrd}, {"WRENN_TEST_ROOTFS", g.RootFS},
	} {
		if _, err := fmt.Fprintf(w, "export %s='%s'\n", v.name, strings.ReplaceAll(v.value, "'", `'\''`)); err != nil {
			return err
		}
	}
	return nil
}

// program returns the path of a guest's program: as configured, or where it is
// installed.
func program(configured, name string) (string, error) {
	if configured == "" {
		return parts.Find(name)
	}
	if _, err := os.Stat(configured); err != nil {
		return "", &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the guest's program " + name + " is missing (make build)", Err: err}
	}
	return configured, nil
}
