// Package template builds on a host what sandboxes start from: it boots an image,
// waits until the programs in it are ready, and saves memory and disk as a
// snapshot, a build of a template. Builds never change; the control
// plane decides which one a template's name means.
package template

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"golang.org/x/sync/semaphore"

	"wrenn"
	"wrenn/internal/host/sandbox"
	"wrenn/internal/image"
	"wrenn/internal/image/oci"
	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

const (
	// parallel bounds the builds at work: each takes a machine, and disk and CPU to
	// unpack images. Further builds wait.
	parallel = 2
	// maxEnvBytes bounds the variables of a build together, those of its
	// container image included: each of its sandboxes gets them.
	maxEnvBytes = 128 << 10
)

// buildImage begins the names of images that exist for a build only. The next
// part of the name differs between agents that share a directory of images.
const buildImage = "build."

// metadata is stored with a build's snapshot: what the snapshot itself does
// not say.
type metadata struct {
	Env    map[string]string `json:"env,omitempty"`
	Digest string            `json:"digest,omitempty"`
}

// Config is what a builder works with. All fields are needed.
type Config struct {
	Manager    *sandbox.Manager
	Store      *storage.Store
	Images     image.Config   // where images are and how they are made
	Kernel     vm.Kernel      // what they boot
	Registries Registries     // from which container images may come
	Closed     []netip.Prefix // networks to which no registry leads that is not named; optional
	Log        *slog.Logger
}

// Builder builds templates. It is safe for concurrent use.
type Builder struct {
	cfg    Config
	images string // begins the names of this agent's buildImages
	slots  *semaphore.Weighted
}

// New returns a builder.
func New(cfg Config) *Builder {
	state := sha256.Sum256([]byte(cfg.Store.Dir))
	return &Builder{cfg: cfg, images: buildImage + hex.EncodeToString(state[:4]) + ".", slots: semaphore.NewWeighted(parallel)}
}

// Sweep removes the images that builds of a dead agent left. No build may be at work.
func (b *Builder) Sweep(ctx context.Context) error {
	names, err := image.Names(b.cfg.Images)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, b.images) {
			errs = append(errs, image.Remove(ctx, b.cfg.Images, name))
		}
	}
	return errors.Join(errs...)
}

// Build makes a build of a template, or returns the one that exists. It
// calls log with lines about its progress and with the output of the start
// command, one at a time, and waits for log. When ctx ends first nothing is left.
// The error says what was wrong with the source or a command; the result has the
// variables of the container image and the spec.
func (b *Builder) Build(ctx context.Context, job wrenn.BuildRequest, log func(line string)) (wrenn.BuildResult, error) {
	if err := b.check(job); err != nil {
		return wrenn.BuildResult{}, err
	}
	out := &output{log: log}
	if !b.slots.TryAcquire(1) {
		out.line("waiting for other builds on this host")
		if err := b.slots.Acquire(ctx, 1); err != nil {
			return wrenn.BuildResult{}, context.Cause(ctx)
		}
	}
	defer b.slots.Release(1)
	if built, err := b.find(ctx, job.ID); wrenn.CodeOf(err) != wrenn.NotFound {
		return built, err
	}
	if err := b.build(ctx, job, out); err != nil {
		if ctx.Err() != nil { // the error of an interrupted step says less
			err = context.Cause(ctx)
		}
		return wrenn.BuildResult{}, err
	}
	return b.find(ctx, job.ID)
}

func (b *Builder) check(job wrenn.BuildRequest) error {
	if _, err := wrenn.ParseBuildID(string(job.ID)); err != nil {
		return err
	}
	if err := job.Check(); err != nil {
		return err
	}
	switch from := job.Spec.From; {
	case strings.HasPrefix(from.Image, buildImage): // another build's
		return wrenn.Errorf(wrenn.NotFound, "there is no image %.80q", from.Image)
	case from.OCI != "":
		return b.cfg.Registries.check(from.OCI)
	}
	return nil
}

// find returns an existing build. NotFound when it does not exist.
func (b *Builder) find(ctx context.Context, id wrenn.BuildID) (wrenn.BuildResult, error) {
	kept, err := b.cfg.Manager.KeptSnapshot(ctx, string(id))
	if err != nil {
		return wrenn.BuildResult{}, err
	}
	var m metadata
	if len(kept.Note) > 0 {
		if err := json.Unmarshal(kept.Note, &m); err != nil {
			return wrenn.BuildResult{}, fmt.Errorf("metadata of build %s: %w", id, err)
		}
	}
	return wrenn.BuildResult{Size: kept.Size, SizeBytes: kept.Bytes, Env: m.Env, Digest: m.Digest}, nil
}

func (b *Builder) build(ctx context.Context, job wrenn.BuildRequest, out *output) error {
	spec := job.Spec
	if spec.From.Sandbox != "" {
		sb, err := b.cfg.Manager.Get(spec.From.Sandbox)
		if err != nil {
			return err
		}
		out.line("saving sandbox %s as it is now", spec.From.Sandbox)
		return sb.Snapshot(ctx, string(job.ID))
	}
	from, err := b.source(ctx, job, out)
	if err != nil {
		return err
	}
	defer from.release(context.WithoutCancel(ctx))
	text, err := json.Marshal(metadata{Env: from.env, Digest: from.digest})
	if err != nil {
		return err
	}
	out.line("booting")
	p := preparation{
		start: spec.StartCmd, ready: spec.ReadyCmd, user: from.user, dir: from.dir,
		timeout: cmp.Or(spec.ReadyTimeout, wrenn.DefaultReadyTimeout), settle: settleFor, out: out,
	}
	err = b.cfg.Manager.Build(ctx, sandbox.Recipe{
		Name: string(job.ID), Size: spec.OrDefault(), Guest: from.guest, Env: from.env, Note: text, Prepare: p.run,
	})
	if err == nil {
		out.line("saved as a snapshot")
	}
	return err
}

// Delete removes a build; its files stay while a sandbox needs them. It is
// no error if the build does not exist.
func (b *Builder) Delete(ctx context.Context, id wrenn.BuildID) error {
	err := b.cfg.Manager.RemoveSnapshot(ctx, string(id))
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil
	}
	return err
}

// Builds returns the ids of the builds on this host.
func (b *Builder) Builds() []wrenn.BuildID {
	var ids []wrenn.BuildID
	for _, name := range b.cfg.Manager.KeptSnapshots() {
		if id, err := wrenn.ParseBuildID(name); err == nil { // no other snapshot's name is like it
			ids = append(ids, id)
		}
	}
	return ids
}

// access returns the login for a registry, and a transport that dials only what
// the registries allow.
func (b *Builder) access(job wrenn.BuildRequest) oci.Access {
	return oci.Access{
		Username: job.Login.Username, Password: job.Login.Password,
		Transport: b.cfg.Registries.transport(job.Spec.From.OCI, b.cfg.Closed),
	}
}
