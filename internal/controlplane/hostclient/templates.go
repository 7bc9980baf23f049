package hostclient

import (
	"context"
	"errors"

	"wrenn"
	"wrenn/internal/hostwire"
	pb "wrenn/proto/gen/hostagent/v1"
)

// Build has the host build a template and calls log with each line that the
// build prints. If the host has a build of build.ID already, that is the
// result. When ctx ends the host cancels the build. The only deadline is that of
// ctx: a host that sends nothing for the stall timeout counts as gone.
func (c *Client) Build(ctx context.Context, build wrenn.BuildRequest, log func(line string)) (wrenn.BuildResult, error) {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	defer dog.stop()
	stream, err := c.rpc.BuildTemplate(ctx, hostwire.BuildRequest(build))
	if err != nil {
		return wrenn.BuildResult{}, c.transferError(ctx, err)
	}
	defer func() { _ = stream.Close() }() // the result was received, or is not wanted
	for {
		more := false
		dog.during(func() { more = stream.Receive() })
		if !more {
			return wrenn.BuildResult{}, c.buildError(ctx, stream.Err())
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

// DeleteBuild has the host remove a build. It is no error if the host
// does not have it.
func (c *Client) DeleteBuild(ctx context.Context, id wrenn.BuildID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DeleteTemplate, &pb.DeleteTemplateRequest{Generation: string(id)})
	return err
}

// Builds returns the ids of the builds that the host has. Malformed
// ids are left out.
func (c *Client) Builds(ctx context.Context) ([]wrenn.BuildID, error) {
	res, err := call(ctx, c, c.deadlines.Inventory, c.rpc.ListTemplates, &pb.ListTemplatesRequest{})
	if err != nil {
		return nil, err
	}
	var ids []wrenn.BuildID
	for _, text := range res.GetGenerations() {
		if id, err := wrenn.ParseBuildID(text); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
