package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/filelock"
)

// lock makes sure that only one up at a time uses the state directory. The kernel
// releases the lock when this process ends for any reason.
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

// processIn returns " (process PID)" for the process that a lock file names, or "".
func processIn(path string) string {
	text, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return " (process " + pid + ")"
	}
	return ""
}

// awaitEarlierAgent waits until no agent uses the state directory: when an earlier
// up was killed, its agent may still be stopping its sandboxes. It returns nil
// when that agent does not end in time: the new agent then reports the conflict.
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
