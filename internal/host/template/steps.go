package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/buildcache"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/storage"
)

// plannedStep is a step with what is known before it runs.
type plannedStep struct {
	wrenn.BuildStep
	number        int    // from 1
	key           string // of the disk after it
	before, after state
}

// changesDisk reports whether the step needs a guest. The others change the state alone.
func (s plannedStep) changesDisk() bool {
	return s.Kind != wrenn.StepEnv && s.Kind != wrenn.StepArg
}

// planSteps returns the steps with their keys, and the key of the source's disk. A
// key names what the disk is the result of: the source, and all steps until then
// with their files and variables.
func (b *Builder) planSteps(job wrenn.BuildRequest, from *source, out *output) ([]plannedStep, string, error) {
	const format = "1" // of keys; differs when steps begin to do something else
	base := keyOf(format, from.identity, from.start)
	key, now := base, from.start
	if disk := job.Spec.DiskMiB; disk != 0 { // a larger disk cannot become smaller
		key = keyOf(base, disk)
	}
	var plan []plannedStep
	for i, step := range job.Spec.Steps {
		after, err := now.apply(step)
		if err != nil {
			out.step(strconv.Itoa(i + 1))
			return nil, "", fmt.Errorf("step %d: %w", i+1, err)
		}
		step.Force = step.Force || job.Spec.NoCache || i > 0 && plan[i-1].Force
		key = keyOf(key, step.Kind, step.Args, step.Files, step.Shell)
		plan = append(plan, plannedStep{BuildStep: step, number: i + 1, key: key, before: now, after: after})
		now = after
	}
	return plan, base, nil
}

