package hostclient

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// TransferTo makes the paused sandbox of this host on another one, too, by what the snapshot
// store does not have of it, which passes through this process. Of at most so many bytes;
// nothing is kept. FailedPrecondition when an agent is of a version that cannot, or the sandbox cannot
// be moved so; Unavailable when a host breaks off. The sandbox stays on this host as it is.
func (c *Client) TransferTo(ctx context.Context, to *Client, id wrenn.SandboxID, as wrenn.StoredSandbox, most int64) error {
	ctx, cancel := context.WithTimeout(ctx, c.deadlines.Pause)
	defer cancel()
	out, err := c.streams.ExportSandbox(c.meant(ctx), &pb.ExportSandboxRequest{SandboxId: string(id)})
	if err != nil {
		return c.cannotTransfer(err)
	}
	defer func() { _ = out.Close() }() // what is left is not wanted
	in, err := to.streams.ImportSandbox(ctx)
	if err != nil {
		return to.cannotTransfer(err)
	}
	err = in.Send(&pb.ImportSandboxRequest{Part: &pb.ImportSandboxRequest_Start{Start: hostwire.ImportStart(id, as, most)}})
	for err == nil && out.Receive() {
		err = in.Send(&pb.ImportSandboxRequest{Part: &pb.ImportSandboxRequest_Chunk{Chunk: out.Msg().GetChunk()}})
	}
	if out.Err() != nil { // without CloseAndReceive the other host sees a broken stream
		return c.cannotTransfer(out.Err())
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return to.cannotTransfer(err)
	}
	_, err = in.CloseAndReceive() // io.EOF of Send means that it has answered already
	return to.cannotTransfer(err)
}

func (c *Client) cannotTransfer(err error) error {
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return wrenn.Errorf(wrenn.FailedPrecondition, "%s cannot move a sandbox that is not stored: its agent must be updated", c.peer)
	}
	return wire.FromConnect(c.peer, err)
}
