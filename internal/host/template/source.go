package template

import (
	"context"
	"errors"
	"log/slog"
	"maps"

	"wrenn"
	"wrenn/internal/host/sandbox"
	"wrenn/internal/image"
	"wrenn/internal/image/oci"
)

// source is what a guest of a template boots from. The caller releases it.
type source struct {
	guest     *sandbox.Guest // nil is the base guest
	env       map[string]string
	user, dir string // of the commands
	digest    string
	release   func(context.Context)
}

// source prepares the source of a template as a file that can be cloned.
func (b *Builder) source(ctx context.Context, job wrenn.BuildRequest, out *output) (_ *source, err error) {
	from := &source{env: map[string]string{}, release: func(context.Context) {}}
	defer func() {
		if err != nil {
			from.release(context.WithoutCancel(ctx))
		}
	}()
	cfg := b.cfg.Images
	cfg.Out, cfg.Name = out.writer(), job.Spec.From.Image
	if job.Spec.From.OCI != "" {
		cfg.Name = b.images + string(job.ID)
		if err := b.pull(ctx, cfg, job, from, out); err != nil {
			return nil, err
		}
	}
	maps.Copy(from.env, job.Spec.Env)
	if size := wrenn.EnvBytes(from.env); size > maxEnvBytes {
		return nil, wrenn.Errorf(wrenn.Invalid, "the variables of the template and its image have %d bytes together, more than %d", size, maxEnvBytes)
	}
	if cfg.Name == "" {
		return from, nil
	}
	return from, b.adopt(ctx, cfg, from)
}

// adopt copies the image to where the disks are.
func (b *Builder) adopt(ctx context.Context, cfg image.Config, from *source) error {
	guest, err := image.Prepare(ctx, cfg)
	if err != nil {
		return err
	}
	rootfs, err := b.cfg.Store.Import(ctx, guest.RootFS, guest.Digest)
	if err != nil {
		return err
	}
	remove := from.release
	from.release = func(ctx context.Context) {
		remove(ctx)
		b.cfg.Store.Release(guest.Digest)
		if err := b.cfg.Store.Collect(); err != nil {
			b.cannotRemove(ctx, "an unused image", err)
		}
	}
	from.guest = &sandbox.Guest{Name: guest.Digest, RootFS: rootfs, Kernel: b.cfg.Kernel}
	return nil
}

// pull makes an image of the container image. release removes it: a build's
// disk is a clone.
func (b *Builder) pull(ctx context.Context, cfg image.Config, job wrenn.BuildRequest, from *source, out *output) error {
	ref := job.Spec.From.OCI
	out.line("pulling %s", ref)
	container, err := oci.Pull(ctx, ref, b.access(job))
	if err != nil {
		return err
	}
	err = image.FromOCI(ctx, cfg, cfg.Name, container, true)
	if err := errors.Join(err, container.Close()); err != nil {
		return err
	}
	maps.Copy(from.env, container.Config.Env)
	from.user, from.dir, from.digest = container.Config.User, container.Config.WorkingDir, container.Digest
	from.release = func(ctx context.Context) {
		if err := image.Remove(ctx, cfg, cfg.Name); err != nil {
			b.cannotRemove(ctx, "the image of a build", err)
		}
	}
	return nil
}

func (b *Builder) cannotRemove(ctx context.Context, what string, err error) {
	b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot remove what a build left", slog.String("what", what), slog.Any("err", err))
}
