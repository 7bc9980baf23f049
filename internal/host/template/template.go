// Package template builds on a host what sandboxes start from: it boots an
// image, waits until what shall run in it is ready, and keeps memory and disk as
// a snapshot, a generation of a template. Generations never change; which one a
// template's name means is the control plane's business.
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
	"regexp"
	"strings"
	"time"

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
	// unpack images. More of them wait.
	parallel = 2
	// maxEnv bounds the variables of a generation together: they travel with each of its sandboxes.
	maxEnv = 128 << 10
	// defaultReady is that of Spec.ReadyTimeout.
	defaultReady = 2 * time.Minute
)

// buildImage begins the names of images that are there for a build alone. What
// follows tells agents apart that share a directory of images.
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
	Access  Access // for OCI
	Sandbox wrenn.SandboxID

	// Shape, Env and the commands do not go with Sandbox, which has its own.
	Shape sandbox.Shape
	Env   map[string]string
	Start string // a shell command that runs on in every sandbox
	Ready string // a shell command that succeeds when the sandbox is ready
	// ReadyTimeout bounds the wait for Ready; default 2 min.
	ReadyTimeout time.Duration
}

// Access is what a registry asks for. It is used for the pull and kept nowhere.
type Access struct{ Username, Password string }

// Built is a generation that is there.
type Built struct {
	Shape sandbox.Shape
	Bytes int64 // on the disk, shared ones included
	// Env is what commands in its sandboxes are to have beside their own: the
	// container image's variables and the spec's.
	Env    map[string]string
	Digest string // of the container image, if it is made of one
}

// note is kept with a generation's snapshot: what the snapshot itself does not say.
type note struct {
	Env    map[string]string `json:"env,omitempty"`
	Digest string            `json:"digest,omitempty"`
}

// Config is what a builder works with. All fields are needed.
type Config struct {
	Manager    *sandbox.Manager
	Store      *storage.Store
	Images     image.Config // where images are and how they are made
	Kernel     vm.Kernel    // what they boot
	Registries Registries   // from which container images may come
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

// Sweep removes what builds of a dead agent have left. No build may be at work.
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

// Build makes a generation, unless it is there, and calls say with lines about
// how far it is and with what the start command prints, one at a time; the
// build waits for say. When ctx ends before it is done nothing is left. The
// error says what was wrong with the source or a command.
func (b *Builder) Build(ctx context.Context, spec Spec, say func(line string)) (Built, error) {
	if err := b.check(spec); err != nil {
		return Built{}, err
	}
	out := &output{say: say}
	if !b.slots.TryAcquire(1) {
		out.line("waiting for other builds on this host")
		if err := b.slots.Acquire(ctx, 1); err != nil {
			return Built{}, context.Cause(ctx)
		}
	}
	defer b.slots.Release(1)
	if built, err := b.find(ctx, spec.Generation); wrenn.CodeOf(err) != wrenn.NotFound {
		return built, err
	}
	if err := b.build(ctx, spec, out); err != nil {
		if ctx.Err() != nil { // what was cut says less
			err = context.Cause(ctx)
		}
		return Built{}, err
	}
	return b.find(ctx, spec.Generation)
}

func (b *Builder) check(spec Spec) error {
	sources := 0
	for _, source := range []string{spec.Image, spec.OCI, string(spec.Sandbox)} {
		if source != "" {
			sources++
		}
	}
	switch {
	case CheckGeneration(spec.Generation) != nil:
		return CheckGeneration(spec.Generation)
	case sources > 1:
		return wrenn.Errorf(wrenn.Invalid, "a template is made from an image, a container image or a sandbox: say one of them")
	case spec.Sandbox != "" && (spec.Start != "" || spec.Ready != "" || len(spec.Env) > 0 || spec.Shape != sandbox.Shape{}):
		return wrenn.Errorf(wrenn.Invalid, "a template made from a sandbox is that sandbox as it is: run commands in it before, and leave out size, variables and commands")
	case strings.HasPrefix(spec.Image, buildImage): // another build's
		return wrenn.Errorf(wrenn.NotFound, "there is no image %.80q", spec.Image)
	case spec.OCI != "":
		return b.cfg.Registries.check(spec.OCI)
	}
	return nil
}

// find is a generation that is there.
func (b *Builder) find(ctx context.Context, generation string) (Built, error) {
	kept, err := b.cfg.Manager.KeptSnapshot(ctx, generation)
	if err != nil {
		return Built{}, err
	}
	var n note
	if len(kept.Note) > 0 {
		if err := json.Unmarshal(kept.Note, &n); err != nil {
			return Built{}, fmt.Errorf("note of generation %s: %w", generation, err)
		}
	}
	return Built{Shape: kept.Shape, Bytes: kept.Bytes, Env: n.Env, Digest: n.Digest}, nil
}

func (b *Builder) build(ctx context.Context, spec Spec, out *output) error {
	if spec.Sandbox != "" {
		sb, err := b.cfg.Manager.Get(spec.Sandbox)
		if err != nil {
			return err
		}
		out.line("keeping sandbox %s as it is now", spec.Sandbox)
		return sb.Snapshot(ctx, spec.Generation)
	}
	from, err := b.source(ctx, spec, out)
	if err != nil {
		return err
	}
	defer from.release(context.WithoutCancel(ctx))
	text, err := json.Marshal(note{Env: from.env, Digest: from.digest})
	if err != nil {
		return err
	}
	out.line("booting")
	p := preparation{
		start: spec.Start, ready: spec.Ready, user: from.user, dir: from.dir,
		timeout: cmp.Or(spec.ReadyTimeout, defaultReady), settle: settleFor, out: out,
	}
	err = b.cfg.Manager.Build(ctx, sandbox.Recipe{
		Name: spec.Generation, Shape: spec.Shape, Guest: from.guest, Env: from.env, Note: text, Prepare: p.run,
	})
	if err == nil {
		out.line("kept as a snapshot")
	}
	return err
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
	for _, id := range b.cfg.Manager.KeptSnapshots() {
		if CheckGeneration(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// access is oci's, through a transport that dials what the registries allow.
func (b *Builder) access(spec Spec) oci.Access {
	return oci.Access{
		Username: spec.Access.Username, Password: spec.Access.Password,
		Transport: b.cfg.Registries.transport(spec.OCI),
	}
}
