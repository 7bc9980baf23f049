// Package process is the process service of envd: it starts programs in the
// guest, moves their input and output, and reports how they ended.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/settings"
	pb "wrenn.dev/proto/gen/envd/process"
	"wrenn.dev/proto/gen/envd/process/processconnect"
)

const (
	// retention is how long an ended process is remembered, so that clients can still
	// ask for its end; the protocol's 30 s. Sessions may need longer.
	retention = 30 * time.Second
	// maxEnded and maxEndedOutput bound what is remembered of ended processes.
	maxEnded       = 1024
	maxEndedOutput = 16 << 20
)

var _ processconnect.ProcessHandler = (*Service)(nil)

// Config is what a Service needs. The zero values of the optional fields are usable.
type Config struct {
	Accounts account.DB
	Settings *settings.Settings // needed
	Log      *slog.Logger       // needed
	// Cgroups is the mount point of cgroup2, below which each program gets a
	// cgroup. Empty: programs run in the agent's own.
	Cgroups string
	// Protect keeps memory and processes for the agent, and the OOM killer from
	// it; for the only agent of a guest.
	Protect bool
}

// Service implements processconnect.ProcessHandler. Close it.
type Service struct {
	accounts account.DB
	settings *settings.Settings
	log      *slog.Logger
	spawner  *spawner
	buffers  *sync.Pool
	blocks   *sync.Pool
	work     sync.WaitGroup // one for each program, until nothing of it is left

	naming sync.Mutex // held while a session is looked up and made; locked before mu

	mu     sync.Mutex         // guards the following
	closed bool               // no new programs
	all    map[*proc]struct{} // those whose supervise has not returned
	byPID  map[int]*proc      // running ones, and ended ones that are remembered
	ended  []*proc            // the latter, in the order of their ends
	timers map[*proc]*time.Timer
}

// New returns a service without programs.
func New(cfg Config) *Service {
	return &Service{
		accounts: cfg.Accounts,
		settings: cfg.Settings,
		log:      cfg.Log,
		spawner:  newSpawner(cfg.Cgroups, cfg.Protect, cfg.Log),
		buffers:  newBuffers(),
		blocks:   newBlocks(),
		all:      make(map[*proc]struct{}),
		byPID:    make(map[int]*proc),
		timers:   make(map[*proc]*time.Timer),
	}
}

// Close kills all programs and what they left, and returns when nothing is left
// of them. Call it once. RPCs that are under way see their programs end.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	for p := range s.all {
		p.kill()
	}
	for _, t := range s.timers {
		t.Stop()
	}
	s.mu.Unlock()
	s.work.Wait()
	s.spawner.close()
}

// Hold returns when no start of a program is under way, and lets none begin until
// the caller calls release, once. A program that is forked into a frozen cgroup
// would never reach its exec, for which the agent waits.
func (s *Service) Hold(ctx context.Context) (release func(), err error) {
	return s.spawner.hold(ctx)
}

// view is one stream's view of a process.
type view struct {
	*proc
	*subscriber

	lost   uint64 // bytes that were asked for and are not kept any more
	reason bool   // the caller wants the reason of the end
}

