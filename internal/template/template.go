// Package template builds on a host what sandboxes start from: it boots an
// image, waits until what shall run in it is ready, and keeps memory and disk as
// a snapshot, a generation of a template. Generations never change; which one a
// template's name means is the control plane's business.
package template

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"wrenn"
	"wrenn/internal/image"
	"wrenn/internal/image/oci"
	"wrenn/internal/sandbox"
	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

// parallel bounds the builds at work: each takes a machine, and disk and CPU to
// unpack images. More of them wait.
const parallel = 2

// buildImage begins the names of images that are there for a build alone.
const buildImage = "build."

// generationForm is what names a generation; no other snapshot's name is like it.
var generationForm = regexp.MustCompile(`^t[a-z0-9]{20}$`)

// CheckGeneration says whether the id can name a generation: Invalid when not.
func CheckGeneration(id string) error {
	if !generationForm.MatchString(id) {
		return wrenn.Errorf(wrenn.Invalid, "%.80q is no generation of a template", id)
	}
	return nil
}

// Spec is what is to be built. Generation and at most one source are needed;
// without a source it is the base guest.
type Spec struct {
	Generation string
	// The sources: an image of this host (see image.FromContainer), a container
	// image of a registry, or a running sandbox of this host as it is now.
	Image   string
	OCI     string
	Access  oci.Access // for OCI
	Sandbox wrenn.SandboxID

	// Shape, Env and the commands do not go with Sandbox, which has its own.
	Shape sandbox.Shape
	Env   map[string]string
	Start string // a shell command that runs on in every sandbox
	Ready string // a shell command that succeeds when the sandbox is ready
	// ReadyTimeout bounds the wait for Ready; default 2 min.
	ReadyTimeout time.Duration
}

// Built is a generation that is there.
type Built struct {
	Shape sandbox.Shape
	Bytes int64 // on the disk, shared ones included
	// Env is what commands in its sandboxes are to have beside their own: the
	// container image's variables and the spec's.
	Env    map[string]string
	Digest string // of the container image, if it is made of one
}

// Config is what a builder works with. All fields are needed.
type Config struct {
	Manager *sandbox.Manager
	Store   *storage.Store
	Images  image.Config // where images are and how they are made
	Kernel  vm.Kernel    // what they boot
	Log     *slog.Logger
}

// Builder builds templates. It is safe for concurrent use.
type Builder struct {
	cfg   Config
	slots *semaphore.Weighted
}

// New returns a builder.
func New(cfg Config) *Builder {
	return &Builder{cfg: cfg, slots: semaphore.NewWeighted(parallel)}
}

// Sweep removes what builds of a dead agent have left. No build may be at work.
func (b *Builder) Sweep(ctx context.Context) error {
	names, err := image.Names(b.cfg.Images)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, buildImage) {
			errs = append(errs, image.Remove(ctx, b.cfg.Images, name))
		}
	}
	return errors.Join(errs...)
}

// Build makes a generation, unless it is there, and tells out, line by line,
// how far it is and what the start command prints. When ctx ends before it is
// done nothing is left. The error says what was wrong with the source or a command.
func (b *Builder) Build(ctx context.Context, spec Spec, out io.Writer) (Built, error) {
	if err := spec.check(); err != nil {
		return Built{}, err
	}
	if !b.slots.TryAcquire(1) {
		fmt.Fprintln(out, "waiting for another build on this host")
		if err := b.slots.Acquire(ctx, 1); err != nil {
			return Built{}, context.Cause(ctx)
		}
	}
	defer b.slots.Release(1)
	if built, err := b.find(ctx, spec); wrenn.CodeOf(err) != wrenn.NotFound {
		return built, err
	}
	from, err := b.build(ctx, spec, out)
	if err != nil {
		return Built{}, err
	}
	built, err := b.find(ctx, spec)
	built.Env, built.Digest = from.env, from.digest
	return built, err
}

func (s Spec) check() error {
	sources := 0
	for _, source := range []string{s.Image, s.OCI, string(s.Sandbox)} {
		if source != "" {
			sources++
		}
	}
	switch {
	case CheckGeneration(s.Generation) != nil:
		return CheckGeneration(s.Generation)
	case sources > 1:
		return wrenn.Errorf(wrenn.Invalid, "a template is made from an image, a container image or a sandbox: say one of them")
	case s.Sandbox != "" && (s.Start != "" || s.Ready != "" || len(s.Env) > 0 || s.Shape != sandbox.Shape{}):
		return wrenn.Errorf(wrenn.Invalid, "a template made from a sandbox is that sandbox as it is: run commands in it before, and leave out size, variables and commands")
	}
	return nil
}