func keyOf(parts ...any) string {
	text, _ := json.Marshal(parts) // of strings, lists and maps of them, which are in order
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// runSteps runs the steps of the job whose results are not cached, and returns the
// disk after the last one, nil if it is the base guest's, and the state. The disk
// goes with the source.
func (b *Builder) runSteps(ctx context.Context, job wrenn.BuildRequest, from *source, out *output) (*sandbox.Guest, state, error) {
	plan, base, err := b.planSteps(job, from, out)
	if err != nil {
		return nil, state{}, err
	}
	end := plan[len(plan)-1].after
	r := &stepRun{Builder: b, job: job, out: out, from: from, steps: len(plan)}
	defer r.logUse()
	next := 0
	for i, step := range plan {
		if step.Force {
			break
		}
		if step.changesDisk() {
			if layer := b.layers.Get(string(job.Team), step.key); layer != nil {
				r.use(layer, step.key)
				next = i + 1
			}
		}
	}
	for _, step := range plan[:next] {
		r.cached(step)
	}
	if r.disk == nil {
		if err := r.base(ctx, base); err != nil {
			return nil, state{}, err
		}
	}
	err = r.run(ctx, plan[next:])
	return r.disk, end, err
}

// stepRun is the run of a build's steps.
type stepRun struct {
	*Builder
	job   wrenn.BuildRequest
	from  *source
	out   *output
	steps int // of the build

	disk *sandbox.Guest // after the last step; nil is the base guest
	key  string         // of the disk in the cache; "" if it is in none
}

// use makes a cached disk the current one, until the source is released.
func (r *stepRun) use(layer *buildcache.Entry, key string) {
	r.from.onRelease(func(context.Context) { layer.Release() })
	r.disk, r.key = &sandbox.Guest{Name: "layer-" + key[:16], RootFS: layer.Path, Kernel: r.cfg.Kernel}, key
}

// base loads the source's disk. That of a container image is cached, too: to unpack
// it again takes long.
func (r *stepRun) base(ctx context.Context, key string) error {
	if !r.from.cached {
		guest, err := r.from.load(ctx)
		r.disk = guest
		return err
	}
	if !r.job.Spec.NoCache {
		if layer := r.layers.Get(string(r.job.Team), key); layer != nil {
			r.out.line("the image is cached")
			r.use(layer, key)
			return nil
		}
	}
	guest, err := r.from.load(ctx)
	if err != nil {
		return err
	}
	layer, err := r.layers.Put(ctx, string(r.job.Team), key, nil, func(path string) (int64, error) {
		_, err := storage.Clone(ctx, path, guest.RootFS, 0o400)
		return 0, err
	})
	if err != nil {
		return err
	}
	r.use(layer, key)
	return nil
}

// run runs steps in one guest, and caches the disk after each.
func (r *stepRun) run(ctx context.Context, plan []plannedStep) error {
	work := false
	for _, step := range plan {
		work = work || step.changesDisk()
	}
	if !work {
		for _, step := range plan {
			r.begin(step)
			r.done(step, time.Now())
		}
		return nil
	}
	r.out.line("starting a machine for the steps")
	recipe := sandbox.Recipe{Size: r.job.Spec.OrDefault(), DiskMiB: r.job.Spec.DiskMiB, Guest: r.disk, Network: r.job.Network}
	if r.key != "" && !r.job.Spec.NoCache {
		recipe.Booted = r.booted.use(ctx, r.job.Team, r.key, recipe)
	}
	return r.cfg.Manager.Work(ctx, recipe, func(ctx context.Context, guest *sandbox.Sandbox) error {
		for _, step := range plan {
			if err := r.step(ctx, guest, step); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *stepRun) step(ctx context.Context, guest *sandbox.Sandbox, step plannedStep) error {
	began := time.Now()
	r.begin(step)
	if step.changesDisk() {
		worker := &stepWorker{guest: guest.Guest(), step: step, team: string(r.job.Team), files: r.files, out: r.out.numbered(step.number, began)}
		if err := worker.run(ctx); err != nil {
			r.out.line("#%d ERROR: %v", step.number, plain.Shorten(err.Error(), maxLine/2))
			return err
		}
		if err := r.keep(ctx, guest, step.key); err != nil {
			return fmt.Errorf("keep the result of step %d: %w", step.number, err)
		}
	}
	r.done(step, began)
	return nil
}

// keep caches the guest's disk as it is now.
func (r *stepRun) keep(ctx context.Context, guest *sandbox.Sandbox, key string) error {
	before := r.rootFS()
	layer, err := r.layers.Put(ctx, string(r.job.Team), key, nil, func(path string) (int64, error) {
		how, err := guest.CloneDisk(ctx, path)
		if err != nil || how != storage.Reflink {
			return 0, err
		}
		return blocks(before), nil
	})
	if err == nil {
		r.use(layer, key)
	}
	return err
}

func (r *stepRun) rootFS() string {
	if r.disk == nil {
		return r.cfg.Manager.BaseGuest().RootFS
	}
	return r.disk.RootFS
}

// blocks returns how many bytes of the disk a file takes, 0 if it cannot be found out.
func blocks(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func (r *stepRun) begin(step plannedStep) {
	r.out.step(strconv.Itoa(step.number))
	r.out.line("#%d [%d/%d] %s", step.number, step.number, r.steps, describe(step.BuildStep))
}

func (r *stepRun) cached(step plannedStep) {
	r.begin(step)
	r.out.line("#%d CACHED", step.number)
}

func (r *stepRun) done(step plannedStep, began time.Time) {
	r.out.line("#%d DONE %.1fs", step.number, time.Since(began).Seconds())
}

// logUse logs how much is cached now.
func (r *stepRun) logUse() {
	use := r.layers.Use()
	r.cfg.Log.Debug("steps of a build have run", slog.Int("layers", use.Entries), slog.Int64("bytes", use.Bytes))
}

// describe returns a step in a line. The values of variables are left out: they may
// be secrets.
func describe(step wrenn.BuildStep) string {
	words := step.Args
	switch step.Kind {
	case wrenn.StepEnv, wrenn.StepArg:
		words = nil
		for i := 0; i < len(step.Args); i += 2 {
			words = append(words, step.Args[i])
		}
	case wrenn.StepCopy:
		words = step.Args[:2]
	case wrenn.StepRun:
		words = step.Args[:1]
	}
	return plain.Shorten(plain.Line(string(step.Kind)+" "+strings.Join(words, " ")), maxLine/2)
}

// limitsOf returns the limits of the caches on a store: a quarter of it at most.
func limitsOf(store *storage.Store) (layers, files buildcache.Limits) {
	layers = buildcache.Limits{Entries: 400, Bytes: 40 << 30, TeamEntries: 100, TeamBytes: 20 << 30}
	files = buildcache.Limits{Entries: 2000, Bytes: 10 << 30, TeamEntries: 500, TeamBytes: 5 << 30}
	space, err := store.Space()
	if err != nil {
		return layers, files
	}
	for _, l := range []*buildcache.Limits{&layers, &files} {
		l.Bytes = min(l.Bytes, space.Total/4)
		l.TeamBytes = min(l.TeamBytes, l.Bytes)
	}
	return layers, files
}
