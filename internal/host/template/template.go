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
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/buildcache"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/image/oci"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
)

const (
	// parallel bounds the builds at work, each of which has a machine, and unpacking those
	// of them that unpack a container image. A command of a build may run as long as
	// the build may take, so a team has at most half. Further builds wait.
	parallel, unpacking = 8, 2
)

// buildImage begins the names of images that exist for a build only. The next
// part of the name differs between agents that share a directory of images.
const buildImage = "build."

// metadata is stored with a build's snapshot: what the snapshot itself does
// not say.
type metadata struct {
	Env    map[string]string `json:"env,omitempty"`
	Digest string            `json:"digest,omitempty"`
	// Of the commands of its sandboxes; "" is the agent's default.
	User    string `json:"user,omitempty"`
	Workdir string `json:"workdir,omitempty"`
}

// Config is what a builder works with. All fields are needed.
type Config struct {
	Manager    *sandbox.Manager
	Store      *storage.Store
	Images     image.Config   // where images are and how they are made
	Kernel     vm.Kernel      // what they boot
	Registries Registries     // from which container images may come
	Allowed    Images         // of Images, those from which teams may build; nil is all
	Closed     []netip.Prefix // networks to which no registry leads that is not named; optional
	Log        *slog.Logger
}

// Builder builds templates. It is safe for concurrent use.
type Builder struct {
	cfg     Config
	images  string // begins the names of this agent's buildImages
	slots   *slots
	unpacks *slots
	layers  *buildcache.Cache // disks after steps, by keys of steps
	files   *buildcache.Cache // archives of COPY steps, by their hashes
	booted  *booted
}

// The caches in the store.
const (
	layersDir = "layers"
	filesDir  = "build-files"
)

// New returns a builder. One at a time works with a store.
func New(cfg Config) (*Builder, error) {
	state := sha256.Sum256([]byte(cfg.Store.Dir))
	b := &Builder{cfg: cfg, images: buildImage + hex.EncodeToString(state[:4]) + ".", slots: newSlots(parallel), unpacks: newSlots(unpacking), booted: &booted{cfg: cfg}}
	layers, files := limitsOf(cfg.Store)
	var err error
	if b.layers, err = buildcache.Open(filepath.Join(cfg.Store.Dir, layersDir), layers); err != nil {
		return nil, err
	}
	if b.files, err = buildcache.Open(filepath.Join(cfg.Store.Dir, filesDir), files); err != nil {
		return nil, err
	}
	return b, nil
}

// Sweep removes the images and the guests that builds of a dead agent left. No build may be at work.
func (b *Builder) Sweep(ctx context.Context) error {
	names, err := image.Names(b.cfg.Images)
	if err != nil {
		return err
	}
	errs := []error{b.booted.sweep(ctx)}
	for _, name := range names {
		if strings.HasPrefix(name, b.images) {
			errs = append(errs, image.Remove(ctx, b.cfg.Images, name))
		}
	}
	return errors.Join(errs...)
}

// Build makes a build of a template, or returns the one that exists. It
// calls events with the steps that begin, and with lines about its progress and of
// the output of commands, one at a time, and waits for it. When ctx ends first nothing
// is left but results of steps, which later builds use.
// The error says what was wrong with the source or a command; the result has the
// variables of the container image and the spec.
func (b *Builder) Build(ctx context.Context, job wrenn.BuildRequest, events func(wrenn.BuildEvent)) (wrenn.BuildResult, error) {
	if err := b.check(job); err != nil {
		return wrenn.BuildResult{}, err
	}
	out := newOutput(events)
	release, err := b.slots.acquire(ctx, job.Team, func() { out.line("waiting for other builds on this host") })
	if err != nil {
		return wrenn.BuildResult{}, err
	}
	defer release()
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
	case from.Image != "" && b.cfg.Allowed != nil:
		if err := b.cfg.Allowed.allow(from.Image, job.Team); err != nil {
			return err
		}
	case from.OCI != "":
		return b.cfg.Registries.check(from.OCI)
	}
	if len(job.Spec.Steps) > 0 && job.Team == "" {
		return wrenn.Errorf(wrenn.Invalid, "a build with steps needs its team")
	}
	return nil
}

// HasFiles reports whether the files of a COPY step are here.
func (b *Builder) HasFiles(team wrenn.TeamID, hash string) bool {
	e := b.files.Get(string(team), hash)
	if e == nil {
		return false
	}
	e.Release()
	return true
}

// PutFiles stores the files of a COPY step: a tar archive, compressed by gzip or
// not, of at most wrenn.MaxArchiveBytes. It is not unpacked here, ever, but in the
// guest that builds. Content that ends with an error stores nothing.
func (b *Builder) PutFiles(ctx context.Context, team wrenn.TeamID, hash string, content io.Reader) error {
	if err := wrenn.CheckFilesHash(hash); err != nil {
		return err
	}
	tried := false
	e, err := b.files.Put(ctx, string(team), hash, nil, func(path string) (int64, error) {
		if tried { // the content was read
			return 0, wrenn.Errorf(wrenn.Exhausted, "this host's disk is full; upload again")
		}
		tried = true
		return 0, receive(path, content)
	})
	if err == nil {
		e.Release()
	}
	return err
}

