package image

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/image/oci"
	"wrenn.dev/internal/image/rootfs"
	"wrenn.dev/internal/storage"
)

// imagePrefix is the prefix of the directories that names link to.
const imagePrefix = "image-"

// programsForAgents are programs that users and the platform expect in a guest. A
// missing one is only reported: an image may be small on purpose.
var programsForAgents = []struct{ name, why string }{
	{"bash", "commands run in sh"},
	{"chronyd", "the clock is right only after a start or a restore"},
	{"curl", ""},
	{"git", ""},
	{"ps", ""},
	{"socat", ""},
	{"sudo", "user cannot become root"},
}

// FromContainer makes an image from a container's files, a tar stream as `docker
// export` writes it, under a name that must be free unless replace is set. It adds
// the agent, its init, tini and an account for users, and writes to cfg.Out which
// programs are missing. It fails without a shell at /bin/sh. The archive may be
// hostile.
func FromContainer(ctx context.Context, cfg Config, name string, archive io.Reader, replace bool) error {
	return fromFiles(ctx, cfg, name, replace, func(ctx context.Context, tree *rootfs.Tree, limit int64) error {
		_, err := tree.Extract(ctx, archive, limit)
		return err
	})
}

// FromOCI makes an image from a container image, and is otherwise like
// FromContainer. It ignores the container's environment and command: a guest
// starts the agent.
func FromOCI(ctx context.Context, cfg Config, name string, container *oci.Image, replace bool) error {
	return fromFiles(ctx, cfg, name, replace, func(ctx context.Context, tree *rootfs.Tree, limit int64) error {
		return container.Unpack(ctx, tree, limit, cmp.Or[io.Writer](cfg.Out, io.Discard))
	})
}

// unpacker writes at most limit bytes into an empty tree.
type unpacker func(ctx context.Context, tree *rootfs.Tree, limit int64) error

func fromFiles(ctx context.Context, cfg Config, name string, replace bool, unpack unpacker) error {
	p, err := named(cfg, name)
	if err != nil {
		return err
	}
	free := func() error {
		if !replace && p.store.has(name) {
			return wrenn.Errorf(wrenn.AlreadyExists, "there is an image %s already: take another name, or replace it (--replace)", name)
		}
		return nil
	}
	if err := free(); err != nil {
		return err
	}
	st, programs, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer st.discard()
	// Without the lock: the sender of the files may be slow.
	fmt.Fprintln(p.cfg.Out, "unpacking the container")
	if err := p.makeWithRoom(ctx, st.dir, programs, unpack); err != nil {
		return noSpace(err)
	}
	return p.underLock(ctx, func() error {
		if err := free(); err != nil { // another process was faster
			return err
		}
		target := newImage()
		if err := p.store.publish(st, target); err != nil {
			return err
		}
		return p.store.redirect(name, target)
	})
}

// begin returns an empty stage for an image, and the programs for it. The caller
// must discard the stage.
func (p *preparation) begin(ctx context.Context) (st *stage, programs []rootfs.File, err error) {
	err = p.underLock(ctx, func() error {
		if err := p.ensureBase(ctx); err != nil { // for tini
			return err
		}
		if programs, err = p.programs(); err != nil {
			return err
		}
		st, err = p.store.stage()
		return err
	})
	if err != nil && st != nil {
		st.discard()
	}
	return st, programs, err
}

// newImage returns an unused name in the store.
func newImage() string { return imagePrefix + strings.ToLower(rand.Text()) }

// Update puts this version's agent, init and tini into an image of FromContainer.
// It atomically replaces the image by a changed copy, which it has checked. Clones
// of the old image stay as they are.
func Update(ctx context.Context, cfg Config, name string) error {
	p, err := named(cfg, name)
	if err != nil {
		return err
	}
	return p.underLock(ctx, func() error {
		if !p.store.has(name) {
			return noImage(name)
		}
		if err := p.ensureBase(ctx); err != nil {
			return err
		}
		fmt.Fprintln(p.cfg.Out, "putting the agent into a copy of the image")
		return p.replaceImage(ctx, name, func(ctx context.Context, dir, from string) error {
			files, err := p.programs()
			if err != nil {
				return err
			}
			if err := p.inject(ctx, filepath.Join(dir, rootfsFile), dir, files); err != nil {
				return err
			}
			return p.replaceModules(ctx, dir, from)
		})
	})
}

// replaceImage replaces a named image by a copy, in dir, that change changes and
// checks; from is the directory of the old one. The caller must hold the lock.
func (p *preparation) replaceImage(ctx context.Context, name string, change func(ctx context.Context, dir, from string) error) error {
	target, from := newImage(), filepath.Join(p.store.dir, name)
	err := p.store.build(target, func(dir string) error {
		if _, err := storage.Clone(ctx, filepath.Join(dir, rootfsFile), filepath.Join(from, rootfsFile), 0o644); err != nil {
			return err
		}
		return change(ctx, dir, from)
	})
	if err != nil {
		return err
	}
	return p.store.redirect(name, target)
}

