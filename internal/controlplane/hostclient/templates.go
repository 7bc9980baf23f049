package hostclient

import (
	"context"
	"errors"

	"wrenn"
	"wrenn/internal/hostwire"
	pb "wrenn/proto/gen/hostagent/v1"
)

// Build has the host build a template and calls log with each line that the
// build prints. If the host has a generation of build.ID already, that is the
// result. When ctx ends the host cancels the build. The only deadline is that of
// ctx: a host that sends nothing for the stall timeout counts as gone.
func (c *Client) Build(ctx context.Context, build wrenn.TemplateBuild, log func(line string)) (wrenn.BuiltGeneration, error) {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	defer dog.stop()
	stream, err := c.rpc.BuildTemplate(ctx, hostwire.BuildRequest(build))
	if err != nil {
		return wrenn.BuiltGeneration{}, c.transferError(ctx, err)
	}
	defer func() { _ = stream.Close() }() // the result was received, or is not wanted
	for {
		more := false
		dog.during(func() { more = stream.Receive() })
		if !more {
			return wrenn.BuiltGeneration{}, c.buildError(ctx, stream.Err())
		}
		switch ev := hostwire.ParseBuildEvent(stream.Msg()); {
		case ev.Built != nil:
			return *ev.Built, nil
		case !ev.Keepalive:
			log(ev.Line)
		}
	}
}

// buildError is why the stream of a build ended without a result.
func (c *Client) buildError(ctx context.Context, err error) error {
	if err == nil {
		return wrenn.Errorf(wrenn.Unavailable, "%s ended the build without a result: build again", c.peer)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errStalled) {
		return cause
	}
	return c.transferError(ctx, err)
}

// DeleteGeneration has the host remove a generation. It is no error if the host
// does not have it.
func (c *Client) DeleteGeneration(ctx context.Context, id wrenn.GenerationID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DeleteTemplate, &pb.DeleteTemplateRequest{Generation: string(id)})
	return err
}

// Generations returns the ids of the generations that the host has. Malformed
// ids are left out.
func (c *Client) Generations(ctx context.Context) ([]wrenn.GenerationID, error) {
	res, err := call(ctx, c, c.deadlines.Inventory, c.rpc.ListTemplates, &pb.ListTemplatesRequest{})
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
