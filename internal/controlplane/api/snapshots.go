package api

import (
	"cmp"
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/api/internal/oapi"
	"wrenn.dev/internal/controlplane/service"
)

func (h *handlers) ForkSandbox(ctx context.Context, req oapi.ForkSandboxRequestObject) (oapi.ForkSandboxResponseObject, error) {
	body := value(req.Body)
	fork := service.ForkSandbox{Count: cmp.Or(value(body.Count), 1), Metadata: value(body.Metadata), Checkpoint: wrenn.CheckpointID(value(body.Checkpoint))}
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	forked, err := h.s.service.ForkSandbox(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), fork)
	if err != nil {
		return nil, err
	}
	answer := oapi.Forked{Sandboxes: make([]oapi.Sandbox, 0, len(forked.Sandboxes)), Errors: make([]oapi.FailedCopy, 0, len(forked.Failed))} // none is []
	for i := range forked.Sandboxes {
		answer.Sandboxes = append(answer.Sandboxes, sandbox(&forked.Sandboxes[i]))
	}
	for _, failed := range forked.Failed {
		f := failureOf(ctx, failed.Err)
		answer.Errors = append(answer.Errors, oapi.FailedCopy{ID: string(failed.ID), Code: f.code, Message: f.message})
	}
	return oapi.ForkSandbox201JSONResponse{Body: answer}, nil
}

func (h *handlers) CreateCheckpoint(ctx context.Context, req oapi.CreateCheckpointRequestObject) (oapi.CreateCheckpointResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	made, err := h.s.service.CreateCheckpoint(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), value(value(req.Body).Name))
	if err != nil {
		return nil, err
	}
	return oapi.CreateCheckpoint201JSONResponse{Body: checkpoint(made)}, nil
}

func (h *handlers) ListCheckpoints(ctx context.Context, req oapi.ListCheckpointsRequestObject) (oapi.ListCheckpointsResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	all, err := h.s.service.Checkpoints(ctx, callerOf(ctx), wrenn.SandboxID(req.ID))
	if err != nil {
		return nil, err
	}
	answer := oapi.Checkpoints{Checkpoints: make([]oapi.Checkpoint, 0, len(all.List)), Head: checkpointID(all.Head), DiskBytes: all.DiskBytes}
	for i := range all.List {
		answer.Checkpoints = append(answer.Checkpoints, checkpoint(&all.List[i]))
	}
	return oapi.ListCheckpoints200JSONResponse{Body: answer}, nil
}

func (h *handlers) RestoreCheckpoint(ctx context.Context, req oapi.RestoreCheckpointRequestObject) (oapi.RestoreCheckpointResponseObject, error) {
	restore := func(ctx context.Context, c service.Caller, id wrenn.SandboxID) (*wrenn.Sandbox, error) {
		return h.s.service.RestoreCheckpoint(ctx, c, id, wrenn.CheckpointID(req.Checkpoint))
	}
	sb, err := h.change(ctx, req.ID, restore)
	if err != nil {
		return nil, err
	}
	return oapi.RestoreCheckpoint200JSONResponse{OneSandboxJSONResponse: *sb}, nil
}

func (h *handlers) DeleteCheckpoint(ctx context.Context, req oapi.DeleteCheckpointRequestObject) (oapi.DeleteCheckpointResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, h.s.times.call)
	defer cancel()
	if err := h.s.service.DeleteCheckpoint(ctx, callerOf(ctx), wrenn.SandboxID(req.ID), wrenn.CheckpointID(req.Checkpoint)); err != nil {
		return nil, err
	}
	return oapi.DeleteCheckpoint204Response{}, nil
}

func checkpoint(c *wrenn.Checkpoint) oapi.Checkpoint {
	out := oapi.Checkpoint{
		ID: string(c.ID), ParentID: checkpointID(c.Parent), Name: c.Name, CreatedAt: c.CreatedAt.UTC(), SizeBytes: c.SizeBytes,
		OwnBytes: c.OwnBytes, StoredAt: moment(c.Stored.At),
	}
	if c.Automatic {
		out.Automatic = new(true)
	}
	return out
}

// checkpointID returns id, nil if it is "".
func checkpointID(id wrenn.CheckpointID) *oapi.CheckpointID {
	if id == "" {
		return nil
	}
	return new(string(id))
}
