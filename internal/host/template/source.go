package template

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/image/oci"
)

// source is what a guest of a template boots from. The caller releases it.
type source struct {
	identity string // what its disk is; another disk has another one
	cached   bool   // loading it takes so long that its disk is cached
	start    state  // of the steps and commands
	digest   string
	// load prepares the disk; nil is the base guest.
	load func(context.Context) (*sandbox.Guest, error)

	undo []func(context.Context)
}

// onRelease adds a function for release.
func (s *source) onRelease(f func(context.Context)) { s.undo = append(s.undo, f) }

// release ends the use of the source and of what was made for it.
func (s *source) release(ctx context.Context) {
	for _, f := range slices.Backward(s.undo) {
		f(ctx)
	}
	s.undo = nil
}

// source finds the source of a template.
func (b *Builder) source(ctx context.Context, job wrenn.BuildRequest, out *output) (_ *source, err error) {
	spec := job.Spec
	from := &source{start: state{Env: map[string]string{}, User: spec.User, Workdir: spec.Workdir}}
	defer func() {
		if err != nil {
			from.release(context.WithoutCancel(ctx))
		}
	}()
	switch {
	case spec.From.OCI != "":
		err = b.fromContainer(ctx, job, from, out)
	case spec.From.Template != "":
		err = b.fromTemplate(ctx, job, from)
	case spec.From.Image != "":
		err = b.fromImage(ctx, spec.From.Image, from, out)
	default:
		from.identity = "base " + b.cfg.Manager.BaseGuest().Name
		from.load = func(context.Context) (*sandbox.Guest, error) { return nil, nil } // the base guest
	}
	if err != nil {
		return nil, err
	}
	maps.Copy(from.start.Env, spec.Env)
	if size := wrenn.EnvBytes(from.start.Env); size > wrenn.MaxEnvBytes { // each of its sandboxes gets them
		return nil, wrenn.Errorf(wrenn.Invalid, "the variables of the template and its image have %d bytes together, more than %d", size, wrenn.MaxEnvBytes)
	}
	return from, nil
}

// fromTemplate is the source of a template that is built from another one, which is
// fetched if this host does not have it.
func (b *Builder) fromTemplate(ctx context.Context, job wrenn.BuildRequest, from *source) error {
	id := job.Spec.From.Template
	guest, kept, release, err := b.cfg.Manager.SnapshotDisk(ctx, string(id))
	if wrenn.CodeOf(err) == wrenn.NotFound && job.BaseKey != "" {
		if err := b.cfg.Manager.FetchTemplate(ctx, job.Team, id, job.BaseKey); err != nil {
			return err
		}
		guest, kept, release, err = b.cfg.Manager.SnapshotDisk(ctx, string(id))
	}
	if err != nil {
		return err
	}
	from.onRelease(func(context.Context) { release() })
	m, err := parseMetadata(id, kept.Note)
	if err != nil {
		return err
	}
	maps.Copy(from.start.Env, m.Env)
	from.start.User, from.start.Workdir = cmp.Or(m.User, from.start.User), cmp.Or(m.Workdir, from.start.Workdir)
	from.digest, from.identity = m.Digest, "template "+string(id)
	from.load = func(context.Context) (*sandbox.Guest, error) { return &guest, nil }
	return nil
}

// fromImage is the source of a template that is built from an image of this host.
func (b *Builder) fromImage(ctx context.Context, name string, from *source, out *output) error {
	cfg := b.cfg.Images
	cfg.Out, cfg.Name = out.writer(), name
	guest, err := image.Prepare(ctx, cfg)
	if err != nil {
		return err
	}
	from.identity = "image " + guest.Digest
	from.load = func(ctx context.Context) (*sandbox.Guest, error) { return b.adopt(ctx, guest, from) }
	return nil
}

// adopt copies the image to where the disks are.
func (b *Builder) adopt(ctx context.Context, guest image.Guest, from *source) (*sandbox.Guest, error) {
	rootfs, err := b.cfg.Store.Import(ctx, guest.RootFS, guest.Digest)
	if err != nil {
		return nil, err
	}
	from.onRelease(func(ctx context.Context) {
		b.cfg.Store.Release(guest.Digest)
		if err := b.cfg.Store.Collect(); err != nil {
			b.cannotRemove(ctx, "an unused image", err)
		}
	})
	return &sandbox.Guest{Name: guest.Digest, RootFS: rootfs, Kernel: b.cfg.Kernel}, nil
}

// fromContainer is the source of a template that is built from a container image.
// The disk has the agent of the base guest.
func (b *Builder) fromContainer(ctx context.Context, job wrenn.BuildRequest, from *source, out *output) error {
	ref := job.Spec.From.OCI
	out.line("pulling %s", ref)
	container, err := oci.Pull(ctx, ref, b.access(job))
	if err != nil {
		return err
	}
	from.onRelease(func(ctx context.Context) {
		if err := container.Close(); err != nil {
			b.cannotRemove(ctx, "a container image", err)
		}
	})
	maps.Copy(from.start.Env, container.Config.Env)
	from.start.User, from.start.Workdir = cmp.Or(from.start.User, container.Config.User), cmp.Or(from.start.Workdir, container.Config.WorkingDir)
	from.digest, from.cached = container.Digest, true
	from.identity = "container " + container.Digest + " with " + b.cfg.Manager.BaseGuest().Name
	from.load = func(ctx context.Context) (*sandbox.Guest, error) { return b.unpack(ctx, job, container, from, out) }
	return nil
}

// unpack makes an image of the container image, which goes with the source: a
// build's disk is a clone.
func (b *Builder) unpack(ctx context.Context, job wrenn.BuildRequest, container *oci.Image, from *source, out *output) (*sandbox.Guest, error) {
	done, err := b.unpacks.acquire(ctx, job.Team, func() { out.line("waiting for other builds that unpack images") })
	if err != nil {
		return nil, err
	}
	defer done()
	cfg := b.cfg.Images
	cfg.Out, cfg.Name = out.writer(), b.images+string(job.ID)
	if err := image.FromOCI(ctx, cfg, cfg.Name, container, true); err != nil {
		return nil, err
	}
	from.onRelease(func(ctx context.Context) {
		if err := image.Remove(ctx, cfg, cfg.Name); err != nil {
			b.cannotRemove(ctx, "the image of a build", err)
		}
	})
	guest, err := image.Prepare(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return b.adopt(ctx, guest, from)
}

func (b *Builder) cannotRemove(ctx context.Context, what string, err error) {
	b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot remove what a build left", slog.String("what", what), slog.Any("err", err))
}