// find is a generation that is there.
func (b *Builder) find(ctx context.Context, spec Spec) (Built, error) {
	kept, err := b.cfg.Manager.KeptSnapshot(ctx, spec.Generation)
	if err != nil {
		return Built{}, err
	}
	return Built{Shape: kept.Shape, Bytes: kept.Bytes, Env: spec.Env}, nil
}

func (b *Builder) build(ctx context.Context, spec Spec, out io.Writer) (*source, error) {
	if spec.Sandbox != "" {
		fmt.Fprintf(out, "keeping sandbox %s as it is now\n", spec.Sandbox)
		sb, err := b.cfg.Manager.Get(spec.Sandbox)
		if err != nil {
			return nil, err
		}
		return &source{}, sb.Snapshot(ctx, spec.Generation)
	}
	from, err := b.source(ctx, spec, out)
	if err != nil {
		return nil, err
	}
	defer func() { from.release(context.WithoutCancel(ctx)) }()
	env := maps.Clone(from.env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, spec.Env)
	from.env = env
	fmt.Fprintln(out, "booting")
	p := preparation{
		start: spec.Start, ready: spec.Ready, user: from.user, dir: from.dir,
		timeout: cmp.Or(spec.ReadyTimeout, 2*time.Minute), out: out,
	}
	err = b.cfg.Manager.Build(ctx, sandbox.Recipe{
		Name: spec.Generation, Shape: spec.Shape, Guest: from.guest, Env: env, Prepare: p.run,
	})
	if err == nil {
		fmt.Fprintln(out, "kept as a snapshot")
	}
	return from, err
}

// Delete lets a generation go; its files stay while a sandbox needs them. One
// that is not there is no error.
func (b *Builder) Delete(ctx context.Context, generation string) error {
	if err := CheckGeneration(generation); err != nil {
		return err
	}
	err := b.cfg.Manager.RemoveSnapshot(ctx, generation)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil
	}
	return err
}

// Generations lists those that are on this host.
func (b *Builder) Generations() []string {
	var ids []string
	for _, id := range b.cfg.Manager.SnapshotNames() {
		if CheckGeneration(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// source is what a guest of a template boots from.
type source struct {
	guest     *sandbox.Guest // nil is the base guest
	env       map[string]string
	user, dir string // of the start command
	digest    string
	release   func(context.Context)
}

// source prepares what the spec names, as a file that can be cloned.
func (b *Builder) source(ctx context.Context, spec Spec, out io.Writer) (_ *source, err error) {
	from := &source{release: func(context.Context) {}}
	cfg := b.cfg.Images
	cfg.Out = out
	switch {
	case spec.Image != "":
		cfg.Name = spec.Image
	case spec.OCI != "":
		cfg.Name = buildImage + spec.Generation
		if err := b.pull(ctx, cfg, spec, from, out); err != nil {
			return nil, err
		}
	default:
		return from, nil
	}
	defer func() {
		if err != nil {
			from.release(context.WithoutCancel(ctx))
		}
	}()
	guest, err := image.Prepare(ctx, cfg)
	if err != nil {
		return nil, err
	}
	rootfs, err := b.cfg.Store.Import(ctx, guest.RootFS, guest.Digest)
	if err != nil {
		return nil, err
	}
	remove := from.release
	from.release = func(ctx context.Context) {
		remove(ctx)
		b.cfg.Store.Release(guest.Digest)
		if err := b.cfg.Store.Keep(); err != nil {
			b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "an image that nobody needs any more cannot be removed", slog.Any("err", err))
		}
	}
	from.guest = &sandbox.Guest{Name: guest.Digest, RootFS: rootfs, Kernel: b.cfg.Kernel}
	return from, nil
}

// pull makes an image of the container image, which release removes: a
// generation's disk is a clone of it.
func (b *Builder) pull(ctx context.Context, cfg image.Config, spec Spec, from *source, out io.Writer) error {
	fmt.Fprintf(out, "pulling %s\n", spec.OCI)
	container, err := oci.Pull(ctx, spec.OCI, spec.Access)
	if err != nil {
		return err
	}
	err = image.FromOCI(ctx, cfg, cfg.Name, container, true)
	if err := errors.Join(err, container.Close()); err != nil {
		return err
	}
	from.env, from.dir, from.digest = container.Config.Env, container.Config.WorkingDir, container.Digest
	from.user = container.Config.User
	from.release = func(ctx context.Context) {
		if err := image.Remove(ctx, cfg, cfg.Name); err != nil {
			b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "the image of a build cannot be removed", slog.Any("err", err))
		}
	}
	return nil
}
