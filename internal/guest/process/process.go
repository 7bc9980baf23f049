// Package process is the process service of envd: it starts programs in the
// guest, moves their input and output, and says how they ended. Files are
// the filesystem room's business, who may call the composer's.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"

	"wrenn/internal/guest/account"
	"wrenn/internal/guest/settings"
	pb "wrenn/proto/gen/envd/process"
	"wrenn/proto/gen/envd/process/processconnect"
)

// retention is how long the end of a process can be asked for after it came;
// the protocol says 30 s.
const retention = 30 * time.Second

var _ processconnect.ProcessHandler = (*Service)(nil)

// Config is what a Service needs. The zero values of the optional fields are usable.
type Config struct {
	Accounts account.DB
	Settings *settings.Settings // needed
	Log      *slog.Logger       // needed
	// Cgroups is the mount point of cgroup2; programs start in the cgroups
	// "user" and "pty" below it. Empty: in the agent's own.
	Cgroups string
	// Protect lowers the agent's OOM score, for the only agent of a guest.
	Protect bool
}

// Service implements processconnect.ProcessHandler. Close it.
type Service struct {
	accounts account.DB
	settings *settings.Settings
	log      *slog.Logger
	spawner  *spawner
	buffers  *sync.Pool
	work     sync.WaitGroup // one for each program, until nothing of it is left

	mu     sync.Mutex         // guards the following
	closed bool               // no new programs
	all    map[*proc]struct{} // whose supervise has not returned
	byPID  map[int]*proc      // running, and ended within retention
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
		all:      make(map[*proc]struct{}),
		byPID:    make(map[int]*proc),
		timers:   make(map[*proc]*time.Timer),
	}
}

// Close kills all programs and returns when nothing is left of them. Once is
// enough; RPCs that go on see their programs end.
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

// Hold returns when no program is just being started, and makes those wait that
// should be, until release is called, once. A program that is born into a
// frozen cgroup would never reach its exec, and with it the agent, which waits for that.
func (s *Service) Hold(ctx context.Context) (release func(), err error) {
	return s.spawner.hold(ctx)
}

// start runs a program. The subscriber gets all of its events.
func (s *Service) start(ctx context.Context, req *pb.StartRequest, user *account.User) (*proc, *subscriber, error) {
	l, err := resolve(req.GetProcess(), user, s.settings.Get())
	if err != nil {
		return nil, nil, err
	}
	if !s.begin() {
		return nil, nil, connect.NewError(connect.CodeUnavailable, errors.New("the agent is shutting down"))
	}
	p, err := s.spawn(ctx, l, req)
	if err != nil {
		s.work.Done()
		return nil, nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		p.expireAt(deadline)
	}
	sub := p.out.subscribe() // before anything is read or reaped: nothing is missed
	s.adopt(p)
	return p, sub, nil
}

// begin counts a program in that is about to start, unless Close came first.
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
	pid, pidfd, err := s.spawner.fork(ctx, l, std)
	if err != nil {
		std.near.close()
		return nil, launchError(l, err)
	}
	return newProc(pid, pidfd, req, std, s.buffers), nil
}

// adopt makes p known and lets it run.
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
		p.supervise(func() { s.retain(p) })
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, p)
	}()
}

// retain keeps an ended process for late calls of Connect.
func (s *Service) retain(p *proc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.timers[p] = time.AfterFunc(retention, func() { s.forget(p) })
}

func (s *Service) forget(p *proc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.timers, p)
	if s.byPID[p.pid] == p {
		delete(s.byPID, p.pid)
	}
}

// find returns the process that sel names, running or ended not long ago. Of
// several with one tag a running one wins, then the one with the largest pid.
func (s *Service) find(sel *pb.ProcessSelector) (*proc, error) {
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
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("no process named"))
	}
}

// tagged is find by tag; s.mu is held.
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

// findRunning is find for what an ended process cannot do.
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
