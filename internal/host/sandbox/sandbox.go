package sandbox

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/cmutex"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/host/sandbox/console"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/network/egress"
	"wrenn.dev/internal/vm"
)

// Sandbox is one sandbox. Destroy it. Its methods are safe for concurrent use.
type Sandbox struct {
	reporter

	host    *host
	request request
	made    chan struct{} // closed when the launch has ended, well or not

	op       cmutex.Mutex // the operation lock; its holder may use the next three, and change the status
	journal  record
	instance *instance.Instance // what it runs in; nil while it is paused
	other    *instance.Instance // a pending or a retired one; see replace.go

	owner   instance.Owner // of all its instances
	console console.Log
	state   state
	cancel  cancellation
	guest   atomic.Pointer[envdclient.Client] // of the instance, or of the last one
	resumes sharedCall
	meter   meter
	egress  egress.Log
}

// newSandbox returns a sandbox without anything.
func newSandbox(h *host, req request) *Sandbox {
	s := &Sandbox{reporter: reporter{id: req.id, pooled: req.Template == journal.PoolTemplate, cfg: &h.cfg}, host: h, request: req, made: make(chan struct{})}
	s.state = newState(&req.SandboxSpec, h.newVersion, h.notify, s.logRefused)
	s.journal = record{reserve: h.reserve, hook: s.at}
	if req.isInternal() {
		req.AccessToken = rand.Text()
	}
	s.owner = instance.Owner{
		ID: s.id, Dir: s.dir(), Size: req.Size, DiskMiB: req.DiskMiB, MaxDiskMiB: req.maxDiskMiB, Env: req.Env, AccessToken: req.AccessToken, Volumes: req.Volumes, Network: req.Network, Authority: req.authority, Secrets: req.Secrets, Record: s.recordPending, Started: s.started, MakeRoom: s.makeRoom,
		Hook: s.at, Trace: s.trace, Egress: s.egress.Record,
	}
	return s
}

// revive enters the sandbox of an earlier agent's journal, which was made then.
func revive(h *host, j *journal.Journal) *Sandbox {
	s := newSandbox(h, request{id: j.ID, parent: j.Parent, authority: j.Authority, SandboxSpec: wrenn.SandboxSpec{
		Template: j.Template, Size: j.Size, EndOfLife: wrenn.EndOfLife{Timeout: j.Timeout, OnTimeout: j.OnTimeout, Absolute: j.Absolute}, AutoResume: j.AutoResume, AccessToken: j.AccessToken,
		Volumes: j.Volumes, Network: j.Network, DiskMiB: j.DiskMiB, Team: j.Team, CheckpointEvery: j.CheckpointEvery,
	}})
	s.journal.open(j)
	s.state.setNetwork(j.Network, wrenn.SecretValues{}, j.Authority)
	if err := s.meter.series.Load(filepath.Join(s.dir(), metricsFile)); err != nil {
		s.logError(context.Background(), slog.LevelWarn, "metrics of an earlier agent are lost", err)
	}
	if j.Instance != nil {
		s.instance = h.instances.New(&s.owner, *j.Instance)
	}
	if j.Other != nil {
		s.other = h.instances.New(&s.owner, *j.Other)
	}
	if !j.Created.IsZero() {
		s.state.setCreated(j.Created)
	}
	if !j.EndsAt.IsZero() {
		s.state.setEnd(j.EndsAt)
	}
	close(s.made)
	h.registry.add(s)
	return s
}

// Info returns what the sandbox is like now.
func (s *Sandbox) Info() Info {
	spec := &s.request
	info := Info{ObservedSandbox: wrenn.ObservedSandbox{ID: s.id, Template: spec.Template, Size: spec.Size, DiskMiB: spec.DiskMiB, EndOfLife: spec.EndOfLife}}
	s.state.fill(&info)
	info.Epoch, info.SupersededBy = s.journal.epochs()
	info.NewestStored = s.journal.newestStored()
	if info.Status == StatusPaused {
		info.Stored = s.journal.stored()
	}
	return info
}

// isStorable reports whether the sandbox is stored when it is paused. The files of one
// with volumes are on this host alone.
func (s *Sandbox) isStorable() bool {
	return s.host.cfg.Objects != nil && s.request.Team != "" && len(s.request.Volumes) == 0
}

// CheckEpoch returns Unavailable if ctx is for another epoch than the sandbox has, see
// WithEpoch. All methods that change the sandbox do that by themselves.
func (s *Sandbox) CheckEpoch(ctx context.Context) error { return s.journal.checkEpoch(ctx, s.id) }

// ID returns the sandbox's id.
func (s *Sandbox) ID() wrenn.SandboxID { return s.id }

// Guest returns the client of the agent in the sandbox. It is for a caller that
// has called Use.
func (s *Sandbox) Guest() *envdclient.Client { return s.guest.Load() }

// DialPort connects to a TCP port of the sandbox; see envdclient.Client.DialPort.
// A paused sandbox with AutoResume is resumed first. The connection breaks when
// the sandbox is paused or ends. It does not count as use by itself: call Touch
// when something goes through it.
func (s *Sandbox) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	release, err := s.Use(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return s.Guest().DialPort(ctx, port)
}

