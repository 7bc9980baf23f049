package service

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/postgres"
)

// maxLogPage bounds the lines of a build's log in one answer.
const maxLogPage = 1000

// Templates are the use cases of templates. Another team's template is NotFound.
type Templates struct {
	*core
	builds chan<- *buildJob // for the builder
}

// BuildTemplate is a template to build. Zero values are defaults, as for a
// sandbox; a template made from a sandbox has no values of its spec but the source.
type BuildTemplate struct {
	Name string // or name:tag
	Spec wrenn.TemplateSpec
	// FromTemplate is the name of a template of the team from whose disk this one is
	// made; Spec.From is empty then.
	FromTemplate string
	// Login is for Spec.From.OCI.
	Login wrenn.RegistryLogin
	// Network is what the sandboxes of the template may reach; nil leaves that as it is.
	Network *wrenn.NetworkPolicy

	id       wrenn.BuildID // of a requested build; "" is a new one
	moreTags []string
}

// BuildTemplate starts a build of a template, and returns it. The
// build continues when ctx ends; Build returns its progress. When it is
// ready the name refers to it. AlreadyExists while the name is being built.
func (s *Templates) BuildTemplate(ctx context.Context, c Caller, req BuildTemplate) (*wrenn.Build, error) {
	return s.beginBuild(ctx, c, req, nil)
}

// beginBuild is BuildTemplate; ended is that of the build.
func (s *Templates) beginBuild(ctx context.Context, c Caller, req BuildTemplate, ended chan<- error) (*wrenn.Build, error) {
	name, err := buildName(req)
	if err != nil {
		return nil, err
	}
	spec, from, err := s.completeSpec(ctx, c, req)
	if err != nil {
		return nil, err
	}
	only := from.only
	s.hosts.waitForPings(ctx)
	if len(spec.Steps) > 0 && only == "" {
		only = s.hosts.ofBuilds(c.Team)
	}
	place := need(spec.Size, spec.DiskMiB)
	place.Only = only
	on, err := s.hosts.reserve(&place)
	if err != nil {
		return nil, err // without a row
	}
	g, err := s.store.BeginBuild(ctx, wrenn.Build{
		ID: cmp.Or(req.id, wrenn.NewBuildID()), Team: c.Team, Template: name, MoreTags: req.moreTags, Host: on.id, Spec: spec,
	}, s.limits.Limits)
	if err == nil && req.Network != nil {
		err = s.setNetworkOfBuild(ctx, g, *req.Network)
	}
	if err == nil {
		job := &buildJob{Build: *g, login: req.Login, baseKey: from.key, on: on, only: only, ended: ended}
		job.Spec = spec // with the steps, which the row does not have
		err = s.start(ctx, job)
	}
	if err != nil {
		on.release(0)
		return nil, err
	}
	return g, nil
}

// setNetworkOfBuild sets the network policy of a build's template, before sandboxes can
// start from it. If it cannot the build fails.
func (s *Templates) setNetworkOfBuild(ctx context.Context, g *wrenn.Build, policy wrenn.NetworkPolicy) error {
	err := s.setLayer(ctx, postgres.PolicyOwner{Team: g.Team, Template: g.Template.Name}, policy)
	if err == nil {
		return nil
	}
	ctx, cancel := detach(ctx, 0)
	defer cancel()
	return errors.Join(err, s.store.FailBuild(ctx, g.ID, "its network policy could not be set: build again", ""))
}

// start passes a build to the builder.
func (s *Templates) start(ctx context.Context, b *buildJob) error {
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
	if err := s.store.FailBuild(ctx, b.ID, "the server stopped before the build began: build again", ""); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "cannot write the end of a build", slog.String("build", string(b.ID)), slog.Any("err", err))
	}
	return wrenn.Errorf(wrenn.Unavailable, "the server is stopping; try again in a moment")
}

func buildName(req BuildTemplate) (wrenn.TemplateName, error) {
	name, err := wrenn.ParseTemplateName(req.Name)
	if err != nil {
		return name, err
	}
	if name.Name == wrenn.BaseTemplate && !name.Base() {
		return name, wrenn.Errorf(wrenn.Invalid, "template %s has no tags: leave the tag out to build the team's own %[1]s, or choose another name", wrenn.BaseTemplate)
	}
	if req.FromTemplate != "" && req.Spec.From != (wrenn.TemplateSource{}) {
		return name, wrenn.Errorf(wrenn.Invalid, "a template is made from an image, a container image, a template or a sandbox: give one of them")
	}
	return name, wrenn.BuildRequest{Spec: req.Spec, Login: req.Login}.Check()
}

// buildSource is where the source of a build is.
type buildSource struct {
	only wrenn.HostID // that has it; "" is any
	key  string       // of a template that other hosts can fetch
}

// completeSpec fills in the values that the request leaves out, and returns where the
// source is.
func (s *Templates) completeSpec(ctx context.Context, c Caller, req BuildTemplate) (spec wrenn.TemplateSpec, at buildSource, err error) {
	spec = req.Spec
	if id := spec.From.Sandbox; id != "" {
		sb, _, err := s.locate(ctx, c, id, wrenn.Running)
		if err != nil {
			return spec, at, err
		}
		if len(sb.Volumes) > 0 {
			return spec, at, wrenn.Errorf(wrenn.FailedPrecondition, "sandbox %s mounts volumes, which a template cannot: create one without", id)
		}
		spec.Size, spec.Env = sb.Size, sb.Env
		return spec, buildSource{only: sb.Host}, nil
	}
	if req.FromTemplate != "" {
		if spec.From, at, err = s.sourceTemplate(ctx, c, req.FromTemplate, req.Name); err != nil {
			return spec, at, err
		}
	}
	spec.Size, spec.MaxDiskMiB = spec.OrDefault(), s.limits.DiskMB
	return spec, at, cmp.Or(s.limits.checkSize(spec.Size), s.limits.checkDisk(spec.DiskMiB), s.limits.checkDisk(spec.MinFreeDiskMiB))
}

