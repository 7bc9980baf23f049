package hosttest

import (
	"context"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"wrenn.dev"
	"wrenn.dev/internal/wire"
	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
)

// moment is a checkpoint: the sandbox's files at a time.
type moment struct {
	info  *hostagentv1.Checkpoint
	files map[string][]byte
}

// ForkSandbox makes running copies with the files of the sandbox, or of a checkpoint.
func (a *Agent) ForkSandbox(ctx context.Context, req *hostagentv1.ForkSandboxRequest) (*hostagentv1.ForkSandboxResponse, error) {
	res := &hostagentv1.ForkSandboxResponse{CheckpointId: req.GetCheckpointId()}
	if a.NoCheckpointForks {
		res.CheckpointId = ""
	}
	err := a.with(ctx, "ForkSandbox", req.GetSandboxId(), func() error {
		parent, err := a.live(req.GetSandboxId())
		if err != nil {
			return err
		}
		files := parent.files
		if m := parent.moment(req.GetCheckpointId()); m != nil {
			files = m.files
		}
		for _, id := range req.GetNewIds() {
			code, message := wire.ToResult(a.fork(ctx, parent, id, files))
			res.Results = append(res.Results, &hostagentv1.ForkResult{SandboxId: id, Code: code, Message: message})
		}
		return nil
	})
	return res, err
}

// fork makes one copy. The caller must hold mu.
func (a *Agent) fork(ctx context.Context, parent *sandbox, id string, files map[string][]byte) error {
	if a.Copy != nil {
		if err := a.Copy(ctx, id); err != nil {
			return err
		}
	}
	if a.sandboxes[id] != nil {
		return nil
	}
	if c := a.capacity(); c.SandboxesUsed >= c.Sandboxes {
		return wrenn.Errorf(wrenn.Exhausted, "this host is full")
	}
	info := copyOf(parent.info)
	info.SandboxId, info.Status, info.Version = id, hostagentv1.SandboxStatus_SANDBOX_STATUS_RUNNING, 1
	b := newSandbox(info, parent.env)
	b.files, b.secrets = maps.Clone(files), parent.secrets
	a.sandboxes[id] = b
	a.creates++
	return nil
}

// ExportSandbox sends a paused sandbox.
func (a *Agent) ExportSandbox(ctx context.Context, req *hostagentv1.ExportSandboxRequest, stream *connect.ServerStream[hostagentv1.ExportSandboxResponse]) error {
	err := a.with(ctx, "ExportSandbox", req.GetSandboxId(), func() error {
		b, err := a.live(req.GetSandboxId())
		if err == nil && b.info.Status != hostagentv1.SandboxStatus_SANDBOX_STATUS_PAUSED {
			err = wrenn.Errorf(wrenn.FailedPrecondition, "it is not paused")
		}
		return err
	})
	if err != nil {
		return err
	}
	return stream.Send(&hostagentv1.ExportSandboxResponse{Chunk: []byte("exported")})
}

// ImportSandbox makes a paused sandbox of what was exported.
func (a *Agent) ImportSandbox(ctx context.Context, stream *connect.ClientStream[hostagentv1.ImportSandboxRequest]) (*hostagentv1.ImportSandboxResponse, error) {
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		return nil, wire.ToConnect(wrenn.Errorf(wrenn.Invalid, "no start"))
	}
	start := stream.Msg().GetStart()
	var content []byte
	for stream.Receive() {
		content = append(content, stream.Msg().GetChunk()...)
	}
	return &hostagentv1.ImportSandboxResponse{}, a.with(ctx, "ImportSandbox", start.GetSandboxId(), func() error {
		switch {
		case stream.Err() != nil || string(content) != "exported":
			return wrenn.Errorf(wrenn.Unavailable, "the stream broke off after %q: %v", content, stream.Err())
		case a.sandboxes[start.GetSandboxId()] != nil:
			return wrenn.Errorf(wrenn.AlreadyExists, "sandbox %s exists already on this host", start.GetSandboxId())
		}
		b := newSandbox(&hostagentv1.SandboxInfo{SandboxId: start.GetSandboxId(), Status: hostagentv1.SandboxStatus_SANDBOX_STATUS_PAUSED, Epoch: start.GetEpoch()}, nil)
		b.team = start.GetTeam()
		a.sandboxes[start.GetSandboxId()] = b
		return nil
	})
}