// Remove removes an image of FromContainer or FromOCI; clones of it stay. A name
// that does not exist is no error.
func Remove(ctx context.Context, cfg Config, name string) error {
	p, err := named(cfg, name)
	if err != nil {
		return err
	}
	return p.underLock(ctx, func() error {
		err := os.Remove(filepath.Join(p.store.dir, name)) // the link; its target is pruned
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// Names returns the names of the images of FromContainer and FromOCI.
func Names(cfg Config) ([]string, error) {
	entries, err := os.ReadDir(cfg.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink != 0 && nameForm.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func noImage(name string) error {
	return wrenn.Errorf(wrenn.NotFound, "there is no image %s (scripts/rootfs-from-container.sh makes one)", name)
}

// nameForm excludes paths and hidden files.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func checkName(name string) error {
	for _, prefix := range []string{basePrefix, guestPrefix, imagePrefix} {
		if strings.HasPrefix(name, prefix) {
			return wrenn.Errorf(wrenn.Invalid, "an image's name cannot begin with %s", prefix)
		}
	}
	if !nameForm.MatchString(name) {
		return wrenn.Errorf(wrenn.Invalid, "%q cannot name an image: use 1 to 63 of a-z 0-9 . _ - beginning with a letter or digit", name)
	}
	return nil
}

func named(cfg Config, name string) (*preparation, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, wrenn.Errorf(wrenn.PermissionDenied, "making an image needs root: its files belong to many users")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return newPreparation(cfg)
}

// makeWithRoom is makeImage that ends when the disk has too little room.
func (p *preparation) makeWithRoom(ctx context.Context, dir string, programs []rootfs.File, unpack unpacker) error {
	ctx, stop := guardSpace(ctx, dir, uint64(max(0, p.cfg.MinFree)))
	defer stop()
	err := p.makeImage(ctx, dir, programs, unpack)
	if cause := context.Cause(ctx); err != nil && wrenn.CodeOf(cause) == wrenn.Exhausted {
		return cause
	}
	return err
}

func (p *preparation) makeImage(ctx context.Context, dir string, programs []rootfs.File, unpack unpacker) error {
	work := filepath.Join(dir, "tree")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	if err := p.fillTree(ctx, work, programs, unpack); err != nil {
		return err
	}
	image := filepath.Join(dir, rootfsFile)
	fmt.Fprintln(p.cfg.Out, "making the file system")
	if err := rootfs.MakeExt4(ctx, work, image, p.cfg.Size); err != nil {
		return err
	}
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	return rootfs.Check(ctx, image)
}

// fillTree makes a guest's root from a container's files.
func (p *preparation) fillTree(ctx context.Context, dir string, programs []rootfs.File, unpack unpacker) error {
	tree, err := rootfs.OpenTree(dir)
	if err != nil {
		return err
	}
	defer func() { _ = tree.Close() }()
	if err := unpack(ctx, tree, p.cfg.Size); err != nil {
		return err
	}
	if !tree.Executable("/bin/sh") {
		return wrenn.Errorf(wrenn.FailedPrecondition, "the container has no shell at /bin/sh; a guest's init needs one")
	}
	for _, program := range programsForAgents {
		if tree.Find(program.name) == "" {
			fmt.Fprintln(p.cfg.Out, strings.TrimSuffix("missing in the container: "+program.name+": "+program.why, ": "))
		}
	}
	files := append(slices.Clone(programs),
		rootfs.File{Path: "/etc/hostname", Data: []byte("sandbox\n"), Mode: 0o644},
		rootfs.File{Path: "/etc/hosts", Data: []byte("127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n"), Mode: 0o644},
		rootfs.File{Path: "/etc/resolv.conf", Data: []byte("nameserver 1.1.1.1\nnameserver 8.8.8.8\n"), Mode: 0o644},
		rootfs.File{Path: "/etc/machine-id", Mode: 0o644},
	)
	if tree.Find("chronyd") != "" {
		files = append(files, chronyFiles()...)
	}
	for _, f := range files {
		if err := tree.WriteFile(f.Path, f.Data, f.Mode); err != nil {
			return err
		}
	}
	if err := p.addModules(tree, filepath.Dir(dir)); err != nil {
		return err
	}
	if err := tree.MakeDirectories(); err != nil {
		return err
	}
	return tree.AddUser()
}

// programs are the files that an image other than the base gets.
func (p *preparation) programs() ([]rootfs.File, error) {
	tini, err := os.ReadFile(p.store.path(p.base, tiniFile))
	if err != nil {
		return nil, err
	}
	return []rootfs.File{
		{Path: envdPath, Data: p.envd, Mode: 0o755},
		{Path: initPath, Data: p.stage0, Mode: 0o755},
		{Path: tiniPath, Data: tini, Mode: 0o755},
	}, nil
}

// redirect atomically points the link name to target, and removes its old target.
func (s *store) redirect(name, target string) error {
	link := filepath.Join(s.dir, name)
	old, err := os.Readlink(link)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	staged := filepath.Join(s.dir, stagePrefix+target)
	if err := os.Symlink(target, staged); err != nil {
		return err
	}
	if err := os.Rename(staged, link); err != nil {
		return err
	}
	if strings.HasPrefix(old, imagePrefix) {
		return os.RemoveAll(filepath.Join(s.dir, old))
	}
	return nil
}
