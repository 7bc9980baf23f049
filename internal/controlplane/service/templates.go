package service

import (
	"context"
	"log/slog"
	"time"

	"wrenn"
	"wrenn/internal/controlplane/postgres"
)

const (
	maxTemplateEnv  = 64 << 10 // of all variables together: each of a template's sandboxes has them
	maxShell        = 16 << 10 // of a start or ready command
	maxReference    = 512
	maxLogin        = 8 << 10 // of a password, which may be a token
	maxReadyTimeout = time.Hour
	maxLogPage      = 1000 // lines
)

// Templates are the use cases of templates. Another team's template is NotFound.
type Templates struct {
	*core
	builds chan<- *build // for the builder
}

// RegistryLogin is the login for a container registry. It is passed on and never stored.
type RegistryLogin = wrenn.RegistryLogin

// BuildTemplate is a template to build. Zero values are defaults, as for a
// sandbox; a template made from a sandbox has no values of its spec but the source.
type BuildTemplate struct {
	Name string // or name:tag
	Spec wrenn.TemplateSpec
	// Login is for Spec.From.OCI.
	Login RegistryLogin
}

// BuildTemplate starts to build a generation of a template, and returns it. The
// build continues when ctx ends; Generation returns its progress. When it is
// ready the name refers to it. AlreadyExists while the name is being built.
func (s *Templates) BuildTemplate(ctx context.Context, c Caller, req BuildTemplate) (*wrenn.Generation, error) {
	name, err := buildName(req)
	if err != nil {
		return nil, err
	}
	spec, only, err := s.completeSpec(ctx, c, req.Spec)
	if err != nil {
		return nil, err
	}
	s.hosts.waitForPings(ctx)
	on, err := s.hosts.reserve(spec.MemoryMiB, nil, only)
	if err != nil {
		return nil, err // without a row
	}
	limits := postgres.BuildLimits{Templates: s.limits.Templates, Builds: s.limits.Builds}
	g, err := s.store.BeginBuild(ctx, wrenn.Generation{ID: wrenn.NewGenerationID(), Team: c.Team, Template: name, Host: on.id, Spec: spec}, limits)
	if err == nil {
		err = s.start(ctx, &build{generation: *g, login: req.Login, on: on, only: only})
	}
	if err != nil {
		on.release(0)
		return nil, err
	}
	return g, nil
}

// start passes a build to the builder.
func (s *Templates) start(ctx context.Context, b *build) error {
	stopped := time.NewTimer(rowTimeout)
	defer stopped.Stop()
	select {
	case s.builds <- b:
		return nil
	case <-stopped.C: // Run has ended
	case <-ctx.Done():
	}
	ctx, cancel := detach(ctx, 0)
	defer cancel()
	if err := s.store.FailBuild(ctx, b.generation.ID, "the server stopped before the build began: build again"); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "cannot write the end of a build", slog.String("generation", string(b.generation.ID)), slog.Any("err", err))
	}
	return wrenn.Errorf(wrenn.Unavailable, "the server is stopping; try again in a moment")
}

func buildName(req BuildTemplate) (wrenn.TemplateName, error) {
	name, err := wrenn.ParseTemplateName(req.Name)
	if err != nil {
		return name, err
	}
	if name.Name == wrenn.BaseTemplate {
		return name, wrenn.Errorf(wrenn.Invalid, "template %s is built in: choose another name", wrenn.BaseTemplate)
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
		return wrenn.Errorf(wrenn.Invalid, "a template is made from an image, a container image or a sandbox: give one of them")
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

// completeSpec fills in the values that the request leaves out, and returns the
// host on which the build must be, "" for any.
func (s *Templates) completeSpec(ctx context.Context, c Caller, spec wrenn.TemplateSpec) (wrenn.TemplateSpec, wrenn.HostID, error) {
	if id := spec.From.Sandbox; id != "" {
		sb, _, err := s.locate(ctx, c, id, wrenn.Running)
		if err != nil {
			return spec, "", err
		}
		spec.Size, spec.Env = sb.Size, sb.Env
		return spec, sb.Host, nil
	}
	spec.Size = spec.Size.OrDefault()
	return spec, "", s.limits.checkSize(spec.VCPUs, spec.MemoryMiB)
}

// ListTemplates returns the team's templates, and the base.
func (s *Templates) ListTemplates(ctx context.Context, c Caller) ([]wrenn.Template, error) {
	ofTeam, err := s.store.Templates(ctx, c.Team)
	return append([]wrenn.Template{baseTemplate()}, ofTeam...), err
}

func baseTemplate() wrenn.Template {
	name, _ := wrenn.ParseTemplateName(wrenn.BaseTemplate) // it is valid
	return wrenn.Template{Name: name}
}

// Template returns a template of the team, or the base.
func (s *Templates) Template(ctx context.Context, c Caller, template string) (*wrenn.Template, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return nil, err
	}
	if name.Base() {
		return new(baseTemplate()), nil
	}
	return s.store.Template(ctx, c.Team, name)
}

// BuildLog is a part of a build's log.
type BuildLog struct {
	First int64 // the number of the first line: the requested one, or more when older lines were dropped
	Lines []string
	Next  int64 // the number to request next
}

// Generation returns a generation of a template and its log from a line on, at
// most 1,000 lines. When it is not building, a log without lines is at its end.
func (s *Templates) Generation(ctx context.Context, c Caller, template string, id wrenn.GenerationID, from int64) (*wrenn.Generation, BuildLog, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return nil, BuildLog{}, err
	}
	g, lines, err := s.store.Generation(ctx, c.Team, name, id, from, maxLogPage)
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

// DeleteTemplate deletes a template, and ends its build. Sandboxes that were
// created from it continue.
func (s *Templates) DeleteTemplate(ctx context.Context, c Caller, template string) error {
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
	ctx, cancel := detach(ctx, s.deadlines.Destroy)
	defer cancel()
	for id, host := range gone {
		s.hosts.removeGeneration(ctx, host, id)
	}
	return nil
}
