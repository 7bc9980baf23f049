package service

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/hostclient"
	"wrenn/internal/controlplane/postgres"
)

const (
	maxTemplateEnv  = 64 << 10 // of all variables together: each of a template's sandboxes has them
	maxShell        = 16 << 10 // of a start or ready command
	maxReference    = 512
	maxLogin        = 8 << 10 // of a password, which may be a token
	maxReadyTimeout = time.Hour
	maxLinePage     = 1000
)

// RegistryLogin is what a container registry asks for. It is passed on and never kept.
type RegistryLogin = hostclient.RegistryLogin

// BuildTemplate is a template to build. Zero values are defaults, as for a
// sandbox; what a sandbox that it is made from has is not given.
type BuildTemplate struct {
	Name string // or name:tag
	Spec wrenn.TemplateSpec
	// Login is for Spec.From.OCI.
	Login RegistryLogin
}

// BuildTemplate begins to build a generation of a template, and returns it. The
// build goes on here when ctx ends; Generation tells how far it is. When it is
// ready the name means it. AlreadyExists while the name is being built.
func (s *Service) BuildTemplate(ctx context.Context, c Caller, req BuildTemplate) (*wrenn.Generation, error) {
	name, err := s.buildName(req)
	if err != nil {
		return nil, err
	}
	spec, only, err := s.specOf(ctx, c, req.Spec)
	if err != nil {
		return nil, err
	}
	s.fleet.ready(ctx)
	if _, err := s.fleet.pick(spec.MemoryMiB, nil, only); err != nil {
		return nil, err // no row for what cannot be
	}
	limits := postgres.BuildLimits{Templates: s.cfg.Limits.Templates, Builds: s.cfg.Limits.Builds}
	g, err := s.store.BeginBuild(ctx, wrenn.Generation{ID: wrenn.NewGenerationID(), Team: c.Team, Template: name, Spec: spec}, limits)
	if err != nil {
		return nil, err
	}
	return g, s.begin(ctx, &build{generation: g, login: req.Login, only: only})
}

// begin hands a build to Run.
func (s *Service) begin(ctx context.Context, b *build) error {
	stopping := time.NewTimer(rowTimeout)
	defer stopping.Stop()
	select {
	case s.begun <- b:
		return nil
	case <-stopping.C: // Run has ended
	case <-ctx.Done():
	}
	ctx, cancel := own(ctx, 0)
	defer cancel()
	if err := s.store.FailBuild(ctx, b.generation.ID, "the server stopped before the build began: build again"); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "the end of a build is not written yet", slog.String("generation", string(b.generation.ID)), slog.Any("error", err))
	}
	return wrenn.Errorf(wrenn.Unavailable, "the server stops; try again in a moment")
}

func (s *Service) buildName(req BuildTemplate) (wrenn.TemplateName, error) {
	name, err := wrenn.ParseTemplateName(req.Name)
	if err != nil {
		return name, err
	}
	if name.Name == wrenn.BaseTemplate {
		return name, wrenn.Errorf(wrenn.Invalid, "template %s is built in: take another name", wrenn.BaseTemplate)
	}
	return name, checkSpec(req)
}

func checkSpec(req BuildTemplate) error {
	from, spec := req.Spec.From, req.Spec
	sources := 0
	for _, source := range []string{from.Image, from.OCI, string(from.Sandbox)} {
		if source != "" {
			sources++
		}
	}
	size := 0
	for k, v := range spec.Env {
		size += len(k) + len(v)
	}
	switch {
	case sources > 1:
		return wrenn.Errorf(wrenn.Invalid, "a template is made from an image, a container image or a sandbox: say one of them")
	case from.Sandbox != "" && (spec.Size != wrenn.Size{} || len(spec.Env) > 0 || spec.StartCmd != "" || spec.ReadyCmd != "" || spec.ReadyTimeout != 0):
		return wrenn.Errorf(wrenn.Invalid, "a template made from a sandbox is that sandbox as it is: run commands in it before, and leave out size, variables and commands")
	case from.OCI == "" && req.Login != RegistryLogin{}:
		return wrenn.Errorf(wrenn.Invalid, "a login is for a container image in a registry")
	case len(from.Image) > maxReference || len(from.OCI) > maxReference || !isText(from.Image) || !isText(from.OCI):
		return wrenn.Errorf(wrenn.Invalid, "an image's name has at most %d bytes", maxReference)
	case len(req.Login.Username) > maxLogin || len(req.Login.Password) > maxLogin || !isText(req.Login.Username) || !isText(req.Login.Password):
		return wrenn.Errorf(wrenn.Invalid, "a registry's user name and password have at most %d bytes", maxLogin)
	case len(spec.StartCmd) > maxShell || len(spec.ReadyCmd) > maxShell || !isText(spec.StartCmd) || !isText(spec.ReadyCmd):
		return wrenn.Errorf(wrenn.Invalid, "a command has at most %d bytes", maxShell)
	case spec.ReadyTimeout < 0 || spec.ReadyTimeout > maxReadyTimeout:
		return wrenn.Errorf(wrenn.Invalid, "a template has up to %v to become ready", maxReadyTimeout)
	case size > maxTemplateEnv:
		return wrenn.Errorf(wrenn.Invalid, "a template's variables have at most %d bytes together", maxTemplateEnv)
	}
	return checkEnv(spec.Env)
}

// specOf fills in what the request leaves out, and says on which host the build must be.
func (s *Service) specOf(ctx context.Context, c Caller, spec wrenn.TemplateSpec) (wrenn.TemplateSpec, wrenn.HostID, error) {
	if id := spec.From.Sandbox; id != "" {
		sb, _, err := s.at(ctx, c, id, wrenn.Running)
		if err != nil {
			return spec, "", err
		}
		spec.Size, spec.Env = sb.Size, sb.Env
		return spec, sb.Host, nil
	}
	spec.Size = spec.Size.OrDefault()
	return spec, "", s.checkSize(spec.VCPUs, spec.MemoryMiB)
}

