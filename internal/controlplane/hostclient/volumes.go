package hostclient

import (
	"context"

	"wrenn.dev"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// CreateVolume has the host make an empty volume. Twice is allowed.
func (c *Client) CreateVolume(ctx context.Context, id wrenn.VolumeID, sizeMiB int) error {
	_, err := call(ctx, c, c.deadlines.Create, c.rpc.CreateVolume, &pb.CreateVolumeRequest{VolumeId: string(id), SizeMib: uint64(sizeMiB)})
	return err
}

// DeleteVolume has the host remove a volume: FailedPrecondition while a sandbox runs
// with it. It is no error if the host does not have it.
func (c *Client) DeleteVolume(ctx context.Context, id wrenn.VolumeID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DeleteVolume, &pb.DeleteVolumeRequest{VolumeId: string(id)})
	return err
}
