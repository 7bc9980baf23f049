package process

import (
	"context"
	"log/slog"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/cgroup"
)

// What the kernel's OOM killer is told (proc_pid_oom_score_adj(5)): never the
// agent, since the sandbox cannot be reached without it.
const (
	agentScore   = "-1000"
	programScore = "100"
)

// spawner forks programs.
type spawner struct {
	log    *slog.Logger
	groups *cgroup.Tree // nil without cgroup2

	lock  chan struct{} // size 1; full while a caller forks, or keeps others from it
	score *os.File      // the agent's own oom_score_adj; nil when it may not be written
	rest  string        // what score is while no program is forked
}

// newSpawner prepares the cgroups below root and the agent's OOM score. What
// is not possible is logged and left out. Close it.
func newSpawner(root string, protect bool, log *slog.Logger) *spawner {
	s := &spawner{log: log, lock: make(chan struct{}, 1)}
	if root != "" {
		groups, err := cgroup.Open(root, protect, log)
		if err != nil {
			log.Warn("programs run in the agent's own cgroup", slog.Any("err", err))
		}
		s.groups = groups
	}
	if err := s.openScore(); err != nil {
		log.Warn("programs have the agent's OOM score", slog.Any("err", err))
		return s
	}
	if protect {
		s.protect()
	}
	return s
}

// openScore opens the agent's own score and sets it to what it is, to see that it may.
func (s *spawner) openScore() error {
	const path = "/proc/self/oom_score_adj"
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	s.rest = string(old)
	if _, err := file.WriteAt([]byte(s.rest), 0); err != nil {
		file.Close()
		return err
	}
	s.score = file
	return nil
}

func (s *spawner) protect() {
	if _, err := s.score.WriteAt([]byte(agentScore), 0); err != nil {
		s.log.Warn("the OOM killer may kill the agent", slog.Any("err", err))
		return
	}
	s.rest = agentScore
}

// close kills what programs have left, and gives back what newSpawner took.
func (s *spawner) close() {
	if s.groups != nil {
		s.groups.Close()
	}
	if s.score != nil {
		s.score.Close()
	}
}

// child is a program that was forked.
type child struct {
	pid   int
	pidfd int           // the caller's
	group *cgroup.Group // nil: it runs in the agent's own; the caller releases it
}

// fork starts a program as the leader of a new session, with all of its user's
// credentials, and returns when execve(2) has succeeded. The caller reaps it. It
// waits for the lock until ctx ends.
func (s *spawner) fork(ctx context.Context, l *launch, std *stdio) (child, error) {
	unlock, err := s.hold(ctx)
	if err != nil {
		return child{}, err
	}
	defer unlock()
	c := child{pidfd: -1, group: s.acquire(l.user)}
	attr := &syscall.SysProcAttr{
		Setsid:     true,
		Setctty:    std.tty(),
		Ctty:       0,
		Credential: credentials(l.user),
		PidFD:      &c.pidfd,
	}
	if c.group != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, c.group.FD()
	}
	c.pid, err = s.exec(l, attr, std)
	if err != nil {
		s.release(c.group)
		return child{}, err
	}
	// For the runtime's poller. It cannot fail on a descriptor that is open:
	// clone3(2) gives one since Linux 5.4, which is older than any kernel here.
	_ = unix.SetNonblock(c.pidfd, true)
	return c, nil
}

// acquire returns a group for a program, which its user may divide; nil when
// there can be none: the guest's root may have removed what it would be in.
func (s *spawner) acquire(user *account.User) *cgroup.Group {
	if s.groups == nil {
		return nil
	}
	group, err := s.groups.Acquire()
	if err != nil {
		s.log.Warn("the program runs in the agent's own cgroup", slog.Any("err", err))
		return nil
	}
	if credentials(user) != nil {
		if err := group.Delegate(user.UID, user.GID); err != nil {
			s.log.Warn("the program's user cannot divide its cgroup", slog.Any("err", err))
		}
	}
	return group
}

// release gives a group back; nil is allowed.
func (s *spawner) release(group *cgroup.Group) {
	if group != nil {
		s.groups.Release(group)
	}
}

// hold returns when no fork is under way, and lets none begin until the caller
// calls release, once.
func (s *spawner) hold(ctx context.Context) (release func(), err error) {
	select {
	case s.lock <- struct{}{}:
		return func() { <-s.lock }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// exec forks with the OOM score that programs have. The caller holds the lock. A score is
// inherited by fork(2), so the agent takes it on for that moment: writing it afterwards would miss
// what the program itself has forked by then.
func (s *spawner) exec(l *launch, attr *syscall.SysProcAttr, std *stdio) (int, error) {
	s.setScore(programScore)
	defer s.setScore(s.rest)
	return syscall.ForkExec(l.path, l.argv, &syscall.ProcAttr{Dir: l.dir, Env: l.env, Files: std.fds(), Sys: attr})
}

func (s *spawner) setScore(score string) {
	if s.score == nil {
		return
	}
	if _, err := s.score.WriteAt([]byte(score), 0); err != nil {
		s.log.Warn("cannot set the OOM score", slog.String("score", score), slog.Any("err", err))
	}
}

// credentials are nil for an agent that is not root, which cannot change its user.
func credentials(u *account.User) *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
}
