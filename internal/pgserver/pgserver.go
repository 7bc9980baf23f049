// Package pgserver runs a private PostgreSQL server with the programs of the
// distribution: as an unprivileged user, and only on a Unix socket. A user who can
// enter the socket's directory is the server's administrator; other users cannot
// reach it.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
)

const (
	admin        = "wrenn" // the server's superuser
	readyPoll    = 20 * time.Millisecond
	initTimeout  = 5 * time.Minute // initdb writes 40 MB, which takes long on a busy machine
	readyTimeout = 2 * time.Minute // includes the recovery after a crash
	stopTimeout  = 30 * time.Second
	quitTimeout  = 10 * time.Second
	endPoll      = 20 * time.Millisecond
	maxSocket    = 107 // bytes of a Unix socket's path, see unix(7)
)

// Config configures a server. Only Dir is required.
type Config struct {
	// Dir is for the data, the log and the socket; Start creates it. The user that
	// runs the server must be able to reach it. One server at a time may use it.
	Dir string
	// SocketDir is for the socket, if Dir's path is too long for one; default Dir/socket.
	SocketDir string
	// User runs the server if the caller is root, because PostgreSQL does not run
	// as root; default the user "postgres", else "nobody". Other callers run the
	// server themselves.
	User string
	// Bin is the directory of PostgreSQL's programs; default: what Find finds.
	Bin string
	// Volatile makes the server fast and unsafe: it never syncs. For tests.
	Volatile bool
	// DieWithParent ends the server when this process ends, for any reason.
	DieWithParent bool
}

func (c Config) data() string { return filepath.Join(c.Dir, "data") }

// Server is a running server.
type Server struct {
	cfg  Config
	proc *os.Process
	log  *serverLog
	done chan struct{} // closed when the process has ended
	stop sync.Mutex    // one Stop at a time
}

// Start starts the server, makes its data the first time, and returns when it
// answers. It first stops a server that an earlier process left on the same data.
// The caller must Stop the server; the end of ctx does not stop it.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	owner, err := ownerOf(cfg)
	if err != nil {
		return nil, err
	}
	if err := prepare(&cfg, owner); err != nil {
		return nil, err
	}
	if cfg.Bin, err = programs(ctx, cfg); err != nil {
		return nil, err
	}
	if err := initialize(ctx, cfg, owner); err != nil {
		return nil, err
	}
	if err := stopLeftover(ctx, cfg, owner); err != nil {
		return nil, err
	}
	s, err := launch(cfg, owner)
	if err != nil {
		return nil, err
	}
	if err := s.waitReady(ctx); err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return nil, errors.Join(err, s.Stop(stopCtx))
	}
	return s, nil
}

// Standby makes the data of a server that follows another one by streaming replication,
// unless it has data. The caller starts it by Start with the same configuration. For tests.
func Standby(ctx context.Context, cfg Config, primary *Server) error {
	owner, err := ownerOf(cfg)
	if err != nil {
		return err
	}
	if err := prepare(&cfg, owner); err != nil {
		return err
	}
	if cfg.Bin, err = programs(ctx, cfg); err != nil {
		return err
	}
	return owner.run(ctx, cfg, "pg_basebackup", "-D", cfg.data(), "-h", primary.cfg.SocketDir, "-U", admin, "-R", "-X", "stream", "-c", "fast", "--no-sync")
}

// prepare makes the directories.
func prepare(cfg *Config, owner *owner) error {
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return err
	}
	if cfg.SocketDir == "" {
		cfg.SocketDir = filepath.Join(cfg.Dir, "socket")
	}
	if n := len(filepath.Join(cfg.SocketDir, ".s.PGSQL.5432.lock")); n > maxSocket {
		return wrenn.Errorf(wrenn.Invalid, "the database's socket would have a path of %d bytes, the system allows %d: choose a shorter directory than %s", n, maxSocket, cfg.SocketDir)
	}
	for _, dir := range []string{cfg.Dir, cfg.SocketDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := owner.chown(dir); err != nil {
			return err
		}
	}
	return nil
}

// initialize makes the data, which appears only when it is complete.
func initialize(ctx context.Context, cfg Config, owner *owner) error {
	if _, err := os.Stat(filepath.Join(cfg.data(), "PG_VERSION")); err == nil {
		return nil
	}
	staged := cfg.data() + ".new"
	if err := os.RemoveAll(staged); err != nil {
		return err
	}
	args := []string{"-D", staged, "--username=" + admin, "--auth=trust", "--encoding=UTF8", "--locale=C"}
	if cfg.Volatile {
		args = append(args, "--no-sync")
	}
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	if err := owner.run(ctx, cfg, "initdb", args...); err != nil {
		return fmt.Errorf("make the database's files in %s: %w", cfg.Dir, err)
	}
	return os.Rename(staged, cfg.data())
}