// receive writes content to a new file.
func receive(path string, content io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o400)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(content, wrenn.MaxArchiveBytes+1))
	if err == nil && n > wrenn.MaxArchiveBytes {
		err = wrenn.Errorf(wrenn.Invalid, "the files of a step have more than %d MiB, as they are uploaded", wrenn.MaxArchiveBytes>>20)
	}
	return errors.Join(err, f.Close())
}

// find returns an existing build. NotFound when it does not exist.
func (b *Builder) find(ctx context.Context, id wrenn.BuildID) (wrenn.BuildResult, error) {
	kept, err := b.cfg.Manager.KeptSnapshot(ctx, string(id))
	if err != nil {
		return wrenn.BuildResult{}, err
	}
	m, err := parseMetadata(id, kept.Note)
	if err != nil {
		return wrenn.BuildResult{}, err
	}
	return wrenn.BuildResult{
		Size: kept.Size, DiskMiB: kept.DiskMiB, SizeBytes: kept.Bytes, Env: m.Env, Digest: m.Digest, DiskOnly: kept.DiskOnly, PolicyFollowed: true,
	}, nil
}

func parseMetadata(id wrenn.BuildID, text []byte) (m metadata, err error) {
	if len(text) == 0 {
		return m, nil
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("metadata of build %s: %w", id, err)
	}
	return m, nil
}

func (b *Builder) build(ctx context.Context, job wrenn.BuildRequest, out *output) error {
	spec := job.Spec
	if spec.From.Sandbox != "" {
		sb, err := b.cfg.Manager.Get(spec.From.Sandbox)
		if err != nil {
			return err
		}
		if spec.From.DiskOnly {
			out.line("saving the disk of sandbox %s as it is now", spec.From.Sandbox)
		} else {
			out.line("saving sandbox %s as it is now", spec.From.Sandbox)
		}
		return sb.SnapshotFor(ctx, job.Team, string(job.ID), spec.From.DiskOnly)
	}
	out.step(wrenn.StepBase)
	from, err := b.source(ctx, job, out)
	if err != nil {
		return err
	}
	defer from.release(context.WithoutCancel(ctx))
	guest, end, err := b.disk(ctx, job, from, out)
	if err != nil {
		return err
	}
	out.step(wrenn.StepFinalize)
	return b.finalize(ctx, job, guest, from.digest, end, out)
}

// disk makes the disk that the template's machine boots from, nil for the base
// guest's, and returns it with the state at its end. It goes with the source.
func (b *Builder) disk(ctx context.Context, job wrenn.BuildRequest, from *source, out *output) (*sandbox.Guest, state, error) {
	if len(job.Spec.Steps) == 0 {
		guest, err := from.load(ctx)
		return guest, from.start, err
	}
	return b.runSteps(ctx, job, from, out)
}

// finalize boots the disk, runs the template's commands and makes the snapshot.
func (b *Builder) finalize(ctx context.Context, job wrenn.BuildRequest, disk *sandbox.Guest, digest string, end state, out *output) error {
	spec := job.Spec
	m := metadata{Env: end.Env, Digest: digest}
	p := preparation{
		start: spec.StartCmd, ready: spec.ReadyCmd, user: end.User, dir: end.Workdir,
		timeout: cmp.Or(spec.ReadyTimeout, wrenn.DefaultReadyTimeout), settle: settleFor, out: out,
	}
	if len(spec.Steps) > 0 || spec.User != "" || spec.Workdir != "" {
		m.User, m.Workdir = end.User, end.Workdir
		p.defaults = &envdclient.Init{Env: end.Env}
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	out.line("booting")
	err = b.cfg.Manager.Build(ctx, sandbox.Recipe{
		Name: string(job.ID), Owner: job.Team, Size: spec.OrDefault(), Guest: disk, Env: end.Env, Note: text, Prepare: p.run,
		DiskMiB: spec.DiskMiB, MinFreeDiskMiB: spec.MinFreeDiskMiB, MaxDiskMiB: spec.MaxDiskMiB, Network: job.Network,
	})
	if err == nil {
		out.line("saved as a snapshot")
	}
	return err
}

// Delete removes a build; its files stay while a sandbox needs them. It is
// no error if the build does not exist. With an owner, what the snapshot store has of it
// is deleted, too.
func (b *Builder) Delete(ctx context.Context, id wrenn.BuildID, owner wrenn.TeamID) error {
	err := b.cfg.Manager.RemoveSnapshot(ctx, string(id), owner)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return nil
	}
	return err
}

// Builds returns the builds on this host, and where they are stored.
func (b *Builder) Builds() wrenn.HostBuilds {
	out := wrenn.HostBuilds{Stored: map[wrenn.BuildID]wrenn.Stored{}}
	copies := b.cfg.Manager.StoredSnapshots()
	for _, name := range b.cfg.Manager.KeptSnapshots() {
		id, err := wrenn.ParseBuildID(name)
		if err != nil { // no other snapshot's name is like it
			continue
		}
		out.IDs = append(out.IDs, id)
		if s, ok := copies[name]; ok {
			out.Stored[id] = s
		}
	}
	return out
}

// access returns the login for a registry, and a transport that dials only what
// the registries allow.
func (b *Builder) access(job wrenn.BuildRequest) oci.Access {
	return oci.Access{
		Username: job.Login.Username, Password: job.Login.Password,
		Transport: b.cfg.Registries.transport(job.Spec.From.OCI, b.cfg.Closed),
	}
}
