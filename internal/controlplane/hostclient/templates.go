package hostclient

import (
	"context"
	"errors"
	"fmt"
	"io"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// Build has the host build a template and calls events with each step that begins
// and each line that the build prints. If the host has a build of build.ID already, that is the
// result. When ctx ends the host cancels the build. The only deadline is that of
// ctx: a host that sends nothing for the stall timeout counts as gone.
func (c *Client) Build(ctx context.Context, build wrenn.BuildRequest, events func(wrenn.BuildEvent)) (wrenn.BuildResult, error) {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	defer dog.stop()
	req := hostwire.BuildRequest(build)
	stream, err := c.rpc.BuildTemplate(ctx, req)
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
		case ev.Built != nil && ev.Built.DiskOnly != build.Spec.From.DiskOnly:
			return wrenn.BuildResult{}, wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the sandbox's host is too old to leave out the memory: update it")
		case ev.Built != nil && req.GetNetworkPolicy() != nil && !ev.Built.PolicyFollowed:
			return wrenn.BuildResult{}, wrenn.Errorf(wrenn.FailedPrecondition, "the agent of the build's host is too old to follow the team's network policy in builds: update it")
		case ev.Built != nil:
			return *ev.Built, nil
		case !ev.Keepalive:
			events(ev)
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
// does not have it. With an owner, what the snapshot store has of it is deleted, too; an
// agent that does not know that ignores the owner.
func (c *Client) DeleteBuild(ctx context.Context, id wrenn.BuildID, owner wrenn.TeamID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DeleteTemplate, &pb.DeleteTemplateRequest{Generation: string(id), Team: string(owner)})
	return err
}

// Builds returns the builds that the host has, and where they are stored. Malformed ids
// are left out.
func (c *Client) Builds(ctx context.Context) (wrenn.HostBuilds, error) {
	res, err := call(ctx, c, c.deadlines.Inventory, c.rpc.ListTemplates, &pb.ListTemplatesRequest{})
	if err != nil {
		return wrenn.HostBuilds{}, err
	}
	return hostwire.ParseHostBuilds(res), nil
}

// HasBuildFiles reports whether the host has the files of a COPY step.
func (c *Client) HasBuildFiles(ctx context.Context, team wrenn.TeamID, hash string) (bool, error) {
	res, err := call(ctx, c, c.deadlines.Inventory, c.rpc.FindBuildFiles, &pb.FindBuildFilesRequest{Files: hostwire.BuildFiles(team, hash)})
	return res.GetPresent(), err
}

// PutBuildFiles stores the files of a COPY step on the host. When content ends with
// an error nothing is stored, and PutBuildFiles returns an error that wraps it.
func (c *Client) PutBuildFiles(ctx context.Context, team wrenn.TeamID, hash string, content io.Reader) error {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	defer dog.stop() // without CloseAndReceive the host sees a broken stream, never whole files
	stream, err := c.streams.PutBuildFiles(ctx)
	if err != nil {
		return c.transferError(ctx, err)
	}
	first := &pb.PutBuildFilesRequest{Part: &pb.PutBuildFilesRequest_Files{Files: hostwire.BuildFiles(team, hash)}}
	dog.during(func() { err = stream.Send(first) })
	buf := make([]byte, uploadChunk)
	for done := false; err == nil && !done; {
		n, readErr := fill(content, buf)
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			return fmt.Errorf("read the files: %w", readErr)
		}
		if done = readErr != nil; n > 0 {
			dog.during(func() {
				err = stream.Send(&pb.PutBuildFilesRequest{Part: &pb.PutBuildFilesRequest_Chunk{Chunk: buf[:n]}})
			})
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return c.transferError(ctx, err)
	}
	// io.EOF of Send means that the host has answered already, with the reason.
	dog.during(func() { _, err = stream.CloseAndReceive() })
	return c.transferError(ctx, err)
}
