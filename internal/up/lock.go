package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn"
)

// lockPoll is the pause between two looks at whether an earlier agent ended.
const lockPoll = 100 * time.Millisecond

// lock makes sure that one up at a time works with the state directory. The
// kernel lets go of it when this process ends, however it does.
func (m *machine) lock(context.Context) error {
	if err := os.MkdirAll(m.cfg.StateDir, 0o711); err != nil {
		return err
	}
	path := filepath.Join(m.cfg.StateDir, "up.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return wrenn.Errorf(wrenn.FailedPrecondition,
			"Wrenn runs already with %s%s: use that one, or stop it first; for another one beside it give --state, --run, --listen, --net-range and --net-prefix", m.cfg.StateDir, processIn(path))
	}
	m.undo.Add(func(context.Context) error { return f.Close() })
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	return err
}

// processIn names the process of a lock file, for people.
func processIn(path string) string {
	text, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return " (process " + pid + ")"
	}
	return ""
}

// awaitEarlierAgent returns when no agent works with the state directory: that
// of an up which was killed still takes its sandboxes away. One that does not
// end is left to the new agent to complain about.
func (m *machine) awaitEarlierAgent(ctx context.Context) error {
	f, err := os.Open(filepath.Join(m.cfg.StateDir, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // and with it the lock
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	late := time.After(agentGrace)
	for told := false; unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil; told = true {
		if !told {
			m.cfg.Say("waiting for the host agent of an earlier run to end")
		}
		select {
		case <-tick.C:
		case <-late:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
