package hosttest

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev"
	"wrenn.dev/internal/wire"
	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
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
	for _, step := range []string{wrenn.StepBase, wrenn.StepFinalize} {
		_ = stream.Send(&hostagentv1.BuildTemplateResponse{Event: &hostagentv1.BuildTemplateResponse_Step{Step: step}}) // likewise
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
	a.keep(wrenn.BuildID(req.GetGeneration()), req.GetTeam())
	env := maps.Clone(req.GetEnv())
	if req.GetContainer() != nil {
		env = map[string]string{"FROM_IMAGE": "yes"}
		maps.Copy(env, req.GetEnv())
	}
	return stream.Send(&hostagentv1.BuildTemplateResponse{Event: &hostagentv1.BuildTemplateResponse_Done{Done: &hostagentv1.TemplateBuilt{
		DiskOnly: req.GetDiskOnly(), PolicyFollowed: !a.NoBuildPolicies,
		Vcpus: vcpus, MemoryMb: memory, SizeBytes: builtBytes, Env: env, DiskMb: cmp.Or(req.GetDiskMb(), wrenn.DefaultDiskMiB),
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

// Keep adds a build, which is not stored.
func (a *Agent) Keep(id wrenn.BuildID) { a.keep(id, "") }

func (a *Agent) keep(id wrenn.BuildID, team string) {
	_ = a.locked(func() error { // never fails
		a.addBuild(string(id), team)
		return nil
	})
}

// addBuild is for a caller that holds mu.
func (a *Agent) addBuild(id, team string) {
	if a.builds == nil {
		a.builds, a.teams = map[string]bool{}, map[string]string{}
	}
	a.builds[id], a.teams[id] = true, team
	a.revision++
}

// fetchBuild adds the build of a new sandbox that the host does not have, if it can. The
// caller holds mu.
func (a *Agent) fetchBuild(req *hostagentv1.CreateSandboxRequest) error {
	id := req.GetGeneration()
	if id == "" || a.builds[id] || !a.SharesTemplates {
		return nil
	}
	if req.GetTemplateKey() != TemplateKey(wrenn.TeamID(req.GetTeam()), wrenn.BuildID(id)) {
		return wrenn.Errorf(wrenn.NotFound, "template is not on this host (build %s)", id)
	}
	a.addBuild(id, req.GetTeam())
	return nil
}

// TemplateKey is where hosts store a build of a team.
func TemplateKey(team wrenn.TeamID, id wrenn.BuildID) string {
	return "teams/" + string(team) + "/templates/" + string(id) + "/x"
}

// Purged reports whether the objects of a team's build were deleted.
func (a *Agent) Purged(team wrenn.TeamID, id wrenn.BuildID) (purged bool) {
	_ = a.locked(func() error { purged = a.purged[string(team)+"/"+string(id)]; return nil }) // never fails
	return purged
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
		a.revision++
		if a.purged == nil {
			a.purged = map[string]bool{}
		}
		if req.GetTeam() != "" {
			a.purged[req.GetTeam()+"/"+req.GetGeneration()] = true
		}
		return nil
	})
}

// ListTemplates returns all, by id.
func (a *Agent) ListTemplates(ctx context.Context, _ *hostagentv1.ListTemplatesRequest) (*hostagentv1.ListTemplatesResponse, error) {
	res := &hostagentv1.ListTemplatesResponse{}
	return res, a.with(ctx, "ListTemplates", "", func() error {
		res.Generations = slices.Sorted(maps.Keys(a.builds))
		for _, id := range res.Generations {
			if team := a.teams[id]; a.SharesTemplates && team != "" {
				res.Stored = append(res.Stored, &hostagentv1.StoredTemplate{Generation: id, Key: TemplateKey(wrenn.TeamID(team), wrenn.BuildID(id)), At: timestamppb.Now()})
			}
		}
		return nil
	})
}

// Forget loses a build, as if the host's disk was replaced.
func (a *Agent) Forget(id wrenn.BuildID) {
	_ = a.locked(func() error { delete(a.builds, string(id)); a.revision++; return nil }) // never fails
}

// PutBuildFiles keeps the files of a COPY step.
func (a *Agent) PutBuildFiles(ctx context.Context, stream *connect.ClientStream[hostagentv1.PutBuildFilesRequest]) (*hostagentv1.PutBuildFilesResponse, error) {
	var name string
	var content []byte
	for stream.Receive() {
		if f := stream.Msg().GetFiles(); f != nil {
			name = f.GetTeam() + "/" + f.GetHash()
		}
		content = append(content, stream.Msg().GetChunk()...)
	}
	if stream.Err() != nil {
		return nil, stream.Err()
	}
	return &hostagentv1.PutBuildFilesResponse{}, a.with(ctx, "PutBuildFiles", name, func() error {
		if a.buildFiles == nil {
			a.buildFiles = map[string][]byte{}
		}
		a.buildFiles[name] = content
		return nil
	})
}

// FindBuildFiles reports whether PutBuildFiles was called for them.
func (a *Agent) FindBuildFiles(ctx context.Context, req *hostagentv1.FindBuildFilesRequest) (*hostagentv1.FindBuildFilesResponse, error) {
	name := req.GetFiles().GetTeam() + "/" + req.GetFiles().GetHash()
	res := &hostagentv1.FindBuildFilesResponse{}
	return res, a.with(ctx, "FindBuildFiles", name, func() error {
		_, res.Present = a.buildFiles[name]
		return nil
	})
}

// BuildFiles returns files that were put, nil if there are none.
func (a *Agent) BuildFiles(team wrenn.TeamID, hash string) (content []byte) {
	_ = a.locked(func() error { content = a.buildFiles[string(team)+"/"+hash]; return nil }) // never fails
	return content
}
