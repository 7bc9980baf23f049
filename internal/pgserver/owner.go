package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"wrenn.dev"
)

// owner is the user that runs the server; nil credentials mean the calling process's.
type owner struct{ cred *syscall.Credential }

func ownerOf(cfg Config) (*owner, error) {
	if os.Geteuid() != 0 {
		return &owner{}, nil
	}
	names := []string{"postgres", "nobody"}
	if cfg.User != "" {
		names = []string{cfg.User}
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &owner{cred: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return nil, wrenn.Errorf(wrenn.FailedPrecondition, "PostgreSQL does not run as root and there is no user %s", strings.Join(names, " or "))
}

// chown makes the owner own path and everything in it, unless path is already his.
func (o *owner) chown(path string) error {
	if o.cred == nil {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == o.cred.Uid {
		return nil
	}
	return filepath.WalkDir(path, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, int(o.cred.Uid), int(o.cred.Gid))
	})
}

// command returns a command that runs a program of PostgreSQL as the owner. It
// runs in a new session, so that a terminal's Ctrl-C reaches only the caller, and
// without the caller's PG* environment.
func (o *owner) command(cfg Config, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(cfg.Bin, name), args...) //nolint:noctx // run and Stop end it
	cmd.Dir = cfg.Dir
	cmd.Env = []string{"PATH=" + cfg.Bin + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: o.cred}
	return cmd
}

// run runs a program to its end; the error has its output.
func (o *owner) run(ctx context.Context, cfg Config, name string, args ...string) error {
	var output strings.Builder
	cmd := o.command(cfg, name, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, errors.Join(context.Cause(ctx), err), strings.TrimSpace(output.String()))
	}
	return nil
}

// supervise starts the server and waits for its end. It locks its thread, because
// Pdeathsig is sent when the thread that forked ends, see prctl(2).
func (s *Server) supervise(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	s.proc = cmd.Process
	started <- nil
	ctx, stop := context.WithCancel(context.Background())
	var keeper sync.WaitGroup
	keeper.Go(func() { s.log.keepSmall(ctx) })
	_ = cmd.Wait() // the reason is in the server's log
	stop()
	keeper.Wait()
	close(s.done)
}
