package hostwire

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// BuildRequest asks for the build of a template. Of one that is made from a
// sandbox only that is sent: the sandbox on its host has the rest.
func BuildRequest(build wrenn.BuildRequest) *pb.BuildTemplateRequest {
	spec := build.Spec
	msg := &pb.BuildTemplateRequest{Generation: string(build.ID), Team: string(build.Team), DiskOnly: spec.From.DiskOnly, BaseKey: build.BaseKey}
	if from := spec.From.Sandbox; from != "" {
		msg.Source = &pb.BuildTemplateRequest_SandboxId{SandboxId: string(from)}
		return msg
	}
	msg.NetworkPolicy = NetworkPolicy(build.Network)
	msg.Vcpus, msg.MemoryMb, msg.Env = number(spec.VCPUs), number(spec.MemoryMiB), spec.Env
	msg.DiskMb, msg.MinFreeDiskMb, msg.MaxDiskMb = number(spec.DiskMiB), number(spec.MinFreeDiskMiB), number(spec.MaxDiskMiB)
	msg.StartCmd, msg.ReadyCmd, msg.ReadyTimeoutSec = spec.StartCmd, spec.ReadyCmd, seconds(spec.ReadyTimeout)
	msg.Steps, msg.NoCache, msg.User, msg.Workdir = steps(spec.Steps), spec.NoCache, spec.User, spec.Workdir
	switch from := spec.From; {
	case from.Template != "":
		msg.Source = &pb.BuildTemplateRequest_BaseGeneration{BaseGeneration: string(from.Template)}
	case from.OCI != "":
		msg.Source = &pb.BuildTemplateRequest_Container{Container: &pb.ContainerImage{
			Ref: from.OCI, Username: build.Login.Username, Password: build.Login.Password,
		}}
	case from.Image != "":
		msg.Source = &pb.BuildTemplateRequest_Image{Image: from.Image}
	}
	return msg
}

// ParseBuildRequest reads what is to be built. What the caller left out is zero.
func ParseBuildRequest(msg *pb.BuildTemplateRequest) (wrenn.BuildRequest, error) {
	build := wrenn.BuildRequest{
		Spec: wrenn.TemplateSpec{
			Size: parseSandboxSize(msg), Env: msg.GetEnv(),
			DiskMiB: int(msg.GetDiskMb()), MinFreeDiskMiB: int(msg.GetMinFreeDiskMb()), MaxDiskMiB: int(msg.GetMaxDiskMb()),
			StartCmd: msg.GetStartCmd(), ReadyCmd: msg.GetReadyCmd(), ReadyTimeout: parseSeconds(msg.GetReadyTimeoutSec()),
			Steps: parseSteps(msg.GetSteps()), NoCache: msg.GetNoCache(), User: msg.GetUser(), Workdir: msg.GetWorkdir(),
		},
		Team: wrenn.TeamID(msg.GetTeam()), BaseKey: msg.GetBaseKey(),
		Login: wrenn.RegistryLogin{Username: msg.GetContainer().GetUsername(), Password: msg.GetContainer().GetPassword()},
	}
	var err error
	if build.ID, err = wrenn.ParseBuildID(msg.GetGeneration()); err != nil {
		return build, err
	}
	if build.Network, err = parseNetworkPolicy(msg.GetNetworkPolicy()); err != nil {
		return build, err
	}
	build.Spec.From, err = parseSource(msg)
	return build, err
}

// HostBuilds lists builds.
func HostBuilds(builds wrenn.HostBuilds) *pb.ListTemplatesResponse {
	msg := &pb.ListTemplatesResponse{}
	for _, id := range builds.IDs {
		msg.Generations = append(msg.Generations, string(id))
		if s, ok := builds.Stored[id]; ok {
			msg.Stored = append(msg.Stored, &pb.StoredTemplate{Generation: string(id), Key: s.Key, At: timestamppb.New(s.At)})
		}
	}
	return msg
}

// ParseHostBuilds reads a list of builds. Malformed ids are left out.
func ParseHostBuilds(msg *pb.ListTemplatesResponse) wrenn.HostBuilds {
	out := wrenn.HostBuilds{Stored: map[wrenn.BuildID]wrenn.Stored{}}
	for _, text := range msg.GetGenerations() {
		if id, err := wrenn.ParseBuildID(text); err == nil {
			out.IDs = append(out.IDs, id)
		}
	}
	for _, s := range msg.GetStored() {
		if id, err := wrenn.ParseBuildID(s.GetGeneration()); err == nil && s.GetAt() != nil && s.GetKey() != "" {
			out.Stored[id] = wrenn.Stored{At: s.GetAt().AsTime(), Key: Text(s.GetKey())}
		}
	}
	return out
}

