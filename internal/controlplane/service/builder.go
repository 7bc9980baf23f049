package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/wake"
)

var (
	errServerStopped = wrenn.Errorf(wrenn.Unavailable, "the server stopped while it built: build again")
	errBuildDeleted  = wrenn.Errorf(wrenn.Canceled, "the template was deleted while it was built")
	errBuildRefused  = wrenn.Errorf(wrenn.FailedPrecondition, "the result of the build cannot be stored; the log of the control plane has the cause")
)

// buildJob is a build of a template that this replica runs.
type buildJob struct {
	wrenn.Build
	login wrenn.RegistryLogin
	// baseKey is where the template is stored from which it is built; "" is nowhere.
	baseKey string
	on      *reservation // the first host to try
	only    wrenn.HostID // "" is any host
	// ended, if not nil, gets the error of the build at its end, nil for none. It has room for it.
	ended chan<- error
}

// builder runs the builds that requests have started.
type builder struct {
	*core
	builds <-chan *buildJob
}

// run builds until ctx ends and the builds have ended.
func (b *builder) run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		select {
		case next := <-b.builds:
			work.Go(func() { b.build(ctx, next) })
		case <-ctx.Done():
			return nil
		}
	}
}

// build brings a build from building to ready or failed.
func (b *builder) build(ctx context.Context, job *buildJob) {
	limit := b.deadlines.Build
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	working, cancel := context.WithTimeoutCause(working, limit, wrenn.Errorf(wrenn.DeadlineExceeded, "the build took longer than %v", limit))
	defer cancel()
	log := followBuild(b.core, job.ID, stop)
	built, err := b.buildOnSomeHost(working, job, log)
	if ctx.Err() != nil {
		err = errServerStopped
	}
	log.end()
	b.end(ctx, &job.Build, built, err, log.at())
	if job.ended != nil {
		job.ended <- err
	}
}

// buildOnSomeHost builds on the reserved host. If that has no room, or lacks the
// source, it tries the others.
func (b *builder) buildOnSomeHost(ctx context.Context, job *buildJob, log *buildLog) (wrenn.BuildResult, error) {
	g, on := &job.Build, job.on
	place := need(g.Spec.Size, g.Spec.DiskMiB)
	place.Except = map[wrenn.HostID]bool{}
	team, err := b.policyOf(ctx, postgres.PolicyOwner{Team: g.Team})
	if err != nil {
		on.release(0)
		return wrenn.BuildResult{}, err
	}
	req := wrenn.BuildRequest{
		ID: g.ID, Spec: g.Spec, Login: job.login, Team: g.Team, BaseKey: job.baseKey, Network: wrenn.NetworkPolicy{}.With(team, wrenn.NetworkPolicy{}),
	}
	for {
		built, err := on.client.Build(ctx, req, log.event)
		on.release(0) // its machine has ended
		if err == nil || job.only != "" || !mayWorkElsewhere(g.Spec, err) {
			return built, err
		}
		log.add(fmt.Sprintf("host %s: %s", on.id, messageOf(err, "its host could not build it")))
		place.Except[on.id] = true
		next, noHost := b.hosts.reserve(&place)
		if noHost != nil {
			return built, err // the host's message says more
		}
		if err := b.store.PlaceBuild(ctx, g.ID, next.id); err != nil {
			next.release(0)
			return built, err
		}
		g.Host, on = next.id, next
	}
}

// mayWorkElsewhere reports whether another host may build what this one could not.
func mayWorkElsewhere(spec wrenn.TemplateSpec, err error) bool {
	code := wrenn.CodeOf(err)
	if len(spec.Steps) > 0 { // this host has what was uploaded, and what is cached
		return false
	}
	return code == wrenn.Exhausted || code == wrenn.NotFound && spec.From.Image != ""
}

// end writes the result of a build, as soon as the database can be reached. A
// build whose result the database refuses has failed. If ctx ends before, the
// templateReconciler ends the build.
func (b *builder) end(ctx context.Context, g *wrenn.Build, built wrenn.BuildResult, failed error, step string) {
	for {
		err := b.writeEnd(ctx, g, built, failed, step)
		switch {
		case err == nil:
			b.log.LogAttrs(ctx, slog.LevelInfo, "build ended", slog.String("build", string(g.ID)), slog.String("template", g.Template.String()),
				slog.String("host", string(g.Host)), slog.String("code", string(wrenn.CodeOf(failed)))) // not the message: it may be a program's output
			return
		case errors.Is(err, postgres.ErrConflict): // deleted since it was built
			ctx, cancel := detach(ctx, b.deadlines.Destroy)
			defer cancel()
			b.hosts.removeBuild(ctx, g.Host, g.ID, "")
			return
		}
		b.log.LogAttrs(ctx, slog.LevelWarn, "cannot write the end of a build; will retry", slog.String("build", string(g.ID)), slog.Any("err", err))
		if code := wrenn.CodeOf(err); code == wrenn.Internal || code == wrenn.Invalid {
			failed = errBuildRefused
		}
		if !wake.Sleep(ctx, retryEvery) {
			return
		}
	}
}

func (b *builder) writeEnd(ctx context.Context, g *wrenn.Build, built wrenn.BuildResult, failed error, step string) error {
	ctx, cancel := detach(ctx, 0)
	defer cancel()
	if failed != nil {
		return b.store.FailBuild(ctx, g.ID, messageOf(failed, "its host could not build it; the log of the host's agent has the cause"), step)
	}
	if g.Spec.From.Sandbox != "" {
		built.Env = g.Spec.Env // the sandbox's: its host does not know where they come from
	}
	return b.store.FinishBuild(ctx, g.ID, built)
}
