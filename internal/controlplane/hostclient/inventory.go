package hostclient

import (
	"context"

	"wrenn"
	"wrenn/internal/hostwire"
	pb "wrenn/proto/gen/hostagent/v1"
)

// Inventory returns every sandbox of the host: the whole inventory or an error.
func (c *Client) Inventory(ctx context.Context) (wrenn.Inventory, error) {
	res, err := call(ctx, c, c.deadlines.Inventory, c.rpc.ListSandboxes, &pb.ListSandboxesRequest{})
	if err != nil {
		return wrenn.Inventory{}, err
	}
	return hostwire.ParseInventory(c.id, res), nil
}