func parseSource(msg *pb.BuildTemplateRequest) (from wrenn.TemplateSource, err error) {
	from.DiskOnly = msg.GetDiskOnly()
	switch source := msg.GetSource().(type) {
	case *pb.BuildTemplateRequest_SandboxId:
		from.Sandbox, err = wrenn.ParseSandboxID(source.SandboxId)
	case *pb.BuildTemplateRequest_BaseGeneration:
		from.Template, err = wrenn.ParseBuildID(source.BaseGeneration)
	case *pb.BuildTemplateRequest_Container:
		if from.OCI = source.Container.GetRef(); from.OCI == "" {
			err = wrenn.Errorf(wrenn.Invalid, "the container image has no name")
		}
	case *pb.BuildTemplateRequest_Image:
		if from.Image = source.Image; from.Image == "" {
			err = wrenn.Errorf(wrenn.Invalid, "the image has no name")
		}
	}
	return from, err
}

func steps(steps []wrenn.BuildStep) []*pb.BuildStep {
	var out []*pb.BuildStep
	for _, s := range steps {
		out = append(out, &pb.BuildStep{Kind: string(s.Kind), Args: s.Args, Files: s.Files, Shell: s.Shell, Force: s.Force})
	}
	return out
}

func parseSteps(steps []*pb.BuildStep) []wrenn.BuildStep {
	var out []wrenn.BuildStep
	for _, s := range steps {
		out = append(out, wrenn.BuildStep{Kind: wrenn.StepKind(s.GetKind()), Args: s.GetArgs(), Files: s.GetFiles(), Shell: s.GetShell(), Force: s.GetForce()})
	}
	return out
}

// BuildFiles names the files of a step.
func BuildFiles(team wrenn.TeamID, hash string) *pb.BuildFiles {
	return &pb.BuildFiles{Team: string(team), Hash: hash}
}

// ParseBuildFiles reads which files of a step are meant.
func ParseBuildFiles(msg *pb.BuildFiles) (wrenn.TeamID, string, error) {
	return wrenn.TeamID(msg.GetTeam()), msg.GetHash(), wrenn.CheckFilesHash(msg.GetHash())
}

// BuildEvent is a message of a build's stream.
func BuildEvent(ev wrenn.BuildEvent) *pb.BuildTemplateResponse {
	switch {
	case ev.Built != nil:
		return &pb.BuildTemplateResponse{Event: &pb.BuildTemplateResponse_Done{Done: &pb.TemplateBuilt{
			Vcpus: number(ev.Built.VCPUs), MemoryMb: number(ev.Built.MemoryMiB), SizeBytes: size(ev.Built.SizeBytes),
			Env: ev.Built.Env, Digest: ev.Built.Digest, DiskOnly: ev.Built.DiskOnly, DiskMb: number(ev.Built.DiskMiB),
			PolicyFollowed: ev.Built.PolicyFollowed,
		}}}
	case ev.Keepalive:
		return &pb.BuildTemplateResponse{Event: &pb.BuildTemplateResponse_Keepalive{Keepalive: true}}
	}
	if ev.Step != "" {
		return &pb.BuildTemplateResponse{Event: &pb.BuildTemplateResponse_Step{Step: ev.Step}}
	}
	return &pb.BuildTemplateResponse{Event: &pb.BuildTemplateResponse_Line{Line: ev.Line}}
}

// ParseBuildEvent reads a message of a build's stream. One that a newer host
// sends is a keepalive.
func ParseBuildEvent(msg *pb.BuildTemplateResponse) wrenn.BuildEvent {
	switch ev := msg.GetEvent().(type) {
	case *pb.BuildTemplateResponse_Line:
		return wrenn.BuildEvent{Line: Text(ev.Line)}
	case *pb.BuildTemplateResponse_Step:
		if ev.Step != "" {
			return wrenn.BuildEvent{Step: Text(ev.Step)}
		}
	case *pb.BuildTemplateResponse_Done:
		return wrenn.BuildEvent{Built: &wrenn.BuildResult{
			Size: parseSandboxSize(ev.Done), SizeBytes: parseSize(ev.Done.GetSizeBytes()),
			Env: ev.Done.GetEnv(), Digest: Text(ev.Done.GetDigest()), DiskOnly: ev.Done.GetDiskOnly(), DiskMiB: int(ev.Done.GetDiskMb()),
			PolicyFollowed: ev.Done.GetPolicyFollowed(),
		}}
	}
	return wrenn.BuildEvent{Keepalive: true}
}