// Touch records that the sandbox was used now.
func (s *Sandbox) Touch() { s.state.touch() }

// Use keeps the sandbox from ending for lack of use until release is called,
// once, and records that it was used now. FailedPrecondition unless it runs, Unavailable for another epoch and while it is paused or restored,
// NotResponding while its guest does not answer; but a paused sandbox with AutoResume is resumed first, once for all callers that wait.
func (s *Sandbox) Use(ctx context.Context) (release func(), err error) {
	if err := s.journal.checkEpoch(ctx, s.id); err != nil {
		return nil, err
	}
	for {
		if s.state.use() {
			return s.state.unuse, nil
		}
		info := s.Info()
		if info.Unresponsive != nil {
			return nil, info.Unresponsive.Refusal(s.id)
		}
		if info.Status == StatusRunning { // since then
			continue
		}
		if !s.state.following().AutoResume || !info.Status.resumable() {
			return nil, info.refusal()
		}
		if err := s.wake(ctx); err != nil {
			return nil, err
		}
		s.host.news.notify()
	}
}

// Extend sets the timeout after which the sandbox ends, counted from now; 0 is
// never. FailedPrecondition when it has ended.
func (s *Sandbox) Extend(ctx context.Context, timeout time.Duration) error {
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return err
	}
	defer locked.unlock()
	ends := time.Now().Add(timeout)
	if err := s.journal.commit("timeout", func(j *journal.Journal) { j.Timeout, j.EndsAt = timeout, ends }); err != nil {
		return err
	}
	s.state.setTimeout(timeout, ends)
	return nil
}

// SetSettings has a running or paused sandbox follow other settings.
func (s *Sandbox) SetSettings(ctx context.Context, settings wrenn.Settings) error {
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return err
	}
	defer locked.unlock()
	err = s.journal.commit("settings", func(j *journal.Journal) {
		j.OnTimeout, j.AutoResume, j.CheckpointEvery = settings.OnTimeout, settings.AutoResume, settings.CheckpointEvery
	})
	if err != nil {
		return err
	}
	s.state.follow(settings)
	return nil
}

// SetNetwork has a running or paused sandbox follow a network policy, at once, with the
// secrets for its header rules, which are kept in memory alone. Connections that it allows continue. FailedPrecondition when the sandbox has
// ended, Invalid when the policy cannot be followed. After another error either
// policy may hold until the next call, or the next agent, makes it the new one; or the
// guest did not accept the authority for its first header rules.
func (s *Sandbox) SetNetwork(ctx context.Context, policy wrenn.NetworkPolicy, secrets wrenn.SecretValues) error {
	if err := policy.Check(); err != nil {
		return err
	}
	locked, err := s.lock(ctx, StatusRunning, StatusPaused)
	if err != nil {
		return err
	}
	defer locked.unlock()
	authority, err := authorityFor(s.id, policy, s.owner.Authority)
	if err != nil {
		return err
	}
	if err := s.journal.commit("network policy", func(j *journal.Journal) { j.Network, j.Authority = policy, authority }); err != nil {
		return err
	}
	s.owner.Network, s.owner.Authority, s.owner.Secrets = policy, authority, secrets
	if s.instance != nil {
		if err := s.instance.FollowPolicy(ctx); err != nil {
			return err
		}
	}
	s.state.setNetwork(policy, secrets, authority)
	if s.instance != nil { // the policy holds, whatever the guest does
		return s.instance.TrustAuthority(ctx)
	}
	return nil
}

// authorityFor returns the authority of a sandbox with that policy: the one that it has,
// or a new one when there are header rules and none.
func authorityFor(id wrenn.SandboxID, policy wrenn.NetworkPolicy, has *egress.Authority) (*egress.Authority, error) {
	if has != nil || len(policy.Headers) == 0 {
		return has, nil
	}
	return egress.NewAuthority("sandbox " + string(id))
}

// Egress returns what the sandbox reached and was denied, after the event with that
// number. Without such events it waits for one until ctx ends. The events of an
// earlier agent are not kept.
func (s *Sandbox) Egress(ctx context.Context, after uint64) wrenn.EgressLog {
	return s.egress.Read(ctx, after)
}

// ExplainEgress reports whether the sandbox may reach a host at a port, and why; see
// network.Pool.Explain.
func (s *Sandbox) ExplainEgress(ctx context.Context, host string, port uint16) (wrenn.EgressExplanation, error) {
	return s.host.cfg.Slots.Explain(ctx, s.Info().Network, host, port)
}

func (s *Sandbox) dir() string { return filepath.Join(s.host.sandboxesDir(), string(s.id)) }

// keepConsole keeps the end of the console, so that a user can see why the
// sandbox ended. Cause may hold a console if there never was a machine. A failure
// does not stop the caller.
func (s *Sandbox) keepConsole(ctx context.Context, cause error) {
	text, _ := s.console.Text()
	if exit, ok := errors.AsType[*vm.ExitError](cause); ok {
		text = cmp.Or(text, exit.Console)
	}
	if err := s.host.consoles.Keep(s.id, text); err != nil {
		s.logError(ctx, slog.LevelWarn, "cannot keep a console", err)
	}
}
