package service

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/scheduler"
	"wrenn.dev/internal/tracing"
)

// defaultTimeout is the timeout of a sandbox, as the API documents it.
const defaultTimeout = 300 * time.Second

// CreateSandbox is a sandbox to make. Zero values are the defaults: template
// "base", 1 vCPU, 512 MB, 300 s, then destroyed. A Timeout below zero is never.
// Which build of the template it is made from is not the caller's choice. Volumes
// have the name or id of the volume as Name.
type CreateSandbox struct {
	wrenn.SandboxSpec
	Metadata map[string]string
	Requires map[string]string // labels that its host must have; zone asks for a zone
	Ingress  wrenn.Ingress
	// OnHostLoss is what becomes of it when it runs and its host is lost.
	OnHostLoss wrenn.OnHostLoss
}

// CreateSandbox returns when the sandbox runs. When ctx ends before, what was
// made is undone. Exhausted says what is full: the team's limit or the hosts.
func (s *Sandboxes) CreateSandbox(ctx context.Context, c Caller, req CreateSandbox) (*wrenn.Sandbox, error) {
	return s.createWithID(ctx, c, wrenn.NewSandboxID(), req)
}

func (s *Sandboxes) createWithID(ctx context.Context, c Caller, id wrenn.SandboxID, req CreateSandbox) (*wrenn.Sandbox, error) {
	from, err := s.resolveTemplate(ctx, c, req.Template)
	if err != nil {
		return nil, err
	}
	if err := s.limits.checkDisk(req.DiskMiB); err != nil {
		return nil, err
	}
	if err := from.apply(&req); err != nil {
		return nil, err
	}
	var volumes wrenn.HostID
	if req.Volumes, volumes, err = s.findVolumes(ctx, c, req.Volumes); err != nil {
		return nil, err
	}
	sb, err := s.limits.describe(id, req)
	if err != nil {
		return nil, err
	}
	only, err := hostOf(from.host, volumes)
	if err != nil {
		return nil, err
	}
	if sb.Network, err = s.sealProxy(c.Team, sb.Network); err != nil {
		return nil, err
	}
	secrets, err := s.checkedSecrets(ctx, c.Team, sb.Network)
	if err != nil {
		return nil, err
	}
	sb.Team, sb.Template, sb.Build = c.Team, from.name.String(), from.build
	var place scheduler.Request
	var on *reservation
	err = tracing.Do(ctx, "place", func(ctx context.Context) (err error) {
		s.hosts.waitForPings(ctx)
		place = s.hosts.request(ctx, &sb, only)
		place.Template = s.hosts.sharedTemplate(from.shared)
		on, err = s.hosts.reserve(&place)
		return err
	})
	if err != nil {
		return nil, err // without a row
	}
	sb.Host, sb.Reason = on.id, on.why
	var row *wrenn.Sandbox
	err = tracing.Do(ctx, "row", func(ctx context.Context) (err error) {
		row, err = s.store.CreateSandbox(ctx, sb, s.limits.Limits, c.actor())
		return err
	})
	if err != nil {
		on.release(0)
		s.handToReconcilerIfUnsure(ctx, &sb, err)
		return nil, err
	}
	row.Secrets, row.BuildKey = secrets, from.key()
	return starting{core: s.core, actor: c.actor()}.create(ctx, row, on, &place)
}

// describe returns the row of a requested sandbox with that id, without its team, template and host.
func (l Limits) describe(id wrenn.SandboxID, req CreateSandbox) (wrenn.Sandbox, error) {
	sb := wrenn.Sandbox{ID: id, Metadata: req.Metadata, Requires: req.Requires, SandboxSpec: req.SandboxSpec, Ingress: req.Ingress, OnHostLoss: cmp.Or(req.OnHostLoss, wrenn.FailOnHostLoss)}
	sb.Size, sb.OnTimeout = sb.OrDefault(), cmp.Or(sb.OnTimeout, wrenn.DestroyOnTimeout)
	var err error
	if sb.Timeout, err = l.timeout(req.Timeout, defaultTimeout); err != nil {
		return sb, err
	}
	if err := checkSettings(sb.Settings(), sb.OnHostLoss, len(sb.Volumes) > 0); err != nil {
		return sb, err
	}
	return sb, cmp.Or(l.checkSize(sb.Size), checkMetadata(sb.Metadata), wrenn.CheckLabels(sb.Requires), wrenn.CheckEnv(sb.Env), sb.Network.Check(), sb.Ingress.Check(), wrenn.CheckVolumes(sb.Volumes))
}