func (s *Service) checkSize(vcpus, memoryMB int) error {
	limits := s.cfg.Limits
	switch {
	case vcpus < 1 || vcpus > limits.VCPUs:
		return wrenn.Errorf(wrenn.Invalid, "a sandbox has 1 to %d vCPUs, not %d", limits.VCPUs, vcpus)
	case memoryMB < minMemoryMB || memoryMB > limits.MemoryMB:
		return wrenn.Errorf(wrenn.Invalid, "a sandbox has %d to %d MB of memory, not %d", minMemoryMB, limits.MemoryMB, memoryMB)
	}
	return nil
}

// origin is what a template's name means now.
type origin struct {
	name       wrenn.TemplateName
	generation wrenn.GenerationID // "" is the base
	host       wrenn.HostID       // that has it; "" is any
	spec       wrenn.TemplateSpec
}

// resolve finds what sandboxes of a template are made from.
func (s *Service) resolve(ctx context.Context, c Caller, template string) (origin, error) {
	name, err := wrenn.ParseTemplateName(cmp.Or(template, wrenn.BaseTemplate))
	if err != nil || name.Base() {
		return origin{name: name}, err
	}
	t, err := s.store.Template(ctx, c.Team, name)
	if err != nil {
		return origin{}, err
	}
	g, latest := t.Current, t.Latest
	switch {
	case g != nil:
		return origin{name: name, generation: g.ID, host: g.Host, spec: g.Spec}, nil
	case latest.State == wrenn.GenerationBuilding:
		return origin{}, wrenn.Errorf(wrenn.FailedPrecondition, "template %s is still being built", name)
	}
	return origin{}, wrenn.Errorf(wrenn.FailedPrecondition, "template %s cannot be used, build it again: %s", name, latest.Reason)
}

// shape gives a request what its template's generation has.
func (o origin) shape(req *CreateSandbox) error {
	if o.generation == "" {
		return nil
	}
	if req.VCPUs != 0 && req.VCPUs != o.spec.VCPUs || req.MemoryMB != 0 && req.MemoryMB != o.spec.MemoryMiB {
		return wrenn.Errorf(wrenn.Invalid, "sandboxes of template %s have %d vCPUs and %d MB of memory, as they were built: leave the size out, or build the template with another",
			o.name, o.spec.VCPUs, o.spec.MemoryMiB)
	}
	req.VCPUs, req.MemoryMB = o.spec.VCPUs, o.spec.MemoryMiB
	env := maps.Clone(o.spec.Env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, req.Env)
	req.Env = env
	return nil
}

// Templates returns the team's templates, and the base.
func (s *Service) Templates(ctx context.Context, c Caller) ([]wrenn.Template, error) {
	own, err := s.store.Templates(ctx, c.Team)
	return append([]wrenn.Template{baseTemplate()}, own...), err
}

func baseTemplate() wrenn.Template {
	name, _ := wrenn.ParseTemplateName(wrenn.BaseTemplate) // it is one
	return wrenn.Template{Name: name}
}

// Template returns one of the team's, or the base.
func (s *Service) Template(ctx context.Context, c Caller, template string) (*wrenn.Template, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return nil, err
	}
	if name.Base() {
		return new(baseTemplate()), nil
	}
	return s.store.Template(ctx, c.Team, name)
}

// BuildLog is a piece of what a build said.
type BuildLog struct {
	First int64 // the number of the first line: the asked-for one, or more when older ones were dropped
	Lines []string
	Next  int64 // where to go on
}

// Generation returns a generation of a template and its log from a line on, at
// most 1,000 lines. When it is building no more there is nothing after a log without lines.
func (s *Service) Generation(ctx context.Context, c Caller, template string, id wrenn.GenerationID, from int64) (*wrenn.Generation, BuildLog, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return nil, BuildLog{}, err
	}
	g, lines, err := s.store.Generation(ctx, c.Team, name, id, from, maxLinePage)
	log := BuildLog{First: from, Next: from}
	for i, line := range lines {
		if i == 0 {
			log.First = line.Number
		}
		log.Lines = append(log.Lines, line.Text)
		log.Next = line.Number + 1
	}
	return g, log, err
}

// DeleteTemplate takes a template away, and ends its build. Sandboxes that were
// created from it live on.
func (s *Service) DeleteTemplate(ctx context.Context, c Caller, template string) error {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return err
	}
	if name.Name == wrenn.BaseTemplate {
		return wrenn.Errorf(wrenn.FailedPrecondition, "template %s is built in and cannot be deleted", wrenn.BaseTemplate)
	}
	gone, err := s.store.DeleteTemplate(ctx, c.Team, name)
	if err != nil {
		return err
	}
	ctx, cancel := own(ctx, s.cfg.Deadlines.Destroy)
	defer cancel()
	for id, host := range gone {
		s.removeGeneration(ctx, host, id)
	}
	return nil
}

// removeGeneration removes one whose row says that it is not wanted. What does
// not work now is done by tendTemplates.
func (s *Service) removeGeneration(ctx context.Context, host wrenn.HostID, id wrenn.GenerationID) {
	m := s.fleet.members[host]
	if m == nil {
		return
	}
	if err := m.client.DeleteGeneration(ctx, id); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "a generation of a template is not removed yet",
			slog.String("generation", string(id)), slog.String("host", string(host)), slog.Any("error", err))
	}
}
