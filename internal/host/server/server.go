// Package server is the RPC of a host agent, hostagent.v1, over its sandbox
// manager. It decodes, asks and encodes; decisions are the manager's.
package server

import (
	"cmp"
	"context"
	"log/slog"
	"math"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn"
	"wrenn/internal/host/sandbox"
	"wrenn/internal/host/template"
	"wrenn/internal/telemetry"
	"wrenn/internal/wire"
	pb "wrenn/proto/gen/hostagent/v1"
	"wrenn/proto/gen/hostagent/v1/hostagentv1connect"
)

const (
	// maxSmallFile bounds WriteFile and ReadFile; larger ones are streamed.
	maxSmallFile = 16 << 20
	// maxMessage bounds one message of a caller: a small file and what is around it.
	maxMessage = maxSmallFile + 1<<20
	// copyBuffer is the size of a chunk of a file on its way: each costs a few
	// system calls and wakes every process between here and the reader.
	copyBuffer = 256 << 10
)

// The shape of a sandbox that asks for none.
const (
	defaultVCPUs     = 1
	defaultMemoryMiB = 512
)

// baseTemplate is the prepared guest image: what there is without a generation.
const baseTemplate = "base"

// Config is what a server works with. All fields are needed.
type Config struct {
	Manager   *sandbox.Manager
	Templates *template.Builder
	Driver    string // the VMM's name
	Version   string
	Log       *slog.Logger
}

// server implements hostagentv1connect.HostAgentServiceHandler.
type server struct {
	cfg     Config
	closing <-chan struct{} // closed when streams shall end
}

var _ hostagentv1connect.HostAgentServiceHandler = (*server)(nil)

// newHandler returns the path of the service and its handler. Streams end with
// unavailable when s.closing is closed: their commands run on.
func newHandler(s *server) (string, http.Handler) {
	return hostagentv1connect.NewHostAgentServiceHandler(
		s,
		connect.WithReadMaxBytes(maxMessage),
		connect.WithInterceptors(&edge{log: s.cfg.Log}),
	)
}

func (s *server) Ping(context.Context, *pb.PingRequest) (*pb.PingResponse, error) {
	c, err := s.cfg.Manager.Capacity()
	if err != nil {
		return nil, err
	}
	return &pb.PingResponse{
		Version: s.cfg.Version, Instance: s.cfg.Manager.Instance(), Driver: s.cfg.Driver,
		Capacity: &pb.Capacity{
			Sandboxes: uint32(c.Limits.Sandboxes), SandboxesUsed: uint32(c.Sandboxes),
			MemoryMb: uint64(c.Limits.MemoryMiB), MemoryMbUsed: uint64(c.MemoryMiB),
			DiskMb: uint64(c.DiskMiB), DiskMbFree: uint64(c.DiskFreeMiB),
		},
	}, nil
}

func (s *server) CreateSandbox(ctx context.Context, req *pb.CreateSandboxRequest) (*pb.CreateSandboxResponse, error) {
	want, err := s.requestOf(ctx, req)
	if err != nil {
		return nil, err
	}
	sb, err := s.cfg.Manager.Ensure(ctx, want)
	if err != nil {
		return nil, err
	}
	info := sb.Info()
	return &pb.CreateSandboxResponse{SandboxId: string(info.ID), Status: statuses[info.Status]}, nil
}

func (s *server) requestOf(ctx context.Context, req *pb.CreateSandboxRequest) (sandbox.Request, error) {
	id, err := wrenn.ParseSandboxID(req.GetSandboxId())
	if err != nil {
		return sandbox.Request{}, err
	}
	ending, err := endingOf(req.GetOnTimeout())
	if err != nil {
		return sandbox.Request{}, err
	}
	want := sandbox.Request{
		ID: id, Template: cmp.Or(req.GetTemplate(), baseTemplate), Shape: shapeOf(req.GetVcpus(), req.GetMemoryMb()), Snapshot: req.GetGeneration(),
		Timeout: seconds(req.GetTimeoutSec()), OnTimeout: ending, AutoResume: req.GetAutoResume(), Env: req.GetEnv(),
	}
	if want.Snapshot == "" {
		if want.Template != baseTemplate {
			err = wrenn.Errorf(wrenn.NotFound, "there is no template %.64q", want.Template)
		}
		return want, err
	}
	shape, err := s.generationOf(ctx, req)
	if err == nil && req.GetVcpus() == 0 && req.GetMemoryMb() == 0 {
		want.Shape = shape
	}
	return want, err
}

func (s *server) DestroySandbox(ctx context.Context, req *pb.DestroySandboxRequest) (*pb.DestroySandboxResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	switch {
	case wrenn.CodeOf(err) == wrenn.NotFound:
		return &pb.DestroySandboxResponse{}, nil
	case err != nil:
		return nil, err
	}
	return &pb.DestroySandboxResponse{}, sb.Destroy(ctx)
}