// create makes the sandbox of a new row on the reserved host. A host that
// answers that it is full has made nothing, so another one that place allows is asked.
func (s starting) create(ctx context.Context, sb *wrenn.Sandbox, on *reservation, place *scheduler.Request) (*wrenn.Sandbox, error) {
	spec := sb.SandboxSpec
	spec.Team, spec.Epoch = sb.Team, sb.Epoch
	var err error
	if spec.AccessToken, err = s.tokens.of(ctx, sb.ID); err == nil {
		spec.Network, err = s.layered(ctx, sb) // after the row: a change since then is the reconciler's
	}
	if err != nil {
		on.release(0)
		return nil, s.abandon(ctx, sb, err)
	}
	for {
		var refused error
		sb, refused = s.ask(ctx, on, sb, spec)
		if refused == nil {
			on.release(1)
			s.hosts.placed(sb.Team, on.id)
			return s.finish(ctx, sb)
		}
		on.release(0)
		code := wrenn.CodeOf(refused)
		if code != wrenn.Exhausted && !s.cannotFetch(place, on.id, code) {
			return nil, s.abandon(ctx, sb, refused)
		}
		if code == wrenn.Exhausted {
			on.refused()
		}
		place.Except[on.id] = true
		next, err := s.hosts.reserve(place)
		if err != nil {
			return nil, s.abandon(ctx, sb, refused) // the host's message says more
		}
		moved, err := s.store.MoveSandbox(ctx, sb, postgres.Move{To: wrenn.Starting, Host: next.id, Actor: s.actor, Reason: whyNext(on.id, refused)})
		if err != nil {
			next.release(0)
			return nil, s.abandon(ctx, sb, err)
		}
		sb, on, spec.Epoch = moved, next, moved.Epoch
	}
}

// ask has a host make a sandbox of the spec. It returns the row as it is then.
func (s starting) ask(ctx context.Context, on *reservation, sb *wrenn.Sandbox, spec wrenn.SandboxSpec) (*wrenn.Sandbox, error) {
	if s.from.Key != "" {
		return sb, on.client.Copy(ctx, sb.ID, spec, s.from)
	}
	waits := &waitingStart{starting: s, sb: sb}
	err := on.client.Create(ctx, sb.ID, spec, func(reason string) { waits.show(ctx, reason) })
	return waits.sb, err
}

// cannotFetch reports whether a host that was asked to fetch the template of a sandbox, or
// a checkpoint, has answered that it cannot use what is stored. Another host may have it.
func (s starting) cannotFetch(place *scheduler.Request, on wrenn.HostID, code wrenn.Code) bool {
	fetches := s.from.Key != "" || place.Template != nil && !place.Template.On[on]
	return fetches && (code == wrenn.NotFound || code == wrenn.FailedPrecondition)
}

// whyNext is why a sandbox is placed again.
func whyNext(refused wrenn.HostID, err error) string {
	if wrenn.CodeOf(err) == wrenn.Exhausted {
		return "host " + string(refused) + " is full"
	}
	return "host " + string(refused) + ": " + messageOf(err, "it could not fetch what is stored")
}

// starting ends the start of sandboxes, on behalf of an actor.
type starting struct {
	*core
	actor string
	from  wrenn.CheckpointSource // of copies of a stored checkpoint; else zero
}

// showEvery is how often the row of a sandbox that waits for its turn is written at most.
const showEvery = 5 * time.Second

// waitingStart shows in the row of a sandbox why its host does not start it yet.
type waitingStart struct {
	starting
	sb   *wrenn.Sandbox // as it was written last
	last time.Time
}

func (w *waitingStart) show(ctx context.Context, reason string) {
	if reason == w.sb.Reason || reason != "" && time.Since(w.last) < showEvery {
		return
	}
	w.last = time.Now()
	moved, err := w.store.MoveSandbox(ctx, w.sb, postgres.Move{To: wrenn.Starting, Host: w.sb.Host, Reason: reason, Actor: w.actor})
	if err != nil { // another request moves it, which the end of the start finds
		w.log.LogAttrs(ctx, slog.LevelDebug, "cannot show why a sandbox waits", slog.String("sandbox", string(w.sb.ID)), slog.Any("err", err))
		return
	}
	w.sb = moved
}

// finish writes that the sandbox runs. If it cannot, the sandbox is undone: its
// caller gets an error and no id.
func (s starting) finish(ctx context.Context, sb *wrenn.Sandbox) (*wrenn.Sandbox, error) {
	ctx, cancel := detach(ctx, rowTimeout)
	defer cancel()
	now, err := s.writeState(ctx, sb, wrenn.Running, s.actor)
	if err != nil {
		return nil, s.abandon(ctx, sb, err)
	}
	s.used.add(sb.ID)
	return now, nil
}

// abandon undoes a sandbox that did not start because of cause, which it
// returns. What it cannot undo now is the reconciler's.
func (s starting) abandon(ctx context.Context, sb *wrenn.Sandbox, cause error) error {
	reason := messageOf(cause, "its host could not start it")
	if ctx.Err() != nil {
		reason = "the client disconnected while it started"
	}
	ctx, cancel := detach(ctx, s.deadlines.Destroy)
	defer cancel()
	if err := s.undo(ctx, sb, reason); err != nil {
		s.handToReconciler(ctx, "undo a failed start", sb, err)
	}
	return cause
}