// CopyCheckpoint makes a running sandbox without files, if it has a store.
func (a *Agent) CopyCheckpoint(ctx context.Context, req *hostagentv1.CopyCheckpointRequest) (*hostagentv1.CopyCheckpointResponse, error) {
	err := a.with(ctx, "CopyCheckpoint", req.GetSandbox().GetSandboxId(), func() error {
		if !a.HasStore {
			return wrenn.Errorf(wrenn.FailedPrecondition, "this host has no snapshot store")
		}
		a.copies = append(a.copies, req)
		return nil
	})
	if err != nil {
		return nil, err
	}
	made, err := a.CreateSandbox(ctx, req.GetSandbox())
	return &hostagentv1.CopyCheckpointResponse{Sandbox: made}, err
}

// Copies returns the requests for copies of stored checkpoints that were not refused.
func (a *Agent) Copies() []*hostagentv1.CopyCheckpointRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.copies)
}

// CreateCheckpoint saves the files of a running sandbox.
func (a *Agent) CreateCheckpoint(ctx context.Context, req *hostagentv1.CreateCheckpointRequest) (*hostagentv1.CreateCheckpointResponse, error) {
	res := &hostagentv1.CreateCheckpointResponse{}
	err := a.with(ctx, "CreateCheckpoint", req.GetSandboxId(), func() error {
		b, err := a.running(req.GetSandboxId())
		if err != nil {
			return err
		}
		if m := b.moment(req.GetCheckpointId()); m != nil {
			res.Checkpoint = m.info
			return nil
		}
		m := &moment{files: maps.Clone(b.files), info: &hostagentv1.Checkpoint{
			Id: req.GetCheckpointId(), Parent: b.head, Name: req.GetName(), CreatedAtUnixMs: time.Now().UnixMilli(), SizeBytes: 4096,
		}}
		b.moments, b.head = append(b.moments, m), m.info.Id
		res.Checkpoint = m.info
		return nil
	})
	return res, err
}

func (b *sandbox) moment(id string) *moment {
	for _, m := range b.moments {
		if m.info.Id == id {
			return m
		}
	}
	return nil
}

// ListCheckpoints lists them, oldest first. A fourth of each is its own.
func (a *Agent) ListCheckpoints(ctx context.Context, req *hostagentv1.ListCheckpointsRequest) (*hostagentv1.ListCheckpointsResponse, error) {
	res := &hostagentv1.ListCheckpointsResponse{}
	return res, a.with(ctx, "ListCheckpoints", req.GetSandboxId(), func() error {
		b, err := a.live(req.GetSandboxId())
		if err != nil {
			return err
		}
		for _, m := range b.moments {
			info := proto.CloneOf(m.info)
			if req.GetMeasure() {
				info.OwnBytes = new(m.info.GetSizeBytes() / 4)
				res.DiskBytes = new(res.GetDiskBytes() + m.info.GetSizeBytes())
			}
			res.Checkpoints = append(res.Checkpoints, info)
		}
		res.Head = b.head
		return nil
	})
}

// RestoreCheckpoint restores the files of a checkpoint.
func (a *Agent) RestoreCheckpoint(ctx context.Context, req *hostagentv1.RestoreCheckpointRequest) (*hostagentv1.RestoreCheckpointResponse, error) {
	return &hostagentv1.RestoreCheckpointResponse{}, a.with(ctx, "RestoreCheckpoint", req.GetSandboxId(), func() error {
		b, err := a.live(req.GetSandboxId())
		if err != nil {
			return err
		}
		m := b.moment(req.GetCheckpointId())
		if m == nil {
			return wrenn.Errorf(wrenn.NotFound, "there is no checkpoint %s", req.GetCheckpointId())
		}
		b.files, b.head = maps.Clone(m.files), m.info.Id
		return nil
	})
}

// DeleteCheckpoint removes a checkpoint; its children become its parent's.
func (a *Agent) DeleteCheckpoint(ctx context.Context, req *hostagentv1.DeleteCheckpointRequest) (*hostagentv1.DeleteCheckpointResponse, error) {
	return &hostagentv1.DeleteCheckpointResponse{}, a.with(ctx, "DeleteCheckpoint", req.GetSandboxId(), func() error {
		b, err := a.live(req.GetSandboxId())
		if err != nil {
			return err
		}
		gone := b.moment(req.GetCheckpointId())
		if gone == nil {
			return nil
		}
		b.moments = slices.DeleteFunc(b.moments, func(m *moment) bool { return m == gone })
		for _, m := range b.moments {
			if m.info.Parent == gone.info.Id {
				m.info.Parent = gone.info.Parent
			}
		}
		if b.head == gone.info.Id {
			b.head = gone.info.Parent
		}
		return nil
	})
}
