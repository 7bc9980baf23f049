package hostclient

import (
	"context"
	"time"

	"wrenn"
	"wrenn/internal/wire"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
)

func onTimeout(o wrenn.OnTimeout) hostagentv1.OnTimeout {
	if o == wrenn.PauseOnTimeout {
		return hostagentv1.OnTimeout_ON_TIMEOUT_PAUSE
	}
	return hostagentv1.OnTimeout_ON_TIMEOUT_DESTROY
}

// Fork makes running copies of a sandbox and returns what is wrong with each,
// in the order of ids; nil is a copy that runs. Repeating it is safe. After an
// error of the whole, copies may be there or not: Destroy them.
func (c *Client) Fork(ctx context.Context, id wrenn.SandboxID, ids []wrenn.SandboxID) ([]error, error) {
	req := &hostagentv1.ForkSandboxRequest{SandboxId: string(id)}
	for _, id := range ids {
		req.NewIds = append(req.NewIds, string(id))
	}
	res, err := call(ctx, c, c.deadlines.Create, c.rpc.ForkSandbox, req)
	if err != nil {
		return nil, err
	}
	failed := make(map[string]error, len(ids))
	for _, r := range res.GetResults() {
		failed[r.GetSandboxId()] = wire.FromResult(r.GetCode(), clean(r.GetMessage()))
	}
	out := make([]error, len(ids))
	for i, id := range ids {
		err, told := failed[string(id)]
		if !told {
			err = wrenn.Errorf(wrenn.Internal, "host %s said nothing of copy %s", c.id, id)
		}
		out[i] = err
	}
	return out, nil
}

// CreateCheckpoint keeps what a running sandbox is now. Repeating it with the
// same id is safe.
func (c *Client) CreateCheckpoint(ctx context.Context, id wrenn.SandboxID, cp wrenn.CheckpointID, name string) (wrenn.Checkpoint, error) {
	req := &hostagentv1.CreateCheckpointRequest{SandboxId: string(id), CheckpointId: string(cp), Name: name}
	res, err := call(ctx, c, c.deadlines.Pause, c.rpc.CreateCheckpoint, req)
	return checkpoint(res.GetCheckpoint()), err
}

// Checkpoints returns a sandbox's checkpoints, oldest first, and the one that
// it goes on from, "" for none.
func (c *Client) Checkpoints(ctx context.Context, id wrenn.SandboxID) (list []wrenn.Checkpoint, head wrenn.CheckpointID, err error) {
	res, err := call(ctx, c, c.deadlines.Extend, c.rpc.ListCheckpoints, &hostagentv1.ListCheckpointsRequest{SandboxId: string(id)})
	for _, cp := range res.GetCheckpoints() {
		list = append(list, checkpoint(cp))
	}
	return list, wrenn.CheckpointID(clean(res.GetHead())), err
}

func checkpoint(c *hostagentv1.Checkpoint) wrenn.Checkpoint {
	return wrenn.Checkpoint{
		ID: wrenn.CheckpointID(clean(c.GetId())), Parent: wrenn.CheckpointID(clean(c.GetParent())), Name: clean(c.GetName()),
		CreatedAt: time.UnixMilli(c.GetCreatedAtUnixMs()).UTC(), SizeBytes: int64(c.GetSizeBytes()),
	}
}

// RestoreCheckpoint makes the sandbox what it was at the checkpoint; when it
// fails the sandbox goes on as before.
func (c *Client) RestoreCheckpoint(ctx context.Context, id wrenn.SandboxID, cp wrenn.CheckpointID) error {
	_, err := call(ctx, c, c.deadlines.Pause, c.rpc.RestoreCheckpoint, &hostagentv1.RestoreCheckpointRequest{SandboxId: string(id), CheckpointId: string(cp)})
	return err
}

// DeleteCheckpoint removes one; twice is allowed.
func (c *Client) DeleteCheckpoint(ctx context.Context, id wrenn.SandboxID, cp wrenn.CheckpointID) error {
	_, err := call(ctx, c, c.deadlines.Destroy, c.rpc.DeleteCheckpoint, &hostagentv1.DeleteCheckpointRequest{SandboxId: string(id), CheckpointId: string(cp)})
	return err
}
