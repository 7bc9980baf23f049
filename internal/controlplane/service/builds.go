package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/postgres"
)

const (
	// keptLines is how much of a build's log is kept.
	keptLines = 2000
	// flushLog is how often what a build said is written, and whether it is
	// still wanted is asked.
	flushLog = time.Second
	// settledBuild is how old the row of an abandoned build must be, see reconcile.
	settledBuild = 10 * time.Second
	// settledGeneration is how long one that is not wanted any more stays: a
	// create that read its id before is on its way.
	settledGeneration = 2 * time.Minute
	// abandonedEvery is how often abandoned builds are looked for.
	abandonedEvery = 5 * time.Second
)

var (
	errStopped = wrenn.Errorf(wrenn.Unavailable, "the server stopped while it built: build again")
	errUnasked = wrenn.Errorf(wrenn.Canceled, "the template was deleted while it was built")
	errRefused = wrenn.Errorf(wrenn.FailedPrecondition, "what came of it cannot be kept; the log of the control plane says why")
)

const reasonAbandoned = "the server that built it is gone: build again"

// build is a generation that is being built here.
type build struct {
	generation *wrenn.Generation
	login      RegistryLogin
	only       wrenn.HostID // "" is any host
}

// runBuilds builds what requests have begun, until ctx ends and the builds have.
func (s *Service) runBuilds(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		select {
		case b := <-s.begun:
			work.Go(func() { s.build(ctx, b) })
		case <-ctx.Done():
			return nil
		}
	}
}

// build brings a generation from building to ready or failed.
func (s *Service) build(ctx context.Context, b *build) {
	limit := s.cfg.Deadlines.Build
	working, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	working, cancel := context.WithTimeoutCause(working, limit, wrenn.Errorf(wrenn.DeadlineExceeded, "the build took longer than %v", limit))
	defer cancel()
	log := s.followBuild(b.generation.ID, giveUp)
	built, err := s.buildSomewhere(working, b, log.say)
	if ctx.Err() != nil {
		err = errStopped
	}
	log.end()
	s.settleBuild(ctx, b.generation, built, err)
}

// buildSomewhere builds on a host that has room and what is asked for.
func (s *Service) buildSomewhere(ctx context.Context, b *build, say func(string)) (wrenn.BuiltGeneration, error) {
	g := b.generation
	tried := map[wrenn.HostID]bool{}
	var refused error
	for {
		m, err := s.fleet.pick(g.Spec.MemoryMiB, tried, b.only)
		if err != nil {
			return wrenn.BuiltGeneration{}, errors.Join(refused, err) // a host's own words come first
		}
		if err := s.store.PlaceBuild(ctx, g.ID, m.id); err != nil {
			return wrenn.BuiltGeneration{}, err
		}
		g.Host = m.id
		done := m.reserve(1, g.Spec.MemoryMiB)
		built, err := m.client.Build(ctx, g.ID, g.Spec, b.login, say)
		done(0) // nothing is left of its machine
		if err == nil || b.only != "" || !elsewhere(g.Spec, err) || len(tried) == len(s.fleet.members) {
			return built, err
		}
		say(fmt.Sprintf("host %s: %s", m.id, reasonOf(err)))
		tried[m.id], refused = true, err
	}
}

// elsewhere says whether another host may do what this one could not.
func elsewhere(spec wrenn.TemplateSpec, err error) bool {
	code := wrenn.CodeOf(err)
	return code == wrenn.Exhausted || code == wrenn.NotFound && spec.From.Image != ""
}

// settleBuild writes what came of a build, as soon as the database lets it. One
// whose result the database would refuse again has failed. When ctx ends before, whoever looks for abandoned builds does it.
func (s *Service) settleBuild(ctx context.Context, g *wrenn.Generation, built wrenn.BuiltGeneration, failed error) {
	for {
		err := s.writeBuild(ctx, g, built, failed)
		switch {
		case err == nil:
			s.log.LogAttrs(ctx, slog.LevelInfo, "build ended", slog.String("generation", string(g.ID)), slog.String("template", g.Template.String()),
				slog.String("host", string(g.Host)), slog.String("code", string(wrenn.CodeOf(failed)))) // no words: they may be the program's
			return
		case errors.Is(err, postgres.ErrConflict): // deleted meanwhile
			ctx, cancel := own(ctx, s.cfg.Deadlines.Destroy)
			defer cancel()
			s.removeGeneration(ctx, g.Host, g.ID)
			return
		}
		s.log.LogAttrs(ctx, slog.LevelWarn, "the end of a build is not written yet", slog.String("generation", string(g.ID)), slog.Any("error", err))
		if code := wrenn.CodeOf(err); code == wrenn.Internal || code == wrenn.Invalid {
			failed = errRefused
		}
		if !pause(ctx, retryEvery) {
			return
		}
	}
}

func (s *Service) writeBuild(ctx context.Context, g *wrenn.Generation, built wrenn.BuiltGeneration, failed error) error {
	ctx, cancel := own(ctx, 0)
	defer cancel()
	if failed != nil {
		return s.store.FailBuild(ctx, g.ID, reasonOfBuild(failed))
	}
	if g.Spec.From.Sandbox != "" {
		built.Env = g.Spec.Env // the sandbox's: its host does not know where they come from
	}
	return s.store.FinishBuild(ctx, g.ID, built)
}

func reasonOfBuild(err error) string {
	return messageOf(err, "its host could not build it; the log of the host's agent says why")
}

