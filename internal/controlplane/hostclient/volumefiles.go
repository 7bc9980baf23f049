package hostclient

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// old returns err, or what to do about an agent that cannot reach files of volumes.
func (c *Client) old(err error) error {
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return wrenn.Errorf(wrenn.FailedPrecondition, "%s reaches files of a volume only in sandboxes: its agent must be updated", c.peer)
	}
	return err
}

// volumeCall is call for files of volumes.
func volumeCall[Req, Res any](ctx context.Context, c *Client, f func(context.Context, *Req) (*Res, error), req *Req) (*Res, error) {
	return call(ctx, c, c.deadlines.Destroy, func(ctx context.Context, req *Req) (*Res, error) {
		res, err := f(ctx, req)
		return res, c.old(err)
	}, req)
}

// StatVolumeFile describes a file, directory or link of a volume.
func (c *Client) StatVolumeFile(ctx context.Context, id wrenn.VolumeID, path string) (wrenn.VolumeEntry, error) {
	res, err := volumeCall(ctx, c, c.rpc.StatVolumeFile, &pb.VolumeFileRequest{VolumeId: string(id), Path: path})
	return hostwire.ParseVolumeEntry(res.GetEntry()), err
}

// ListVolumeFiles returns the entries of a directory, of as many levels; 0 is 1.
func (c *Client) ListVolumeFiles(ctx context.Context, id wrenn.VolumeID, path string, levels int) ([]wrenn.VolumeEntry, error) {
	res, err := volumeCall(ctx, c, c.rpc.ListVolumeFiles, &pb.ListVolumeFilesRequest{VolumeId: string(id), Path: path, Depth: uint32(levels)})
	var out []wrenn.VolumeEntry
	for _, e := range res.GetEntries() {
		out = append(out, hostwire.ParseVolumeEntry(e))
	}
	return out, err
}

// MakeVolumeDirectory makes a directory, with parents those above it as well.
func (c *Client) MakeVolumeDirectory(ctx context.Context, id wrenn.VolumeID, path string, a wrenn.VolumeAttributes, parents bool) (wrenn.VolumeEntry, error) {
	res, err := volumeCall(ctx, c, c.rpc.MakeVolumeDirectory, &pb.MakeVolumeDirectoryRequest{
		VolumeId: string(id), Path: path, Attributes: hostwire.VolumeAttributes(a), Parents: parents,
	})
	return hostwire.ParseVolumeEntry(res.GetEntry()), err
}

// SetVolumeFile changes attributes of a file or directory.
func (c *Client) SetVolumeFile(ctx context.Context, id wrenn.VolumeID, path string, a wrenn.VolumeAttributes) (wrenn.VolumeEntry, error) {
	res, err := volumeCall(ctx, c, c.rpc.SetVolumeFile, &pb.SetVolumeFileRequest{VolumeId: string(id), Path: path, Attributes: hostwire.VolumeAttributes(a)})
	return hostwire.ParseVolumeEntry(res.GetEntry()), err
}

// RenameVolumeFile gives a file or directory another path.
func (c *Client) RenameVolumeFile(ctx context.Context, id wrenn.VolumeID, path, newPath string) (wrenn.VolumeEntry, error) {
	res, err := volumeCall(ctx, c, c.rpc.RenameVolumeFile, &pb.RenameVolumeFileRequest{VolumeId: string(id), Path: path, NewPath: newPath})
	return hostwire.ParseVolumeEntry(res.GetEntry()), err
}

// RemoveVolumeFile removes a file, or a directory with all that is in it. After an
// error a part of it may be removed.
func (c *Client) RemoveVolumeFile(ctx context.Context, id wrenn.VolumeID, path string) error {
	_, err := volumeCall(ctx, c, c.rpc.RemoveVolumeFile, &pb.VolumeFileRequest{VolumeId: string(id), Path: path})
	return err
}

// ReadVolumeFile opens a file of a volume, as Read does one of a sandbox.
func (c *Client) ReadVolumeFile(ctx context.Context, id wrenn.VolumeID, path string) (io.ReadCloser, error) {
	return c.download(ctx, func(ctx context.Context) (*connect.ServerStreamForClient[pb.ReadFileStreamResponse], error) {
		return c.downloads.ReadVolumeFile(ctx, &pb.VolumeFileRequest{VolumeId: string(id), Path: path})
	})
}

// WriteVolumeFile writes content to a file of a volume, as Write does to one of a sandbox.
func (c *Client) WriteVolumeFile(ctx context.Context, id wrenn.VolumeID, path string, w wrenn.VolumeWrite, content io.Reader) (wrenn.VolumeEntry, error) {
	ctx, dog := newWatchdog(ctx, c.deadlines.Stall)
	defer dog.stop() // without CloseAndReceive the host sees a broken stream, never a whole file
	stream, err := c.streams.WriteVolumeFile(ctx)
	if err != nil {
		return wrenn.VolumeEntry{}, c.transferError(ctx, err)
	}
	dog.during(func() {
		err = stream.Send(&pb.WriteFileStreamRequest{Part: &pb.WriteFileStreamRequest_Volume{Volume: hostwire.VolumeWrite(id, path, w)}})
	})
	if err == nil {
		var readErr error
		if readErr, err = sendChunks(stream, dog, content); readErr != nil {
			return wrenn.VolumeEntry{}, fmt.Errorf("read what to write: %w", readErr)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return wrenn.VolumeEntry{}, c.transferError(ctx, err)
	}
	// io.EOF of Send means that the host has answered already, with the reason.
	var res *pb.WriteVolumeFileResponse
	dog.during(func() { res, err = stream.CloseAndReceive() })
	return hostwire.ParseVolumeEntry(res.GetEntry()), c.transferError(ctx, c.old(err))
}
