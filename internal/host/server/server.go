// Package server serves hostagent.v1, the RPCs of a host agent, from its sandbox
// manager and template builder. It decodes, calls and encodes; decisions are
// theirs.
package server

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/trace"

	"wrenn.dev"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/host/template"
	"wrenn.dev/internal/hostwire"
	"wrenn.dev/internal/telemetry"
	"wrenn.dev/internal/tracing"
	"wrenn.dev/internal/volume"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
	"wrenn.dev/proto/gen/hostagent/v1/hostagentv1connect"
)

const (
	// maxSmallFile bounds WriteFile and ReadFile; larger ones are streamed.
	maxSmallFile = 16 << 20
	// maxMessage bounds one message of a caller: a small file and the fields around it.
	maxMessage = maxSmallFile + 1<<20
	// copyBuffer is the size of a chunk of a file: each chunk costs a few system
	// calls and wakes every process between the host and the reader.
	copyBuffer = 256 << 10
)

// Config is what a server works with. All fields but Traces and Memory are needed.
type Config struct {
	Manager   *sandbox.Manager
	Templates *template.Builder
	Volumes   *volume.Store
	Driver    string // the VMM's name
	Facts     wrenn.HostFacts
	Version   string
	Log       *slog.Logger
	// Traces makes spans of calls in the traces of control planes; nil makes none.
	Traces trace.TracerProvider
	// Memory is what outputs of Exec are kept in; nil has no limit.
	Memory *budget.Budget
}

// MaxExecMemory is the most that one Exec takes of Config.Memory, in bytes.
const MaxExecMemory = 2 * maxOutput * outputCost

// server implements hostagentv1connect.HostAgentServiceHandler.
type server struct {
	cfg     Config
	closing <-chan struct{} // closed when streams must end
	opened  opened
	// volumeCalls are those for files of volumes.
	volumeCalls volumeCalls
}

var _ hostagentv1connect.HostAgentServiceHandler = (*server)(nil)

// newHandler returns the path of the service and its handler. When s.closing is
// closed, streams end with unavailable and their commands keep running.
func newHandler(s *server) (string, http.Handler, error) {
	spans, err := tracing.Server(s.cfg.Traces)
	if err != nil {
		return "", nil, err
	}
	path, handler := hostagentv1connect.NewHostAgentServiceHandler(
		s,
		connect.WithReadMaxBytes(maxMessage),
		connect.WithInterceptors(append(spans, &edge{log: s.cfg.Log})...),
	)
	return path, handler, nil
}

func (s *server) Ping(ctx context.Context, req *pb.PingRequest) (*pb.PingResponse, error) {
	capacity, err := s.cfg.Manager.Capacity()
	if err != nil {
		return nil, err
	}
	rounds, err := s.cfg.Manager.StartRound(req.GetStoreRound())
	if err != nil { // the host can be used all the same, and says which round it has
		s.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cannot begin a round of uploads; will retry", slog.Any("err", err))
	}
	return hostwire.HostInfo(wrenn.HostInfo{
		Version: s.cfg.Version, Instance: s.cfg.Manager.Instance(), Driver: s.cfg.Driver,
		Capacity: capacity, HasStore: s.cfg.Manager.HasStore(), StoreRounds: rounds, TemplatesRevision: s.cfg.Manager.SnapshotsRevision(), HostFacts: s.cfg.Facts,
	}), nil
}

func (s *server) CreateSandbox(ctx context.Context, msg *pb.CreateSandboxRequest) (*pb.CreateSandboxResponse, error) {
	id, spec, err := hostwire.ParseCreateRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.cfg.Manager.Ensure(ctx, id, spec)
	if err != nil {
		return nil, err
	}
	info := sb.Info()
	return hostwire.CreateResponse(&info.ObservedSandbox), nil
}

const (
	// waitingLook is how often a start is looked at, which may wait for its turn.
	waitingLook = time.Second
	// waitingTold is how often a caller is told at least that it still waits.
	waitingTold = 10 * time.Second
)