// sourceTemplate returns a template as the source of the one with the name of, and where
// it is. For the built-in base, from which a team's own one is made, that is anywhere. A
// stored one is built from elsewhere only if its host takes no work.
func (s *Templates) sourceTemplate(ctx context.Context, c Caller, template, of string) (wrenn.TemplateSource, buildSource, error) {
	t, err := s.Template(ctx, c, template)
	if err != nil {
		return wrenn.TemplateSource{}, buildSource{}, err
	}
	own, err := wrenn.ParseTemplateName(of)
	switch {
	case err != nil:
		return wrenn.TemplateSource{}, buildSource{}, err
	case t.Name.Base() && (t.Current == nil || own.Base()):
		return wrenn.TemplateSource{}, buildSource{}, nil
	case t.Current == nil:
		return wrenn.TemplateSource{}, buildSource{}, wrenn.Errorf(wrenn.FailedPrecondition, "template %s has no build that is ready: wait for it, or build it again", t.Name)
	}
	at := buildSource{only: t.Current.Host, key: t.Current.Stored.Key}
	s.hosts.waitForPings(ctx)
	if m := s.hosts.member(at.only); at.key != "" && (m == nil || !m.schedulable()) {
		at.only = ""
	}
	return wrenn.TemplateSource{Template: t.Current.ID}, at, nil
}

// HasBuildFiles reports whether the files of a COPY step are where the team's builds
// run.
func (s *Templates) HasBuildFiles(ctx context.Context, c Caller, hash string) (bool, error) {
	client, err := s.filesClient(ctx, c, hash)
	if err != nil {
		return false, err
	}
	return client.HasBuildFiles(ctx, c.Team, hash)
}

// PutBuildFiles stores the files of a COPY step where the team's builds run: a tar
// archive, compressed by gzip or not. The client chooses the hash, which stands for
// the files in the keys of cached steps. If content fails nothing is stored.
func (s *Templates) PutBuildFiles(ctx context.Context, c Caller, hash string, content io.Reader) error {
	client, err := s.filesClient(ctx, c, hash)
	if err != nil {
		return err
	}
	return client.PutBuildFiles(ctx, c.Team, hash, content)
}

// filesClient returns the client of the host where the team's builds run.
func (s *Templates) filesClient(ctx context.Context, c Caller, hash string) (*hostclient.Client, error) {
	if err := wrenn.CheckFilesHash(hash); err != nil {
		return nil, err
	}
	s.hosts.waitForPings(ctx)
	id := s.hosts.ofBuilds(c.Team)
	if id == "" {
		return nil, wrenn.Errorf(wrenn.Unavailable, "no host can be reached; try again in a moment")
	}
	return s.hosts.client(id)
}

// ListTemplates returns the team's templates, and the base unless the team has its own.
func (s *Templates) ListTemplates(ctx context.Context, c Caller) ([]wrenn.Template, error) {
	ofTeam, err := s.store.Templates(ctx, c.Team)
	if slices.ContainsFunc(ofTeam, func(t wrenn.Template) bool { return t.Name.Base() }) {
		return ofTeam, err
	}
	return append([]wrenn.Template{baseTemplate()}, ofTeam...), err
}

func baseTemplate() wrenn.Template {
	name, _ := wrenn.ParseTemplateName(wrenn.BaseTemplate) // it is valid
	return wrenn.Template{Name: name}
}

// Template returns a template of the team, or the built-in base if the team has no own one.
func (s *Templates) Template(ctx context.Context, c Caller, template string) (*wrenn.Template, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return nil, err
	}
	t, err := s.store.Template(ctx, c.Team, name)
	if name.Base() && wrenn.CodeOf(err) == wrenn.NotFound {
		return new(baseTemplate()), nil
	}
	return t, err
}

// BuildLog is a part of a build's log.
type BuildLog struct {
	First int64 // the number of the first line: the requested one, or more when older lines were dropped
	Lines []string
	Next  int64 // the number to request next
}

// Build returns a build of a template and its log from a line on, at
// most 1,000 lines. When it is not building, a log without lines is at its end.
func (s *Templates) Build(ctx context.Context, c Caller, template string, id wrenn.BuildID, from int64) (*wrenn.Build, BuildLog, error) {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return nil, BuildLog{}, err
	}
	g, lines, err := s.store.Build(ctx, c.Team, name, id, from, maxLogPage)
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
// created from it continue. Without the team's own base, the built-in one counts again.
func (s *Templates) DeleteTemplate(ctx context.Context, c Caller, template string) error {
	name, err := wrenn.ParseTemplateName(template)
	if err != nil {
		return err
	}
	gone, err := s.store.DeleteTemplate(ctx, c.Team, name)
	if name.Base() && wrenn.CodeOf(err) == wrenn.NotFound {
		return wrenn.Errorf(wrenn.FailedPrecondition, "template %s is built in and cannot be deleted", wrenn.BaseTemplate)
	}
	if err != nil {
		return err
	}
	ctx, cancel := detach(ctx, s.deadlines.Destroy)
	defer cancel()
	for id, host := range gone {
		s.hosts.removeBuild(ctx, host, id, "") // what is stored goes later: a create may need it still
	}
	return nil
}
