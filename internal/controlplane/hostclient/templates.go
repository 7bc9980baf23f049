package hostclient

import (
	"context"
	"errors"

	"wrenn"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

// RegistryLogin is what a registry asks for. It goes to the host and is kept nowhere.
type RegistryLogin struct{ Username, Password string }

// Build makes a generation and calls say with each line of its log; one that is
// there is the answer. When ctx ends the host gives it up. There is no deadline
// but ctx's: a host that is silent for the stall timer is taken for gone.
func (c *Client) Build(ctx context.Context, id wrenn.GenerationID, spec wrenn.TemplateSpec, login RegistryLogin, say func(string)) (wrenn.BuiltGeneration, error) {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	defer dog.stop()
	stream, err := c.rpc.BuildTemplate(ctx, buildRequest(id, spec, login))
	if err != nil {
		return wrenn.BuiltGeneration{}, c.transferError(ctx, err)
	}
	defer func() { _ = stream.Close() }() // the answer was read, or is not wanted
	for {
		more := false
		dog.during(func() { more = stream.Receive() })
		if !more {
			return wrenn.BuiltGeneration{}, c.buildError(ctx, stream.Err())
		}
		switch ev := stream.Msg().GetEvent().(type) {
		case *hostagentv1.BuildTemplateResponse_Line:
			say(clean(ev.Line))
		case *hostagentv1.BuildTemplateResponse_Done:
			done := ev.Done
			return wrenn.BuiltGeneration{
				Size: wrenn.Size{VCPUs: int(done.GetVcpus()), MemoryMiB: int(done.GetMemoryMb())}, SizeBytes: int64(done.GetSizeBytes()),
				Env: done.GetEnv(), Digest: clean(done.GetDigest()),
			}, nil
		}
	}
}

// buildError is why a build's stream ended without a result.
func (c *Client) buildError(ctx context.Context, err error) error {
	if err == nil {
		return wrenn.Errorf(wrenn.Unavailable, "%s broke the build off: build again", c.peer)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errStalled) {
		return cause
	}
	return c.transferError(ctx, err)
}

func buildRequest(id wrenn.GenerationID, spec wrenn.TemplateSpec, login RegistryLogin) *hostagentv1.BuildTemplateRequest {
	req := &hostagentv1.BuildTemplateRequest{Generation: string(id)}
	switch from := spec.From; {
	case from.Sandbox != "": // which has its own of the rest
		req.Source = &hostagentv1.BuildTemplateRequest_SandboxId{SandboxId: string(from.Sandbox)}
		return req
	case from.OCI != "":
		req.Source = &hostagentv1.BuildTemplateRequest_Container{Container: &hostagentv1.ContainerImage{
			Ref: from.OCI, Username: login.Username, Password: login.Password,
		}}
	case from.Image != "":
		req.Source = &hostagentv1.BuildTemplateRequest_Image{Image: from.Image}
	}
	req.Vcpus, req.MemoryMb, req.Env = uint32(spec.VCPUs), uint32(spec.MemoryMiB), spec.Env
	req.StartCmd, req.ReadyCmd, req.ReadyTimeoutSec = spec.StartCmd, spec.ReadyCmd, seconds(spec.ReadyTimeout)
	return req
}

// DeleteGeneration has the host remove a generation; one that is not there is no error.
func (c *Client) DeleteGeneration(ctx context.Context, id wrenn.GenerationID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DeleteTemplate, &hostagentv1.DeleteTemplateRequest{Generation: string(id)})
	return err
}

// Generations returns those that the host has. Names that are none are left out.
func (c *Client) Generations(ctx context.Context) ([]wrenn.GenerationID, error) {
	res, err := call(ctx, c, c.deadlines.Inventory, c.rpc.ListTemplates, &hostagentv1.ListTemplatesRequest{})
	if err != nil {
		return nil, err
	}
	var ids []wrenn.GenerationID
	for _, text := range res.GetGenerations() {
		if id, err := wrenn.ParseGenerationID(text); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
