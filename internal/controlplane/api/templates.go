package api

import (
	"cmp"
	"context"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (h *handlers) BuildTemplate(ctx context.Context, req oapi.BuildTemplateRequestObject) (oapi.BuildTemplateResponseObject, error) {
	body := req.Body
	build := service.BuildTemplate{
		Name: body.Name, FromTemplate: value(body.FromTemplate),
		Login: wrenn.RegistryLogin{Username: value(body.RegistryUsername), Password: value(body.RegistryPassword)},
		Spec: wrenn.TemplateSpec{
			From: wrenn.TemplateSource{Image: value(body.FromImage), OCI: value(body.FromOci), Sandbox: wrenn.SandboxID(value(body.FromSandbox)), DiskOnly: value(body.DiskOnly)},
			Size: wrenn.Size{VCPUs: value(body.Vcpus), MemoryMiB: value(body.MemoryMb)}, DiskMiB: value(body.DiskMb), MinFreeDiskMiB: value(body.MinFreeDiskMb), Env: value(body.Env),
			StartCmd: value(body.StartCmd), ReadyCmd: value(body.ReadyCmd), ReadyTimeout: time.Duration(value(body.ReadyTimeoutSec)) * time.Second,
			Steps: steps(value(body.Steps)), NoCache: value(body.NoCache), User: value(body.User), Workdir: value(body.Workdir),
		},
	}
	if body.Network != nil {
		network, err := parseLayer(*body.Network)
		if err != nil {
			return nil, err
		}
		build.Network = &network
	}
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	g, err := h.s.service.BuildTemplate(ctx, callerOf(ctx), build)
	if err != nil {
		return nil, err
	}
	return oapi.BuildTemplate202JSONResponse{
		Body:    buildOf(g),
		Headers: oapi.BuildTemplate202ResponseHeaders{Location: new("/v1/templates/" + g.Template.String() + "/generations/" + string(g.ID))},
	}, nil
}

func steps(list []oapi.BuildStep) []wrenn.BuildStep {
	var out []wrenn.BuildStep
	for _, s := range list {
		out = append(out, wrenn.BuildStep{Kind: wrenn.StepKind(s.Kind), Args: s.Args, Files: value(s.Files), Shell: value(s.Shell), Force: value(s.Force)})
	}
	return out
}

func (h *handlers) FindBuildFiles(ctx context.Context, req oapi.FindBuildFilesRequestObject) (oapi.FindBuildFilesResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	present, err := h.s.service.HasBuildFiles(ctx, callerOf(ctx), req.Hash)
	if err != nil {
		return nil, err
	}
	return oapi.FindBuildFiles200JSONResponse{Body: oapi.BuildFiles{Present: present}}, nil
}

func (h *handlers) PutBuildFiles(ctx context.Context, req oapi.PutBuildFilesRequestObject) (oapi.PutBuildFilesResponseObject, error) {
	part, err := req.Body.NextPart()
	switch {
	case err != nil && !whole(err):
		return nil, brokenBody(err)
	case err != nil || part.FormName() != "file":
		return nil, invalid("the form must have one field, %q", "file")
	}
	archive := &lastPart{part: part, form: req.Body, limit: wrenn.MaxArchiveBytes}
	err = h.s.service.PutBuildFiles(ctx, callerOf(ctx), req.Hash, archive)
	if archive.err != nil {
		return nil, archive.err // the cause of the service's error
	}
	if err != nil {
		return nil, err
	}
	return oapi.PutBuildFiles204Response{}, nil
}

func (h *handlers) ListTemplates(ctx context.Context, _ oapi.ListTemplatesRequestObject) (oapi.ListTemplatesResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	list, err := h.s.service.ListTemplates(ctx, callerOf(ctx))
	if err != nil {
		return nil, err
	}
	answer := oapi.ListTemplates200JSONResponse{Body: make([]oapi.Template, 0, len(list))} // none is [], not null
	for i := range list {
		answer.Body = append(answer.Body, template(&list[i]))
	}
	return answer, nil
}

func (h *handlers) GetTemplate(ctx context.Context, req oapi.GetTemplateRequestObject) (oapi.GetTemplateResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	t, err := h.s.service.Template(ctx, callerOf(ctx), req.Template)
	if err != nil {
		return nil, err
	}
	return oapi.GetTemplate200JSONResponse{Body: template(t)}, nil
}

func (h *handlers) GetGeneration(ctx context.Context, req oapi.GetGenerationRequestObject) (oapi.GetGenerationResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	g, log, err := h.s.service.Build(ctx, callerOf(ctx), req.Template, wrenn.BuildID(req.Generation), value(req.Params.From))
	if err != nil {
		return nil, err
	}
	answer := oapi.GenerationLog{Generation: buildOf(g), First: log.First, Lines: log.Lines, Next: log.Next}
	if answer.Lines == nil {
		answer.Lines = []string{} // none is [], not null
	}
	return oapi.GetGeneration200JSONResponse{Body: answer}, nil
}

func (h *handlers) DeleteTemplate(ctx context.Context, req oapi.DeleteTemplateRequestObject) (oapi.DeleteTemplateResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.DeleteTemplate(ctx, callerOf(ctx), req.Template); err != nil {
		return nil, err
	}
	return oapi.DeleteTemplate204Response{}, nil
}

func template(t *wrenn.Template) oapi.Template {
	out := oapi.Template{Name: t.Name.String(), Builtin: t.Name.Base() && t.Latest == nil}
	if t.Current != nil {
		out.Current = new(buildOf(t.Current))
	}
	if t.Latest != nil {
		out.Latest = new(buildOf(t.Latest))
	}
	return out
}

// buildOf returns g as /v1 shows it, without its environment, which has secrets.
func buildOf(g *wrenn.Build) oapi.Generation {
	out := oapi.Generation{
		ID: string(g.ID), Template: g.Template.String(), State: oapi.GenerationState(g.State), Reason: given(g.Reason),
		FromImage: given(g.Spec.From.Image), FromOci: given(g.Spec.From.OCI), FromSandbox: given(string(g.Spec.From.Sandbox)),
		FromTemplate: given(string(g.Spec.From.Template)), FailedStep: given(g.FailedStep),
		Vcpus: g.Spec.VCPUs, MemoryMb: g.Spec.MemoryMiB, DiskMb: cmp.Or(g.Spec.DiskMiB, wrenn.DefaultDiskMiB), StartCmd: given(g.Spec.StartCmd), ReadyCmd: given(g.Spec.ReadyCmd),
		Digest: given(g.Digest), CreatedAt: g.CreatedAt.UTC(), LastUpdated: g.UpdatedAt.UTC(),
	}
	if g.SizeBytes > 0 {
		out.SizeBytes = &g.SizeBytes
	}
	if g.Stored.Key != "" {
		out.StoredAt = new(g.Stored.At.UTC())
	}
	return out
}

// given returns text, nil if it is "".
func given(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}
