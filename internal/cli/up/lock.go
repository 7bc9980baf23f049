package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"wrenn"
	"wrenn/internal/filelock"
)

// lock makes sure that one up at a time uses the state directory. The kernel
// unlocks it when this process ends, however it does.
func (m *machine) lock(context.Context) error {
	if err := os.MkdirAll(m.cfg.StateDir, 0o711); err != nil {
		return err
	}
	path := filepath.Join(m.cfg.StateDir, "up.lock")
	f, err := filelock.Open(path)
	if errors.Is(err, filelock.ErrLocked) {
		return wrenn.Errorf(wrenn.FailedPrecondition,
			"Wrenn runs already with %s%s: use that one, or stop it first; for another one beside it give --state, --run, --listen, --net-range and --net-prefix", m.cfg.StateDir, processIn(path))
	}
	if err != nil {
		return err
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
	waitCtx, cancel := context.WithTimeout(ctx, agentGrace)
	defer cancel()
	err = filelock.Lock(waitCtx, f, func() { m.cfg.Say("waiting for the host agent of an earlier run to end") })
	if ctx.Err() == nil && waitCtx.Err() != nil {
		return nil
	}
	return err
}