// stopLeftover stops the server that a killed process left behind. The pid in the
// file may be another process's by now, so it checks the working directory, which
// for a postmaster is its data.
func stopLeftover(ctx context.Context, cfg Config, owner *owner) error {
	content, err := os.ReadFile(filepath.Join(cfg.data(), "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid := filepath.Base(strings.TrimSpace(first))
	if !worksIn(pid, cfg.data()) {
		return nil // PostgreSQL removes the file itself
	}
	err = owner.run(ctx, cfg, "pg_ctl", "stop", "-D", cfg.data(), "-m", "fast", "-w")
	if err == nil || awaitEnd(ctx, pid, cfg) == nil {
		return nil // pg_ctl fails if the server was stopping already, because its parent was killed
	}
	return fmt.Errorf("stop the database server that an earlier run left: %w", err)
}

// awaitEnd waits until the process no longer works in the server's data.
func awaitEnd(ctx context.Context, pid string, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	tick := time.NewTicker(endPoll)
	defer tick.Stop()
	for worksIn(pid, cfg.data()) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// worksIn reports whether the process exists and dir is its working directory.
func worksIn(pid, dir string) bool {
	cwd, err := os.Readlink(filepath.Join("/proc", pid, "cwd"))
	return err == nil && cwd == dir
}

func launch(cfg Config, owner *owner) (*Server, error) {
	log, err := openLog(cfg.Dir, owner)
	if err != nil {
		return nil, err
	}
	args := []string{"-D", cfg.data(), "-k", cfg.SocketDir, "-c", "listen_addresses="}
	if cfg.Volatile {
		args = append(args, "-F", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
	}
	cmd := owner.command(cfg, "postgres", args...)
	cmd.Stdout, cmd.Stderr = log.file, log.file
	if cfg.DieWithParent {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT // an immediate shutdown of the server and its children
	}
	s := &Server{cfg: cfg, log: log, done: make(chan struct{})}
	started := make(chan error)
	go s.supervise(cmd, started)
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start the database server: %w", err), log.close())
	}
	return s, nil
}

// Done returns a channel that is closed when the server has ended, by Stop or not.
func (s *Server) Done() <-chan struct{} { return s.done }

// URL returns the URL of a database of the server, for pgx and libpq.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", Path: "/" + database}
	u.RawQuery = url.Values{"host": {s.cfg.SocketDir}, "user": {admin}, "sslmode": {"disable"}}.Encode()
	return u.String()
}

// EnsureDatabase creates a database unless it exists.
func (s *Server) EnsureDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // all queries have been answered
	var found bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&found); err != nil || found {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	return err
}

// waitReady returns when the server answers. The error has the end of the
// server's log.
func (s *Server) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("the database server does not answer"))
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-s.done:
			return fmt.Errorf("the database server ended at once: %s", s.log.tail())
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), s.log.tail())
		case <-tick.C:
		}
	}
}

// Kill ends the server as a crash of its machine does, and returns when it has ended. Stop
// is still needed. For tests.
func (s *Server) Kill() {
	_ = s.proc.Kill() // fails if the server has ended
	<-s.done
}

// Stop disconnects clients, writes a checkpoint and returns when the server has
// ended. If ctx ends first, the server stops without the checkpoint, which costs a
// recovery at the next start but no data. Twice is allowed.
func (s *Server) Stop(ctx context.Context) error {
	s.stop.Lock()
	defer s.stop.Unlock()
	_ = s.proc.Signal(os.Interrupt) // fails if the server has ended, which done shows
	if s.ended(ctx) {
		return s.log.close()
	}
	for _, harder := range []os.Signal{syscall.SIGQUIT, os.Kill} {
		_ = s.proc.Signal(harder)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
		ended := s.ended(ctx)
		cancel()
		if ended {
			return s.log.close()
		}
	}
	return errors.New("the database server does not end")
}

// ended waits until the server or ctx ends, and reports whether the server did.
func (s *Server) ended(ctx context.Context) bool {
	select {
	case <-s.done:
		return true
	case <-ctx.Done():
		return false
	}
}