// buildLog collects what a build says and writes it now and then.
type buildLog struct {
	service *Service
	id      wrenn.GenerationID
	stop    context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex // guards what follows
	pending []string
	count   int64 // of lines, those in pending included
}

// followBuild calls giveUp when the build is not wanted any more. End it.
func (s *Service) followBuild(id wrenn.GenerationID, giveUp context.CancelCauseFunc) *buildLog {
	ctx, stop := context.WithCancel(context.Background()) // until end, which comes after the build's own
	l := &buildLog{service: s, id: id, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for pause(ctx, flushLog) {
			if err := l.flush(ctx); errors.Is(err, postgres.ErrConflict) {
				giveUp(errUnasked)
				return
			}
		}
	}()
	return l
}

// say takes a line. What the database does not take in time is bounded: the oldest go.
func (l *buildLog) say(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	l.pending = append(l.pending, line)
	if over := len(l.pending) - keptLines; over > 0 {
		l.pending = append(l.pending[:0], l.pending[over:]...)
	}
}

// flush writes what was said; when that fails it is said again next time.
func (l *buildLog) flush(ctx context.Context) error {
	l.mu.Lock()
	lines, first, count := l.pending, l.count-int64(len(l.pending)), l.count
	l.pending = nil
	l.mu.Unlock()
	err := l.service.store.AppendLines(ctx, l.id, first, lines, count-keptLines)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.pending = append(lines, l.pending...)
		if over := len(l.pending) - keptLines; over > 0 {
			l.pending = l.pending[over:]
		}
	}
	return err
}

// end writes the rest.
func (l *buildLog) end() {
	l.stop()
	<-l.done
	ctx, cancel := context.WithTimeout(context.Background(), rowTimeout)
	defer cancel()
	if err := l.flush(ctx); err != nil && !errors.Is(err, postgres.ErrConflict) {
		l.service.log.LogAttrs(ctx, slog.LevelWarn, "the end of a build's log is lost", slog.String("generation", string(l.id)), slog.Any("error", err))
	}
}

// tendTemplates ends abandoned builds and compares the generations of hosts with
// the rows, whenever no other replica does, until ctx ends.
func (s *Service) tendTemplates(ctx context.Context) error {
	for ctx.Err() == nil {
		lead, err := s.store.TryLead(ctx, "templates")
		if lead != nil {
			err = s.leadTemplates(ctx, lead)
			lead.Close(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "not looking after templates", slog.Any("error", err))
		}
		pause(ctx, abandonedEvery)
	}
	return nil
}

func (s *Service) leadTemplates(ctx context.Context, lead *postgres.Lead) error {
	reported := map[wrenn.GenerationID]bool{}
	var last time.Time
	for {
		if err := lead.Held(ctx); err != nil {
			return err
		}
		s.endAbandoned(ctx)
		if time.Since(last) >= s.cfg.ReconcileEvery {
			last = time.Now()
			s.compareGenerations(ctx, reported)
		}
		if !pause(ctx, min(abandonedEvery, s.cfg.ReconcileEvery)) {
			return nil
		}
	}
}

func (s *Service) endAbandoned(ctx context.Context) {
	ids, err := s.store.FailAbandoned(ctx, settledBuild, reasonAbandoned)
	if err != nil && ctx.Err() == nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "looking for abandoned builds", slog.Any("error", err))
	}
	for _, id := range ids {
		s.log.LogAttrs(ctx, slog.LevelInfo, "an abandoned build was ended", slog.String("generation", string(id)))
	}
}

// compareGenerations looks at each host that answers.
func (s *Service) compareGenerations(ctx context.Context, reported map[wrenn.GenerationID]bool) {
	for id, m := range s.fleet.members {
		if up, _ := m.known(); !up {
			continue
		}
		if err := s.compareHost(ctx, m, reported); err != nil && ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "comparing the templates of a host", slog.String("host", string(id)), slog.Any("error", err))
		}
	}
}

// compareHost removes what a row says is not wanted, fails what is not there, and
// reports what no row explains, which nobody removes.
func (s *Service) compareHost(ctx context.Context, m *member, reported map[wrenn.GenerationID]bool) error {
	wanted, err := s.store.ReadyOn(ctx, m.id) // before the host is asked: what becomes ready meanwhile is there
	if err != nil {
		return err
	}
	there, err := m.client.Generations(ctx)
	if err != nil {
		return err
	}
	has := map[wrenn.GenerationID]bool{}
	for _, id := range there {
		has[id] = true
	}
	for _, id := range wanted {
		if !has[id] {
			if err := s.store.LoseGeneration(ctx, id, "its host does not have it any more"); err != nil {
				return err
			}
			s.log.LogAttrs(ctx, slog.LevelWarn, "a generation is lost", slog.String("generation", string(id)), slog.String("host", string(m.id)))
		}
	}
	known, err := s.store.GenerationStates(ctx, there, settledGeneration)
	if err != nil {
		return err
	}
	for _, id := range there {
		k, explained := known[id]
		switch {
		case !explained && !reported[id]:
			reported[id] = true
			s.log.LogAttrs(ctx, slog.LevelWarn, "a host has a generation that no row explains; it is left alone",
				slog.String("generation", string(id)), slog.String("host", string(m.id)))
		case k.Settled && (k.State == wrenn.GenerationFailed || k.State == wrenn.GenerationDeleted):
			s.removeGeneration(ctx, m.id, id)
		}
	}
	return nil
}
