package hostclient

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// Fork makes running copies of a sandbox. It returns an error for each copy, in
// the order of ids; nil is a copy that runs. Repeating it is safe. When the call
// itself fails, copies may exist or not: Destroy them.
func (c *Client) Fork(ctx context.Context, id wrenn.SandboxID, fork wrenn.ForkSpec) ([]error, error) {
	res, err := call(ctx, c, c.deadlines.Create, c.rpc.ForkSandbox, hostwire.ForkRequest(id, fork))
	if err != nil {
		return nil, err
	}
	from, made := hostwire.ParseForkResults(res)
	if from != fork.Checkpoint {
		return nil, wrenn.Errorf(wrenn.Unavailable, "%s cannot copy a checkpoint: its agent is of an older version; update it", c.peer)
	}
	ids := fork.IDs
	results := make(map[wrenn.SandboxID]error, len(ids))
	for _, r := range made {
		results[r.ID] = r.Err
	}
	out := make([]error, len(ids))
	for i, id := range ids {
		err, reported := results[id]
		if !reported {
			err = wrenn.Errorf(wrenn.Internal, "%s did not report on copy %s", c.peer, id)
		}
		out[i] = err
	}
	return out, nil
}

// Copy is Create of a sandbox from a stored checkpoint of another one, which the host need
// not have. It does not report that the sandbox waits. FailedPrecondition when the agent is
// of a version that cannot, or what is stored cannot be used; NotFound when nothing is stored.
func (c *Client) Copy(ctx context.Context, id wrenn.SandboxID, spec wrenn.SandboxSpec, from wrenn.CheckpointSource) error {
	res, err := call(ctx, c, c.deadlines.Create, c.rpc.CopyCheckpoint, hostwire.CopyRequest(id, spec, from))
	if err != nil {
		return err
	}
	return hostwire.CheckCreateResponse(res.GetSandbox(), spec)
}

// CreateCheckpoint saves the present state of a running sandbox. Repeating it
// with the same id is safe.
func (c *Client) CreateCheckpoint(ctx context.Context, id wrenn.SandboxID, cp wrenn.CheckpointID, name string) (wrenn.Checkpoint, error) {
	req := &pb.CreateCheckpointRequest{SandboxId: string(id), CheckpointId: string(cp), Name: name}
	res, err := call(ctx, c, c.deadlines.Pause, c.rpc.CreateCheckpoint, req)
	return hostwire.ParseCheckpoint(res.GetCheckpoint()), err
}

// Checkpoints returns a sandbox's checkpoints, without what only a measurement finds.
func (c *Client) Checkpoints(ctx context.Context, id wrenn.SandboxID) (wrenn.Checkpoints, error) {
	return c.checkpoints(ctx, &pb.ListCheckpointsRequest{SandboxId: string(id)})
}

// MeasuredCheckpoints is Checkpoints with OwnBytes and DiskBytes, as far as the host can
// measure them: not if its agent is older, its file system does not tell, or it takes seconds.
func (c *Client) MeasuredCheckpoints(ctx context.Context, id wrenn.SandboxID) (wrenn.Checkpoints, error) {
	return c.checkpoints(ctx, &pb.ListCheckpointsRequest{SandboxId: string(id), Measure: true})
}

func (c *Client) checkpoints(ctx context.Context, req *pb.ListCheckpointsRequest) (wrenn.Checkpoints, error) {
	res, err := call(ctx, c, c.deadlines.Extend, c.rpc.ListCheckpoints, req)
	return hostwire.ParseCheckpoints(res), err
}

// RestoreCheckpoint returns the sandbox to the state of the checkpoint. When it
// fails the sandbox continues as before.
func (c *Client) RestoreCheckpoint(ctx context.Context, id wrenn.SandboxID, cp wrenn.CheckpointID) error {
	_, err := call(ctx, c, c.deadlines.Pause, c.rpc.RestoreCheckpoint, &pb.RestoreCheckpointRequest{SandboxId: string(id), CheckpointId: string(cp)})
	return err
}

// DeleteCheckpoint removes a checkpoint; twice is allowed.
func (c *Client) DeleteCheckpoint(ctx context.Context, id wrenn.SandboxID, cp wrenn.CheckpointID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DeleteCheckpoint, &pb.DeleteCheckpointRequest{SandboxId: string(id), CheckpointId: string(cp)})
	return err
}
