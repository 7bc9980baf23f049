package server

import (
	"context"
	"log/slog"

	"wrenn"
	"wrenn/internal/host/sandbox"
	"wrenn/internal/telemetry"
	"wrenn/internal/wire"
	pb "wrenn/proto/gen/hostagent/v1"
)

var endings = map[pb.OnTimeout]sandbox.Ending{
	pb.OnTimeout_ON_TIMEOUT_UNSPECIFIED: sandbox.EndStop,
	pb.OnTimeout_ON_TIMEOUT_DESTROY:     sandbox.EndStop,
	pb.OnTimeout_ON_TIMEOUT_PAUSE:       sandbox.EndPause,
}

// endingOf is what a newer caller asks for, or Invalid: to do something else
// instead could lose the sandbox.
func endingOf(o pb.OnTimeout) (sandbox.Ending, error) {
	ending, known := endings[o]
	if !known {
		return "", wrenn.Errorf(wrenn.Invalid, "on_timeout %d is not known to this host", o)
	}
	return ending, nil
}

func onTimeout(e sandbox.Ending) pb.OnTimeout {
	if e == sandbox.EndPause {
		return pb.OnTimeout_ON_TIMEOUT_PAUSE
	}
	return pb.OnTimeout_ON_TIMEOUT_DESTROY
}

func (s *server) ForkSandbox(ctx context.Context, req *pb.ForkSandboxRequest) (*pb.ForkSandboxResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	ids := make([]wrenn.SandboxID, len(req.GetNewIds()))
	for i, id := range req.GetNewIds() {
		ids[i] = wrenn.SandboxID(id) // Fork checks them
	}
	copies, err := sb.Fork(ctx, ids)
	if err != nil {
		return nil, err
	}
	resp := &pb.ForkSandboxResponse{}
	for _, c := range copies {
		if wrenn.CodeOf(c.Err) == wrenn.Internal && ctx.Err() == nil {
			s.cfg.Log.LogAttrs(telemetry.WithSandbox(ctx, c.ID), slog.LevelError, "a copy was not made", slog.Any("err", c.Err))
		}
		code, message := wire.ToResult(c.Err)
		resp.Results = append(resp.Results, &pb.ForkResult{SandboxId: string(c.ID), Code: code, Message: message})
	}
	return resp, nil
}

func (s *server) CreateCheckpoint(ctx context.Context, req *pb.CreateCheckpointRequest) (*pb.CreateCheckpointResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if req.GetCheckpointId() == "" {
		return nil, wrenn.Errorf(wrenn.Invalid, "checkpoint_id is missing")
	}
	c, err := sb.Checkpoint(ctx, wrenn.CheckpointID(req.GetCheckpointId()), req.GetName())
	if err != nil {
		return nil, err
	}
	return &pb.CreateCheckpointResponse{Checkpoint: checkpoint(c)}, nil
}

func (s *server) ListCheckpoints(ctx context.Context, req *pb.ListCheckpointsRequest) (*pb.ListCheckpointsResponse, error) {
	sb, _, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	list, head := sb.Checkpoints()
	resp := &pb.ListCheckpointsResponse{Head: string(head)}
	for _, c := range list {
		resp.Checkpoints = append(resp.Checkpoints, checkpoint(c))
	}
	return resp, nil
}

func checkpoint(c wrenn.Checkpoint) *pb.Checkpoint {
	return &pb.Checkpoint{Id: string(c.ID), Parent: string(c.Parent), Name: c.Name, CreatedAtUnixMs: c.CreatedAt.UnixMilli(), SizeBytes: uint64(max(0, c.SizeBytes))}
}

func (s *server) RestoreCheckpoint(ctx context.Context, req *pb.RestoreCheckpointRequest) (*pb.RestoreCheckpointResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &pb.RestoreCheckpointResponse{}, sb.RestoreCheckpoint(ctx, wrenn.CheckpointID(req.GetCheckpointId()))
}

func (s *server) DeleteCheckpoint(ctx context.Context, req *pb.DeleteCheckpointRequest) (*pb.DeleteCheckpointResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &pb.DeleteCheckpointResponse{}, sb.DeleteCheckpoint(ctx, wrenn.CheckpointID(req.GetCheckpointId()))
}
