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

// source is what a guest of a template boots from. Release it.
type source struct {
	guest     *sandbox.Guest // nil is the base guest
	env       map[string]string
	user, dir string // of the commands
	digest    string
	release   func(context.Context)
}

// source prepares what the spec names, as a file that can be cloned.
func (b *Builder) source(ctx context.Context, spec Spec, out *output) (_ *source, err error) {
	from := &source{env: map[string]string{}, release: func(context.Context) {}}
	defer func() {
		if err != nil {
			from.release(context.WithoutCancel(ctx))
		}
	}()
	cfg := b.cfg.Images
	cfg.Out, cfg.Name = out.writer(), spec.Image
	if spec.OCI != "" {
		cfg.Name = b.images + spec.Generation
		if err := b.pull(ctx, cfg, spec, from, out); err != nil {
			return nil, err
		}
	}
	maps.Copy(from.env, spec.Env)
	if size := sizeOf(from.env); size > maxEnv {
		return nil, wrenn.Errorf(wrenn.Invalid, "the variables of the template and its image have %d bytes together; at most are %d", size, maxEnv)
	}
	if cfg.Name == "" {
		return from, nil
	}
	return from, b.adopt(ctx, cfg, from)
}

func sizeOf(env map[string]string) (n int) {
	for name, value := range env {
		n += len(name) + len(value)
	}
	return n
}

// adopt puts the image where the disks are.
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
			b.left(ctx, "an image that nobody needs any more", err)
		}
	}
	from.guest = &sandbox.Guest{Name: guest.Digest, RootFS: rootfs, Kernel: b.cfg.Kernel}
	return nil
}

// pull makes an image of the container image, which release removes: a
// generation's disk is a clone of it.
func (b *Builder) pull(ctx context.Context, cfg image.Config, spec Spec, from *source, out *output) error {
	out.line("pulling %s", spec.OCI)
	container, err := oci.Pull(ctx, spec.OCI, b.access(spec))
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
			b.left(ctx, "the image of a build", err)
		}
	}
	return nil
}

func (b *Builder) left(ctx context.Context, what string, err error) {
	b.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "something of a build cannot be removed", slog.String("what", what), slog.Any("err", err))
}