// start runs a program; the view's subscriber gets all of its events. A session
// that was started before is resumed.
func (s *Service) start(ctx context.Context, req *pb.StartRequest, user *account.User) (*view, error) {
	session, err := sessionOf(req.GetSession())
	if err != nil {
		return nil, err
	}
	if session == nil {
		p, err := s.launch(ctx, req, user)
		if err != nil {
			return nil, err
		}
		defer s.adopt(p)
		return &view{proc: p, subscriber: p.out.subscribe(), reason: req.GetEndReason()}, nil // before adopt, so that it misses nothing
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	if p := s.withSession(session.id); p != nil {
		if !proto.Equal(p.config, req.GetProcess()) {
			return nil, connect.NewError(connect.CodeAlreadyExists, errors.New("the session belongs to another command"))
		}
		f, lost, err := p.out.resume(session.id, nil)
		return &view{p, f, lost, req.GetEndReason()}, err
	}
	p, err := s.launch(ctx, req, user)
	if err != nil {
		return nil, err
	}
	defer s.adopt(p)
	f, lost, err := p.out.open(session, new(uint64))
	return &view{p, f, lost, req.GetEndReason()}, err
}

// launch runs a program. The caller must call adopt.
func (s *Service) launch(ctx context.Context, req *pb.StartRequest, user *account.User) (*proc, error) {
	l, err := resolve(req.GetProcess(), user, s.settings.Get())
	if err != nil {
		return nil, err
	}
	if !s.begin() {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the agent is shutting down"))
	}
	p, err := s.spawn(ctx, l, req)
	if err != nil {
		s.work.Done()
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		p.expireAt(deadline)
	}
	return p, nil
}

// connect subscribes to a program: from its session's or the given offset, else from now on.
func (s *Service) connect(req *pb.ConnectRequest) (*view, error) {
	session, err := sessionOf(req.GetSession())
	if err != nil {
		return nil, err
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	p, err := s.find(req.GetProcess())
	if err != nil {
		return nil, err
	}
	known := req.GetProcess().GetSession()
	v := &view{proc: p, reason: req.GetEndReason()}
	switch {
	case known != "":
		v.subscriber, v.lost, err = p.out.resume(known, req.Offset)
	case session != nil:
		if other := s.withSession(session.id); other != nil && other != p {
			return nil, connect.NewError(connect.CodeAlreadyExists, errors.New("the session belongs to another process"))
		}
		v.subscriber, v.lost, err = p.out.open(session, req.Offset)
	case req.Offset != nil:
		v.subscriber, v.lost, err = p.out.subscribeAt(req.GetOffset())
	default:
		v.subscriber = p.out.subscribe()
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// begin counts a program that is about to start, and reports false after Close.
func (s *Service) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Add(1)
	return true
}

func (s *Service) spawn(ctx context.Context, l *launch, req *pb.StartRequest) (*proc, error) {
	std, err := openStdio(req, l.user)
	if err != nil {
		return nil, err
	}
	defer std.closeFar()
	child, err := s.spawner.fork(ctx, l, std)
	if err != nil {
		std.near.close()
		return nil, launchError(l, err)
	}
	return newProc(child, req, std, s.buffers, s.blocks), nil
}

// adopt registers p and supervises it.
func (s *Service) adopt(p *proc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[p] = struct{}{}
	s.byPID[p.pid] = p // an ended one of the same pid gives way
	if s.closed {
		p.kill()
	}
	go func() {
		defer s.work.Done()
		p.supervise(func() { s.spawner.release(p.group) }, func() { s.retain(p) })
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, p)
	}()
}

// retain remembers an ended process for late calls of Connect.
func (s *Service) retain(p *proc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	least, _ := p.out.need()
	s.timers[p] = time.AfterFunc(max(retention, least), func() { s.expire(p) })
	s.ended = append(s.ended, p)
	s.bound()
}

// bound keeps the memory of ended processes within its limits. The caller must hold mu.
func (s *Service) bound() {
	for len(s.ended) > maxEnded {
		s.forget(s.ended[0])
	}
	output := 0
	for _, p := range s.ended {
		output += p.out.held()
	}
	for _, p := range s.ended {
		if output <= maxEndedOutput {
			return
		}
		output -= p.out.discard()
	}
}

// expire forgets an ended process, unless one of its sessions has a stream.
func (s *Service) expire(p *proc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	timer := s.timers[p]
	if timer == nil {
		return // it was forgotten before
	}
	if least, streams := p.out.need(); streams && !s.closed {
		timer.Reset(max(retention, least))
		return
	}
	s.forget(p)
}

// forget forgets an ended process. Its streams continue. The caller must hold mu.
func (s *Service) forget(p *proc) {
	if timer := s.timers[p]; timer != nil {
		timer.Stop()
		delete(s.timers, p)
	}
	s.ended = slices.DeleteFunc(s.ended, func(other *proc) bool { return other == p })
	if s.byPID[p.pid] == p {
		delete(s.byPID, p.pid)
	}
}

// withSession returns the process that has a session, or nil.
func (s *Service) withSession(id string) *proc {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.byPID {
		if p.out.find(id) != nil {
			return p
		}
	}
	return nil
}

// find returns the process that sel names, running or remembered. Of several with
// one tag a running one wins, then the one with the largest pid.
func (s *Service) find(sel *pb.ProcessSelector) (*proc, error) {
	if by, ok := sel.GetSelector().(*pb.ProcessSelector_Session); ok {
		if p := s.withSession(by.Session); p != nil {
			return p, nil
		}
		return nil, errSessionForgotten
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch by := sel.GetSelector().(type) {
	case *pb.ProcessSelector_Pid:
		if p := s.byPID[int(by.Pid)]; p != nil {
			return p, nil
		}
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with pid %d not found", by.Pid))
	case *pb.ProcessSelector_Tag:
		if p := s.tagged(by.Tag); p != nil {
			return p, nil
		}
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with tag '%.64s' not found", by.Tag))
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the request names no process"))
	}
}

// tagged is find by tag. The caller must hold mu.
func (s *Service) tagged(tag string) *proc {
	var best *proc
	for _, p := range s.byPID {
		if p.tag == nil || *p.tag != tag {
			continue
		}
		if best == nil || (p.running() && !best.running()) || (p.running() == best.running() && p.pid > best.pid) {
			best = p
		}
	}
	return best
}

// findRunning is find for calls that need a running process.
func (s *Service) findRunning(sel *pb.ProcessSelector) (*proc, error) {
	p, err := s.find(sel)
	if err != nil {
		return nil, err
	}
	if !p.running() {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process %d has ended", p.pid))
	}
	return p, nil
}