func (s *server) PauseSandbox(ctx context.Context, req *pb.PauseSandboxRequest) (*pb.PauseSandboxResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &pb.PauseSandboxResponse{}, sb.Pause(ctx)
}

func (s *server) ResumeSandbox(ctx context.Context, req *pb.ResumeSandboxRequest) (*pb.ResumeSandboxResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &pb.ResumeSandboxResponse{}, sb.Resume(ctx)
}

func (s *server) ExtendSandbox(ctx context.Context, req *pb.ExtendSandboxRequest) (*pb.ExtendSandboxResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &pb.ExtendSandboxResponse{}, sb.Extend(ctx, seconds(req.GetTimeoutSec()))
}

func (s *server) ListSandboxes(context.Context, *pb.ListSandboxesRequest) (*pb.ListSandboxesResponse, error) {
	inv := s.cfg.Manager.Inventory()
	resp := &pb.ListSandboxesResponse{Instance: inv.Instance, TakenAt: timestamppb.New(inv.TakenAt)}
	for _, info := range inv.Sandboxes {
		resp.Sandboxes = append(resp.Sandboxes, &pb.SandboxInfo{
			SandboxId: string(info.ID), Status: statuses[info.Status], Template: info.Template,
			Vcpus: uint32(info.Shape.VCPUs), MemoryMb: uint32(info.Shape.MemoryMiB),
			CreatedAtUnix: info.Created.Unix(), LastActiveAtUnix: info.Active.Unix(),
			TimeoutSec: secondsUp(info.Timeout), Reason: info.Reason, Version: info.Version,
			OnTimeout: onTimeout(info.OnTimeout), AutoResume: info.AutoResume,
		})
	}
	return resp, nil
}

// find returns the sandbox of the id and a context whose log lines name it.
func (s *server) find(ctx context.Context, id string) (*sandbox.Sandbox, context.Context, error) {
	parsed, err := wrenn.ParseSandboxID(id)
	if err != nil {
		return nil, ctx, err
	}
	sb, err := s.cfg.Manager.Get(parsed)
	return sb, telemetry.WithSandbox(ctx, parsed), err
}

// use is find for what goes on in the guest: the sandbox must run, and does
// not end for lack of use before release is called.
func (s *server) use(ctx context.Context, id string) (sb *sandbox.Sandbox, _ context.Context, release func(), err error) {
	sb, ctx, err = s.find(ctx, id)
	if err != nil {
		return nil, ctx, nil, err
	}
	release, err = sb.Use(ctx)
	return sb, ctx, release, err
}

var statuses = map[sandbox.Status]pb.SandboxStatus{
	sandbox.StatusStarting:    pb.SandboxStatus_SANDBOX_STATUS_STARTING,
	sandbox.StatusRunning:     pb.SandboxStatus_SANDBOX_STATUS_RUNNING,
	sandbox.StatusPausing:     pb.SandboxStatus_SANDBOX_STATUS_RUNNING, // until it is paused
	sandbox.StatusRestoring:   pb.SandboxStatus_SANDBOX_STATUS_RUNNING,
	sandbox.StatusResuming:    pb.SandboxStatus_SANDBOX_STATUS_PAUSED, // until it runs
	sandbox.StatusPaused:      pb.SandboxStatus_SANDBOX_STATUS_PAUSED,
	sandbox.StatusStopping:    pb.SandboxStatus_SANDBOX_STATUS_STOPPING,
	sandbox.StatusStopped:     pb.SandboxStatus_SANDBOX_STATUS_STOPPED,
	sandbox.StatusFailed:      pb.SandboxStatus_SANDBOX_STATUS_FAILED,
	sandbox.StatusQuarantined: pb.SandboxStatus_SANDBOX_STATUS_QUARANTINED,
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// secondsUp rounds up, so that a time that is left never reads as none.
func secondsUp(d time.Duration) uint32 {
	return uint32(min((d+time.Second-1)/time.Second, math.MaxUint32))
}

// edge is where errors become those of Connect and are logged, once.
type edge struct{ log *slog.Logger }

func (e *edge) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if about, ok := req.Any().(interface{ GetSandboxId() string }); ok {
			if id, err := wrenn.ParseSandboxID(about.GetSandboxId()); err == nil {
				ctx = telemetry.WithSandbox(ctx, id)
			}
		}
		resp, err := next(ctx, req)
		if err != nil {
			return nil, e.translate(ctx, req.Spec(), err)
		}
		return resp, nil
	}
}

func (e *edge) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (e *edge) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return e.translate(ctx, conn.Spec(), next(ctx, conn))
	}
}

func (e *edge) translate(ctx context.Context, spec connect.Spec, err error) error {
	if err == nil {
		return nil
	}
	if wrenn.CodeOf(err) == wrenn.Internal && ctx.Err() == nil {
		e.log.LogAttrs(ctx, slog.LevelError, "call failed", slog.String("procedure", spec.Procedure), slog.Any("err", err))
	}
	return wire.ToConnect(err)
}