// StartSandbox is CreateSandbox that tells why the sandbox waits.
func (s *server) StartSandbox(ctx context.Context, msg *pb.CreateSandboxRequest, stream *connect.ServerStream[pb.StartSandboxResponse]) error {
	type result struct {
		res *pb.CreateSandboxResponse
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	created := make(chan result, 1)
	go func() {
		res, err := s.CreateSandbox(ctx, msg)
		created <- result{res, err}
	}()
	look := time.NewTicker(waitingLook)
	defer look.Stop()
	waits := waitingReport{stream: stream}
	for {
		select {
		case r := <-created:
			cancel()
			if r.err != nil {
				return r.err
			}
			return stream.Send(&pb.StartSandboxResponse{Event: &pb.StartSandboxResponse_Started{Started: r.res}})
		case <-look.C:
			if err := waits.tell(s.waitingReason(msg)); err != nil {
				cancel()
				<-created // when the caller is gone nothing of it is left
				return err
			}
		}
	}
}

// waitingReason is why a sandbox that is being made waits; "" if it does not.
func (s *server) waitingReason(msg *pb.CreateSandboxRequest) string {
	sb, err := s.cfg.Manager.Get(wrenn.SandboxID(msg.GetSandboxId()))
	if err != nil {
		if s.cfg.Manager.FetchesTemplate(wrenn.BuildID(msg.GetGeneration())) {
			return "its host fetches the template from the snapshot store"
		}
		return ""
	}
	if info := sb.Info(); info.State == wrenn.ObservedStarting {
		return info.Reason
	}
	return ""
}

// waitingReport tells a caller why its sandbox waits, when that has changed and now and then.
type waitingReport struct {
	stream *connect.ServerStream[pb.StartSandboxResponse]
	last   string
	at     time.Time
}

func (w *waitingReport) tell(reason string) error {
	if reason == w.last && (reason == "" || time.Since(w.at) < waitingTold) {
		return nil
	}
	w.last, w.at = reason, time.Now()
	return w.stream.Send(&pb.StartSandboxResponse{Event: &pb.StartSandboxResponse_Waiting{Waiting: reason}})
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
	return &pb.PauseSandboxResponse{DiskOnly: req.GetDiskOnly()}, sb.PauseBy(ctx, hostwire.ParsePauseRequest(req))
}

func (s *server) ResumeSandbox(ctx context.Context, req *pb.ResumeSandboxRequest) (*pb.ResumeSandboxResponse, error) {
	sb, ctx, err := s.find(ctx, req.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if req.GetBoot() {
		return &pb.ResumeSandboxResponse{Boot: true}, sb.Boot(ctx, req.GetAccessToken())
	}
	return &pb.ResumeSandboxResponse{}, sb.ResumeWithToken(ctx, req.GetAccessToken())
}

func (s *server) SetSandboxSettings(ctx context.Context, msg *pb.SetSandboxSettingsRequest) (*pb.SetSandboxSettingsResponse, error) {
	id, settings, err := hostwire.ParseSettingsRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	return &pb.SetSandboxSettingsResponse{}, sb.SetSettings(ctx, settings)
}

func (s *server) ExtendSandbox(ctx context.Context, msg *pb.ExtendSandboxRequest) (*pb.ExtendSandboxResponse, error) {
	id, timeout, err := hostwire.ParseExtendRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	return &pb.ExtendSandboxResponse{}, sb.Extend(ctx, timeout)
}

func (s *server) SetNetworkPolicy(ctx context.Context, msg *pb.SetNetworkPolicyRequest) (*pb.SetNetworkPolicyResponse, error) {
	id, policy, secrets, err := hostwire.ParseSetNetworkRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	return &pb.SetNetworkPolicyResponse{KnowsProxies: true}, sb.SetNetwork(ctx, policy, secrets)
}

func (s *server) ReadMetrics(ctx context.Context, msg *pb.ReadMetricsRequest) (*pb.ReadMetricsResponse, error) {
	id, from, to, err := hostwire.ParseMetricsRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	return hostwire.Metrics(sb.Metrics(from, to)), nil
}

func (s *server) ReadEgress(ctx context.Context, msg *pb.ReadEgressRequest) (*pb.ReadEgressResponse, error) {
	id, after, wait, err := hostwire.ParseEgressRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, min(wait, wrenn.MaxEgressWait))
	defer cancel()
	return hostwire.Egress(sb.Egress(ctx, after)), nil
}

func (s *server) ExplainEgress(ctx context.Context, msg *pb.ExplainEgressRequest) (*pb.ExplainEgressResponse, error) {
	id, to, port, err := hostwire.ParseExplainRequest(msg)
	if err != nil {
		return nil, err
	}
	sb, err := s.get(ctx, id)
	if err != nil {
		return nil, err
	}
	e, err := sb.ExplainEgress(ctx, to, port)
	return hostwire.Explanation(e), err
}

func (s *server) ListSandboxes(context.Context, *pb.ListSandboxesRequest) (*pb.ListSandboxesResponse, error) {
	return hostwire.Inventory(s.cfg.Manager.Inventory()), nil
}

func (s *server) CreateVolume(ctx context.Context, req *pb.CreateVolumeRequest) (*pb.CreateVolumeResponse, error) {
	id, err := wrenn.ParseVolumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &pb.CreateVolumeResponse{}, s.cfg.Volumes.Create(ctx, id, int64(req.GetSizeMib()))
}

func (s *server) DeleteVolume(_ context.Context, req *pb.DeleteVolumeRequest) (*pb.DeleteVolumeResponse, error) {
	id, err := wrenn.ParseVolumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &pb.DeleteVolumeResponse{}, s.cfg.Volumes.Delete(id)
}

const (
	// newsPause is the least time between two answers of WatchSandboxes, after each of
	// which a control plane reads the whole inventory.
	newsPause = 250 * time.Millisecond
	// newsKeepalive is the silence after which WatchSandboxes shows that it lives.
	newsKeepalive = 30 * time.Second
)

func (s *server) WatchSandboxes(ctx context.Context, _ *pb.WatchSandboxesRequest, stream *connect.ServerStream[pb.WatchSandboxesResponse]) error {
	woken, stop := s.cfg.Manager.News()
	defer stop()
	keepalive := time.NewTicker(newsKeepalive)
	defer keepalive.Stop()
	answer := &pb.WatchSandboxesResponse{}
	for {
		if err := stream.Send(answer); err != nil {
			return err
		}
		pause := time.NewTimer(newsPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
		case <-s.closing:
		}
		pause.Stop()
		select {
		case <-woken:
			answer = &pb.WatchSandboxesResponse{}
		case <-keepalive.C:
			answer = &pb.WatchSandboxesResponse{Keepalive: true}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.closing:
			return wrenn.Errorf(wrenn.Unavailable, "the host's agent is stopping")
		}
	}
}

// get returns a sandbox. Unavailable when the caller means another epoch of it.
func (s *server) get(ctx context.Context, id wrenn.SandboxID) (*sandbox.Sandbox, error) {
	sb, err := s.cfg.Manager.Get(id)
	if err != nil {
		return nil, err
	}
	return sb, sb.CheckEpoch(ctx)
}

// find parses a sandbox's id. It returns the sandbox and a context whose log
// lines name it.
func (s *server) find(ctx context.Context, id string) (*sandbox.Sandbox, context.Context, error) {
	parsed, err := wrenn.ParseSandboxID(id)
	if err != nil {
		return nil, ctx, err
	}
	sb, err := s.get(ctx, parsed)
	return sb, telemetry.WithSandbox(ctx, parsed), err
}

// use is find for calls into the guest: the sandbox must run, and does not end
// for lack of use before release is called.
func (s *server) use(ctx context.Context, id string) (sb *sandbox.Sandbox, _ context.Context, release func(), err error) {
	sb, ctx, err = s.find(ctx, id)
	if err != nil {
		return nil, ctx, nil, err
	}
	done, err := s.opened.add(sb.ID())
	if err != nil {
		return nil, ctx, nil, err
	}
	unused, err := sb.Use(ctx)
	if err != nil {
		done()
		return nil, ctx, nil, err
	}
	return sb, ctx, func() { unused(); done() }, nil
}

// edge turns errors into those of Connect, and logs them once.
type edge struct{ log *slog.Logger }

func (e *edge) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if about, ok := req.Any().(interface{ GetSandboxId() string }); ok {
			if id, err := wrenn.ParseSandboxID(about.GetSandboxId()); err == nil {
				ctx = telemetry.WithSandbox(ctx, id)
			}
		}
		ctx, err := withEpoch(ctx, req.Header())
		if err != nil {
			return nil, e.translate(ctx, req.Spec(), err)
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
		ctx, err := withEpoch(ctx, conn.RequestHeader())
		if err == nil {
			err = next(ctx, conn)
		}
		return e.translate(ctx, conn.Spec(), err)
	}
}

// withEpoch returns a context for the epoch that the headers of a call name.
func withEpoch(ctx context.Context, header http.Header) (context.Context, error) {
	epoch, err := hostwire.ParseEpochText(header.Get(hostwire.EpochHeader))
	return sandbox.WithEpoch(ctx, epoch), err
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
