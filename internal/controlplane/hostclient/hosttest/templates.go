package hosttest

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"connectrpc.com/connect"

	"wrenn"
	"wrenn/internal/wire"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// builtBytes is the size of every build.
const builtBytes = 1 << 20

// BuildTemplate logs two lines, or runs Build, and adds the build.
func (a *Agent) BuildTemplate(ctx context.Context, req *hostagentv1.BuildTemplateRequest, stream *connect.ServerStream[hostagentv1.BuildTemplateResponse]) error {
	if a.Before != nil {
		if err := a.Before(ctx, "BuildTemplate", req.GetGeneration()); err != nil {
			return wire.ToConnect(err)
		}
	}
	log := func(line string) {
		_ = stream.Send(&hostagentv1.BuildTemplateResponse{Event: &hostagentv1.BuildTemplateResponse_Line{Line: line}}) // the caller is gone: ctx ends
	}
	if err := a.build(ctx, req, log); err != nil {
		return wire.ToConnect(err)
	}
	vcpus, memory := cmp.Or(req.GetVcpus(), 1), cmp.Or(req.GetMemoryMb(), 512)
	_ = a.locked(func() error { // never fails
		if b := a.sandboxes[req.GetSandboxId()]; b != nil {
			vcpus, memory = b.info.GetVcpus(), b.info.GetMemoryMb()
		}
		return nil
	})
	a.Keep(wrenn.BuildID(req.GetGeneration()))
	env := maps.Clone(req.GetEnv())
	if req.GetContainer() != nil {
		env = map[string]string{"FROM_IMAGE": "yes"}
		maps.Copy(env, req.GetEnv())
	}
	return stream.Send(&hostagentv1.BuildTemplateResponse{Event: &hostagentv1.BuildTemplateResponse_Done{Done: &hostagentv1.TemplateBuilt{
		Vcpus: vcpus, MemoryMb: memory, SizeBytes: builtBytes, Env: env,
	}}})
}

func (a *Agent) build(ctx context.Context, req *hostagentv1.BuildTemplateRequest, log func(string)) error {
	if a.Build != nil {
		return a.Build(ctx, req, log)
	}
	if id := req.GetSandboxId(); id != "" {
		if err := a.locked(func() error { _, err := a.running(id); return err }); err != nil {
			return err
		}
	}
	log("booting")
	log("saved as a snapshot")
	return nil
}

// Keep adds a build.
func (a *Agent) Keep(id wrenn.BuildID) {
	_ = a.locked(func() error { // never fails
		if a.builds == nil {
			a.builds = map[string]bool{}
		}
		a.builds[string(id)] = true
		return nil
	})
}

// Builds returns the ids of all builds.
func (a *Agent) Builds() []string {
	var ids []string
	_ = a.locked(func() error { // never fails
		ids = slices.Sorted(maps.Keys(a.builds))
		return nil
	})
	return ids
}

// DeleteTemplate removes one, or nothing.
func (a *Agent) DeleteTemplate(ctx context.Context, req *hostagentv1.DeleteTemplateRequest) (*hostagentv1.DeleteTemplateResponse, error) {
	return &hostagentv1.DeleteTemplateResponse{}, a.with(ctx, "DeleteTemplate", req.GetGeneration(), func() error {
		delete(a.builds, req.GetGeneration())
		return nil
	})
}

// ListTemplates returns all, by id.
func (a *Agent) ListTemplates(ctx context.Context, _ *hostagentv1.ListTemplatesRequest) (*hostagentv1.ListTemplatesResponse, error) {
	res := &hostagentv1.ListTemplatesResponse{}
	return res, a.with(ctx, "ListTemplates", "", func() error {
		res.Generations = slices.Sorted(maps.Keys(a.builds))
		return nil
	})
}

// Forget loses a build, as if the host's disk was replaced.
func (a *Agent) Forget(id wrenn.BuildID) {
	_ = a.locked(func() error { delete(a.builds, string(id)); return nil }) // never fails
}
