// Package image prepares what a guest boots: a kernel, an initramfs and a root
// file system. Results are immutable, named by the digest of what they were made
// from, and kept in <state>/images:
//
//	base-DIGEST/   the expensive part, a Debian: base.ext4, vmlinux, modules.cpio, modules/VERSION, modprobe
//	guest-DIGEST/  the same with our programs in it: rootfs.ext4, vmlinux, initrd
//	image-RANDOM/  made from a container: rootfs.ext4, modules.list
//	NAME           a link to the latter
//
// Nobody writes in there but this package, under a lock, but for the half-made
// image of a container, whose sender may be slow. Everything appears by a rename
// when it is whole.
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

	"wrenn"
	"wrenn/images"
	"wrenn/internal/image/rootfs"
)

// DefaultSize is how large a root file system is when Config does not say. The
// image is sparse: it takes what is in it.
const DefaultSize = 10 << 30

// Config says what to prepare. StateDir is needed; the rest has defaults.
type Config struct {
	StateDir string
	// Out gets a line about each step that takes time; nil for none.
	Out io.Writer
	// Name is an image that FromContainer made, to be booted instead of Debian.
	Name string
	// Envd and Stage0 are the guest's programs, static ones; default: envd and
	// stage0 beside the running executable.
	Envd, Stage0 string
	// Init is the guest's /usr/local/bin/wrenn-init; default: ours.
	Init []byte
	// Kernel replaces the distribution's kernel: an uncompressed ELF (vmlinux).
	// It must have its drivers built in, or Initrd must bring them.
	Kernel string
	// Initrd goes with Kernel; empty for none.
	Initrd string
	// Packages is what Debian gets beyond its minimal base; default: images/packages.txt.
	Packages []string
	// Size of the root file system in bytes; default DefaultSize.
	Size int64
}

// Guest is what a machine boots. The files never change; clone the root file
// system before it is booted.
type Guest struct {
	// Kernel is an uncompressed ELF; Initrd is empty when the kernel needs none.
	Kernel, Initrd string
	// RootFS is an ext4 image.
	RootFS string
	// Args is the command line that goes with them, without the VMM's part.
	Args []string
	// Digest names RootFS: another content has another.
	Digest string
	// Note says what this is, for people.
	Note string
}

// GuestArgs is the command line of every guest: its disk, its address (the same
// in every slot), its init.
func GuestArgs() []string {
	return []string{
		"root=/dev/vda", "rw",
		"ip=169.254.0.21::169.254.0.22:255.255.255.252:sandbox:eth0:off",
		"init=/usr/local/bin/wrenn-init",
	}
}

// Prepare returns the default guest and makes what of it is not there yet; the
// first time that takes a minute, root and the network, later milliseconds. Any
// number of processes may prepare at once: one works, the others wait for it.
// One that is interrupted leaves nothing that another takes for whole.
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

func (cfg Config) withDefaults() (Config, error) {
	if cfg.StateDir == "" {
		return cfg, wrenn.Errorf(wrenn.Invalid, "no state directory is given")
	}
	if cfg.Initrd != "" && cfg.Kernel == "" {
		return cfg, wrenn.Errorf(wrenn.Invalid, "an initramfs of your own needs its kernel: give both")
	}
	if cfg.Name != "" {
		if err := checkName(cfg.Name); err != nil {
			return cfg, err
		}
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	if cfg.Init == nil {
		cfg.Init = images.Init
	}
	if cfg.Packages == nil {
		cfg.Packages = DefaultPackages()
	}
	cfg.Packages = slices.Compact(slices.Sorted(slices.Values(cfg.Packages))) // another order makes no other image
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

// DefaultPackages returns what Debian gets when Config.Packages is nil.
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

// preparation is one Prepare with its inputs read and named.
type preparation struct {
	cfg          Config
	store        *store
	debian       rootfs.Debian
	envd, stage0 []byte
	base, guest  string // names in the store
}

func newPreparation(cfg Config) (*preparation, error) {
	st, err := openStore(cfg.StateDir, cfg.Out)
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
	// Where the packages come from is no input: mirrors carry the same.
	p.base = basePrefix + digest(baseFormat, p.debian.Suite, p.debian.Packages, p.debian.Customize, guestModules, cfg.Size)
	p.guest = guestPrefix + digest(guestFormat, p.base, p.envd, p.stage0, cfg.Init, images.ChronyPTP, images.ChronyNTP)
	return p, nil
}

// What the names in the store begin with.
const (
	basePrefix  = "base-"
	guestPrefix = "guest-"
)

// The formats are inputs of the digests: raise one when the code makes
// something else of the same inputs.
const (
	baseFormat  = 2
	guestFormat = 1
)

// digest names a set of inputs: it hashes them as a JSON array. Bytes, which
// are whole programs, go into the hash as they are encoded: encoding/json would
// keep a buffer of all of it.
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
			panic(err) // only numbers, strings and bytes come here
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

// program is where a guest's program is: as configured, or beside this one.
func program(configured, name string) (string, error) {
	path := configured
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(self), name)
	}
	if _, err := os.Stat(path); err != nil {
		return "", &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the guest's program " + name + " is missing (make build)", Err: err}
	}
	return path, nil
}
