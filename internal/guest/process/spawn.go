package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"wrenn/internal/guest/account"
)

// What the kernel's OOM killer is told (proc_pid_oom_score_adj(5)): the agent
// is spared to the last, since nobody can reach the sandbox without it.
const (
	agentScore   = "-900"
	programScore = "100"
)

// spawner forks programs.
type spawner struct {
	log     *slog.Logger
	cgroups map[string]*os.File // by name; empty when there is no cgroup2

	turn  chan struct{} // holds one: who is between a fork and its exec, or wants nobody to be
	score *os.File      // the agent's own oom_score_adj; nil when it may not be written
	rest  string        // what score is while no program is forked
}

// Names of the cgroups that programs start in.
const (
	pipeGroup = "user"
	ptyGroup  = "pty"
)

// newSpawner prepares the cgroups below root and the agent's OOM score. What
// is not possible is logged and left out. Close it.
func newSpawner(root string, protect bool, log *slog.Logger) *spawner {
	s := &spawner{log: log, cgroups: make(map[string]*os.File), turn: make(chan struct{}, 1)}
	if root != "" {
		if err := s.makeCgroups(root); err != nil {
			log.Warn("programs run in the agent's own cgroup", slog.Any("error", err))
		}
	}
	if err := s.openScore(); err != nil {
		log.Warn("programs have the agent's OOM score", slog.Any("error", err))
		return s
	}
	if protect {
		s.protect()
	}
	return s
}

func (s *spawner) makeCgroups(root string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return fmt.Errorf("cgroup root %s: %w", root, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is not a cgroup2 file system", root)
	}
	for _, name := range []string{pipeGroup, ptyGroup} {
		path := filepath.Join(root, name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		s.cgroups[name] = dir
	}
	return nil
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
		s.log.Warn("the agent is not spared by the OOM killer", slog.Any("error", err))
		return
	}
	s.rest = agentScore
}

// close gives back what newSpawner took, except the cgroups' directories.
func (s *spawner) close() {
	for _, dir := range s.cgroups {
		dir.Close()
	}
	if s.score != nil {
		s.score.Close()
	}
}

// fork starts a program as the leader of a session of its own, with all of its
// user's credentials, and returns when it was executed. The caller owns the pidfd
// and reaps. While the turn is held it waits, until ctx ends.
func (s *spawner) fork(ctx context.Context, l *launch, std *stdio) (pid, pidfd int, err error) {
	release, err := s.hold(ctx)
	if err != nil {
		return 0, -1, err
	}
	defer release()
	attr := &syscall.SysProcAttr{
		Setsid:     true,
		Setctty:    std.tty(),
		Ctty:       0,
		Credential: credentials(l.user),
		PidFD:      &pidfd,
	}
	group := pipeGroup
	if std.tty() {
		group = ptyGroup
	}
	if dir := s.cgroups[group]; dir != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	pid, err = s.exec(l, attr, std)
	if attr.UseCgroupFD && (errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOENT)) {
		// The guest's root may have removed the cgroup. ENOENT is also what exec
		// says of a program that is not there: then it will say so again.
		attr.UseCgroupFD = false
		if pid, err = s.exec(l, attr, std); err == nil {
			s.log.Warn("the cgroup was removed; the program runs in the agent's own", slog.String("cgroup", group))
		}
	}
	if err != nil {
		return 0, -1, err
	}
	// For the runtime's poller. It cannot fail on a descriptor that is open:
	// clone3(2) gives one since Linux 5.4, which is older than any kernel here.
	_ = unix.SetNonblock(pidfd, true)
	return pid, pidfd, nil
}

// hold returns when no fork is under way, and lets none begin until release
// is called, once.
func (s *spawner) hold(ctx context.Context) (release func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// exec forks with the OOM score that programs have. The caller has the turn. A score is inherited by
// fork(2), so the agent takes it on for that moment: writing it afterwards would miss what the
// program itself has forked by then.
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
		s.log.Warn("OOM score", slog.String("score", score), slog.Any("error", err))
	}
}

// credentials are nil for an agent that is not root: it can be nobody else.
func credentials(u *account.User) *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
}
