package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/guest/account"
	pb "wrenn.dev/proto/gen/envd/process"
)

// Start runs a program and streams its events. The program outlives the stream;
// the deadline that the caller set by Connect-Timeout-Ms kills it, even when the
// caller has left before.
func (s *Service) Start(ctx context.Context, req *pb.StartRequest, stream *connect.ServerStream[pb.StartResponse]) error {
	header := requestHeader(ctx)
	user, err := s.user(header)
	if err != nil {
		return err
	}
	v, err := s.start(ctx, req, user)
	if err != nil {
		return err
	}
	err = v.serve(ctx, keepalive(header), func(ev *pb.ProcessEvent) error {
		if ev.GetEnd() != nil && v.wasExpired() {
			return errExpired
		}
		return stream.Send(&pb.StartResponse{Event: v.forCaller(ev)})
	})
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		v.expire() // so that it is killed before the caller gets the error
	}
	return err
}

var errExpired = connect.NewError(connect.CodeDeadlineExceeded, errors.New("the process was killed: its timeout elapsed"))

// Connect streams the events of a running process, or the end of one that ended
// not long ago.
func (s *Service) Connect(ctx context.Context, req *pb.ConnectRequest, stream *connect.ServerStream[pb.ConnectResponse]) error {
	v, err := s.connect(req)
	if err != nil {
		return err
	}
	resumed := req.GetProcess().GetSession() != "" // a resumed stream ends as the first one would have
	return v.serve(ctx, keepalive(requestHeader(ctx)), func(ev *pb.ProcessEvent) error {
		if ev.GetEnd() != nil && resumed && v.wasExpired() {
			return errExpired
		}
		return stream.Send(&pb.ConnectResponse{Event: v.forCaller(ev)})
	})
}

// serve sends the start event, then all others until the end.
func (v *view) serve(ctx context.Context, keepalive time.Duration, send func(*pb.ProcessEvent) error) error {
	defer v.out.leave(v.subscriber)
	if err := send(v.startEvent()); err != nil {
		return err
	}
	return v.out.follow(ctx, v.subscriber, keepalive, send)
}

// forCaller returns ev, without the reason of an end unless the caller asked for it.
func (v *view) forCaller(ev *pb.ProcessEvent) *pb.ProcessEvent {
	end := ev.GetEnd()
	if end == nil || v.reason {
		return ev
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: &pb.ProcessEvent_EndEvent{
		ExitCode: end.GetExitCode(), Exited: end.GetExited(), Status: end.GetStatus(), Error: end.Error,
	}}}
}

// Acknowledge lets output that a session has be dropped, or all that is kept for it.
func (s *Service) Acknowledge(_ context.Context, req *pb.AcknowledgeRequest) (*pb.AcknowledgeResponse, error) {
	p := s.withSession(req.GetSession())
	if p == nil {
		return nil, errSessionForgotten
	}
	if err := p.out.acknowledge(req.GetSession(), req.GetOffset(), req.GetLeave()); err != nil {
		return nil, err
	}
	return &pb.AcknowledgeResponse{}, nil
}

// List returns the running programs in the order of their pids.
func (s *Service) List(context.Context, *pb.ListRequest) (*pb.ListResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &pb.ListResponse{}
	for _, p := range s.byPID {
		if p.running() {
			resp.Processes = append(resp.Processes, &pb.ProcessInfo{Config: p.config, Pid: uint32(p.pid), Tag: p.tag})
		}
	}
	slices.SortFunc(resp.Processes, func(a, b *pb.ProcessInfo) int { return cmp.Compare(a.GetPid(), b.GetPid()) })
	return resp, nil
}

// Update resizes the terminal.
func (s *Service) Update(_ context.Context, req *pb.UpdateRequest) (*pb.UpdateResponse, error) {
	p, err := s.findRunning(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if req.GetPty() == nil {
		return &pb.UpdateResponse{}, nil
	}
	if p.pty == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("process %d has no terminal", p.pid))
	}
	size, err := sizeOf(req.GetPty())
	if err != nil {
		return nil, err
	}
	switch err := resizePTY(p.pty, size); {
	case errors.Is(err, os.ErrClosed):
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d has ended", p.pid))
	case err != nil:
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("resize terminal: %w", err))
	}
	return &pb.UpdateResponse{}, nil
}

// SendInput writes once and waits while the program does not read.
func (s *Service) SendInput(ctx context.Context, req *pb.SendInputRequest) (*pb.SendInputResponse, error) {
	p, err := s.findRunning(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if req.Offset == nil {
		if err := p.in.send(ctx, req.GetInput()); err != nil {
			return nil, err
		}
		return &pb.SendInputResponse{}, nil
	}
	session := p.out.find(req.GetProcess().GetSession())
	if session == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("input with an offset needs a session as the selector"))
	}
	if err := p.in.sendAt(ctx, req.GetInput(), session, req.GetOffset()); err != nil {
		return nil, err
	}
	return &pb.SendInputResponse{Taken: session.input.Load()}, nil
}