// undo destroys a sandbox that was being made, and ends its row as failed. If
// another request has changed the row since, that one ends it.
func (s starting) undo(ctx context.Context, sb *wrenn.Sandbox, reason string) error {
	stop := postgres.Move{To: wrenn.Stopping, Reason: reason, Cause: wrenn.CauseStart, Actor: s.actor}
	moved, moveErr := s.store.MoveSandbox(ctx, sb, stop)
	if errors.Is(moveErr, postgres.ErrConflict) {
		// The reconciler may have seen that it runs, although the answer was lost.
		if now, err := s.store.Sandbox(ctx, sb.ID); err == nil && now.State == wrenn.Running {
			moved, moveErr = s.store.MoveSandbox(ctx, now, stop)
		}
	}
	if err := s.destroy(ctx, sb); err != nil || moveErr != nil {
		return errors.Join(moveErr, err)
	}
	_, err := s.store.MoveSandbox(ctx, moved, postgres.Move{To: wrenn.Failed, Reason: reason, Actor: s.actor})
	if errors.Is(err, postgres.ErrConflict) {
		return nil // the reconciler was first
	}
	return err
}

// messageOf returns the message of an error as a user may read it and the
// database can hold it: the text may come from a guest. An error without such a
// message becomes other.
func messageOf(err error, other string) string {
	const most = 4 << 10
	e, ok := errors.AsType[*wrenn.Error](err)
	if !ok || e.Code == wrenn.Internal {
		return other
	}
	public := e.PublicMessage()
	text := strings.ToValidUTF8(public[:min(len(public), most)], "") // the cut may be in a character
	return strings.ReplaceAll(text, "\x00", "?")
}

// templateSource is what a template's name means now.
type templateSource struct {
	name  wrenn.TemplateName
	build wrenn.BuildID // "" is the base
	host  wrenn.HostID  // that has it; "" is any
	// shared is the build if it is stored, so that any host can have it; else nil.
	shared *wrenn.Build
	spec   wrenn.TemplateSpec
}

// key is where the build is stored, "" if it is not.
func (t templateSource) key() string {
	if t.shared == nil {
		return ""
	}
	return t.shared.Stored.Key
}

// resolveTemplate finds what sandboxes of a template are made from.
func (c *core) resolveTemplate(ctx context.Context, caller Caller, template string) (templateSource, error) {
	name, err := wrenn.ParseTemplateName(cmp.Or(template, wrenn.BaseTemplate))
	if err != nil {
		return templateSource{name: name}, err
	}
	t, err := c.store.Template(ctx, caller.Team, name)
	if name.Base() && (wrenn.CodeOf(err) == wrenn.NotFound || err == nil && t.Current == nil) { // the built-in one
		return templateSource{name: name}, nil
	}
	if err != nil {
		return templateSource{}, err
	}
	g, latest := t.Current, t.Latest
	switch {
	case g != nil && g.Stored.Key != "":
		return templateSource{name: name, build: g.ID, shared: g, spec: g.Spec}, nil
	case g != nil:
		return templateSource{name: name, build: g.ID, host: g.Host, spec: g.Spec}, nil
	case latest.State == wrenn.BuildBuilding:
		return templateSource{}, wrenn.Errorf(wrenn.FailedPrecondition, "template %s is still being built", name)
	}
	return templateSource{}, wrenn.Errorf(wrenn.FailedPrecondition, "template %s cannot be used, build it again: %s", name, latest.Reason)
}

// apply gives a request the size and the variables of its template.
func (t templateSource) apply(req *CreateSandbox) error {
	if t.build == "" {
		return nil
	}
	if req.VCPUs != 0 && req.VCPUs != t.spec.VCPUs || req.MemoryMiB != 0 && req.MemoryMiB != t.spec.MemoryMiB {
		return wrenn.Errorf(wrenn.Invalid, "template %s was built with %d vCPUs and %d MB of memory: leave the size out, or build the template with another size",
			t.name, t.spec.VCPUs, t.spec.MemoryMiB)
	}
	if req.DiskMiB != 0 && req.DiskMiB < t.spec.DiskMiB {
		return wrenn.Errorf(wrenn.Invalid, "template %s has a disk of %d MiB, which cannot become smaller: leave the size of the disk out, or ask for more", t.name, t.spec.DiskMiB)
	}
	req.Size, req.DiskMiB = t.spec.Size, cmp.Or(req.DiskMiB, t.spec.DiskMiB)
	env := map[string]string{}
	maps.Copy(env, t.spec.Env)
	maps.Copy(env, req.Env)
	req.Env = env
	return nil
}
