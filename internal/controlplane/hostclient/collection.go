package hostclient

import (
	"context"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// StoreReferences returns the keys in the snapshot store that the host refers to, of a
// team. FailedPrecondition when the agent is of a version that cannot tell.
func (c *Client) StoreReferences(ctx context.Context, team wrenn.TeamID) (wrenn.StoreReferences, error) {
	ctx, cancel := context.WithTimeout(ctx, c.deadlines.Inventory)
	defer cancel()
	res, err := c.rpc.ListStoreReferences(ctx, &pb.ListStoreReferencesRequest{Team: string(team)})
	if err != nil {
		return wrenn.StoreReferences{}, c.collectError(err)
	}
	return hostwire.ParseStoreReferences(res), nil
}

// CollectStore has the host delete what the snapshot store has of a team and nothing
// needs. FailedPrecondition when the agent is of a version that cannot, or has no store.
// After an error some of it may be deleted.
func (c *Client) CollectStore(ctx context.Context, collection wrenn.StoreCollection) (wrenn.StoreCollected, error) {
	ctx, cancel := context.WithTimeout(ctx, c.deadlines.Build)
	defer cancel()
	res, err := c.rpc.CollectStore(ctx, hostwire.CollectRequest(collection))
	if err != nil {
		return wrenn.StoreCollected{}, c.collectError(err)
	}
	return hostwire.ParseCollectResponse(res), nil
}

func (c *Client) collectError(err error) error {
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return wrenn.Errorf(wrenn.FailedPrecondition, "%s cannot collect what is stored: its agent must be updated", c.peer)
	}
	return wire.FromConnect(c.peer, err)
}