// StreamInput writes all input of a stream in order. The first event names the process.
func (s *Service) StreamInput(ctx context.Context, stream *connect.ClientStream[pb.StreamInputRequest]) (*pb.StreamInputResponse, error) {
	var p *proc
	for stream.Receive() {
		msg := stream.Msg()
		var err error
		switch {
		case p == nil && msg.GetStart() != nil:
			p, err = s.findRunning(msg.GetStart().GetProcess())
		case p == nil:
			err = connect.NewError(connect.CodeInvalidArgument, errors.New("the first event must be start"))
		case msg.GetStart() != nil:
			err = connect.NewError(connect.CodeInvalidArgument, errors.New("only the first event may be start"))
		case msg.GetData() != nil:
			err = p.in.send(ctx, msg.GetData().GetInput())
		}
		if err != nil {
			return nil, err
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return &pb.StreamInputResponse{}, nil
}

// killTimeout is how long SendSignal waits for a program to be gone that was sent SIGKILL. It
// is longer than that takes, unless the program hangs in the kernel.
const killTimeout = time.Second

// SendSignal signals the program and everything that it started. After SIGKILL
// all of it is gone when the answer comes, so that a second call returns not_found.
func (s *Service) SendSignal(ctx context.Context, req *pb.SendSignalRequest) (*pb.SendSignalResponse, error) {
	sig, ok := map[pb.Signal]unix.Signal{
		pb.Signal_SIGNAL_SIGKILL: unix.SIGKILL,
		pb.Signal_SIGNAL_SIGTERM: unix.SIGTERM,
	}[req.GetSignal()]
	if !ok {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("signal %v: only SIGTERM and SIGKILL", req.GetSignal()))
	}
	p, err := s.findRunning(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.signal(sig); err != nil {
		return nil, err
	}
	if sig == unix.SIGKILL {
		ctx, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		p.awaitGone(ctx)
	}
	return &pb.SendSignalResponse{}, nil
}

// CloseStdin ends the program's input, after what was sent. Twice is allowed.
func (s *Service) CloseStdin(ctx context.Context, req *pb.CloseStdinRequest) (*pb.CloseStdinResponse, error) {
	p, err := s.findRunning(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.in.end(ctx); err != nil {
		return nil, err
	}
	return &pb.CloseStdinResponse{}, nil
}

// startEvent returns the first event of a stream.
func (v *view) startEvent() *pb.ProcessEvent {
	start := &pb.ProcessEvent_StartEvent{Pid: uint32(v.pid)}
	if v.exact {
		start.Offset, start.Lost = v.next, v.lost
	}
	if v.session != nil {
		start.Input = v.session.input.Load()
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: start}}
}

// user returns the user that a request runs programs as.
func (s *Service) user(header http.Header) (*account.User, error) {
	name := cmp.Or(account.NameFromHeader(header), s.settings.Get().User)
	user, err := s.accounts.Lookup(name)
	switch {
	case errors.Is(err, account.ErrUnknown):
		return nil, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("invalid username: '%s'", name))
	case err != nil:
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("look up user '%s': %w", name, err))
	}
	if own := os.Geteuid(); own != 0 && int(user.UID) != own {
		return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("the agent does not run as root: it cannot become '%s'", name))
	}
	return user, nil
}

// openStdio makes the files that req asks for: a terminal, or pipes.
func openStdio(req *pb.StartRequest, user *account.User) (*stdio, error) {
	size, err := sizeOf(req.GetPty())
	if err != nil {
		return nil, err
	}
	var std *stdio
	if req.GetPty() != nil {
		std, err = openTerminal(size, user)
	} else {
		std, err = openPipes(req.Stdin == nil || *req.Stdin, user)
	}
	if err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	return std, nil
}

func requestHeader(ctx context.Context) http.Header {
	if call, ok := connect.CallInfoForHandlerContext(ctx); ok {
		return call.RequestHeader()
	}
	return http.Header{}
}

const (
	defaultKeepalive = 90 * time.Second
	maxKeepalive     = time.Hour
)

// keepalive returns the silence after which a stream gets a keepalive event.
func keepalive(header http.Header) time.Duration {
	seconds, err := strconv.ParseUint(header.Get("Keepalive-Ping-Interval"), 10, 32)
	if err != nil || seconds == 0 {
		return defaultKeepalive
	}
	return min(time.Duration(seconds)*time.Second, maxKeepalive)
}
