package server

import (
	"context"
	"io"
	"log/slog"
	"math"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/telemetry"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

func (s *server) ForkSandbox(ctx context.Context, msg *pb.ForkSandboxRequest) (*pb.ForkSandboxResponse, error) {
	id, fork, err := hostwire.ParseForkRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	copies, err := sb.ForkBy(ctx, fork)
	if err != nil {
		return nil, err
	}
	var results []wrenn.ForkResult
	for _, c := range copies {
		if wrenn.CodeOf(c.Err) == wrenn.Internal && ctx.Err() == nil {
			s.cfg.Log.LogAttrs(telemetry.WithSandbox(ctx, c.ID), slog.LevelError, "cannot make a copy of a sandbox", slog.Any("err", c.Err))
		}
		results = append(results, c.ForkResult)
	}
	return hostwire.ForkResults(fork.Checkpoint, results), nil
}

func (s *server) FetchSandbox(ctx context.Context, msg *pb.FetchSandboxRequest) (*pb.FetchSandboxResponse, error) {
	id, from, err := hostwire.ParseFetchRequest(msg)
	if err != nil {
		return nil, err
	}
	_, err = s.cfg.Manager.Fetch(telemetry.WithSandbox(ctx, id), id, from)
	return &pb.FetchSandboxResponse{}, err
}

func (s *server) CopyCheckpoint(ctx context.Context, msg *pb.CopyCheckpointRequest) (*pb.CopyCheckpointResponse, error) {
	id, spec, from, err := hostwire.ParseCopyRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.cfg.Manager.EnsureCopy(telemetry.WithSandbox(ctx, id), id, spec, from)
	if err != nil {
		return nil, err
	}
	info := sb.Info()
	return &pb.CopyCheckpointResponse{Sandbox: hostwire.CreateResponse(&info.ObservedSandbox)}, nil
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
	return &pb.CreateCheckpointResponse{Checkpoint: hostwire.Checkpoint(c)}, nil
}

func (s *server) ListCheckpoints(ctx context.Context, req *pb.ListCheckpointsRequest) (*pb.ListCheckpointsResponse, error) {
	sb, _, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	all := sb.Checkpoints()
	if req.GetMeasure() {
		sb.MeasureCheckpoints(ctx, &all)
	}
	return hostwire.Checkpoints(all), nil
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

// exportChunk is the size of the messages of an export.
const exportChunk = 256 << 10

func (s *server) ExportSandbox(ctx context.Context, req *pb.ExportSandboxRequest, stream *connect.ServerStream[pb.ExportSandboxResponse]) error {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return err
	}
	return sb.Export(ctx, exportWriter{stream})
}

// exportWriter sends what is written.
type exportWriter struct {
	stream *connect.ServerStream[pb.ExportSandboxResponse]
}

func (w exportWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		chunk := p[:min(len(p), exportChunk)]
		if err := w.stream.Send(&pb.ExportSandboxResponse{Chunk: chunk}); err != nil {
			return n, err
		}
		n, p = n+len(chunk), p[len(chunk):]
	}
	return n, nil
}

func (s *server) ImportSandbox(ctx context.Context, stream *connect.ClientStream[pb.ImportSandboxRequest]) (*pb.ImportSandboxResponse, error) {
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "the first message must be start")
	}
	start := stream.Msg().GetStart()
	id, err := wrenn.ParseSandboxID(start.GetSandboxId())
	if err != nil {
		return nil, err
	}
	from := wrenn.StoredSandbox{Team: wrenn.TeamID(start.GetTeam()), Epoch: wrenn.Epoch(min(start.GetEpoch(), math.MaxInt64))}
	_, err = s.cfg.Manager.Import(telemetry.WithSandbox(ctx, id), id, from, &importReader{stream: stream}, int64(min(start.GetMaxBytes(), math.MaxInt64)))
	return &pb.ImportSandboxResponse{}, err
}

// importReader reads the chunks of an import.
type importReader struct {
	stream *connect.ClientStream[pb.ImportSandboxRequest]
	rest   []byte
}

func (r *importReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if !r.stream.Receive() {
			if err := r.stream.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		r.rest = r.stream.Msg().GetChunk()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
