package rootfs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"wrenn.dev/internal/testkit"
)

// mmdebstrap leaves signals to its children, so they must get them.
func TestRunEndsGrandchildrenToo(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupt := errors.New("interrupt")
	file := filepath.Join(t.TempDir(), "pid")
	done := make(chan error, 1)
	go func() {
		done <- runProgress(ctx, "sh", "-c", `trap : TERM; sh -c 'echo $$ >"$0.new"; mv "$0.new" "$0"; exec sleep 600' "$0" & wait; wait`, file)
	}()
	pid := waitForPID(t, file)
	cancel(interrupt)
	if err := <-done; !errors.Is(err, interrupt) {
		t.Errorf("progress() = %v", err)
	}
	testkit.WaitUntil(t, "the grandchild has ended", func() bool { return syscall.Kill(pid, 0) != nil })
}

func waitForPID(t *testing.T, file string) int {
	t.Helper()
	var data []byte
	testkit.WaitNoError(t, "the program has started", func() (err error) {
		data, err = os.ReadFile(file)
		return err
	})
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	testkit.Must(t, err)
	return pid
}

// runProgress runs a program as mmdebstrap is run.
func runProgress(ctx context.Context, name string, args ...string) error {
	cmd, err := command(ctx, "", name, args...)
	if err != nil {
		return err
	}
	return progress(ctx, cmd, io.Discard)
}

func TestRunErrorHasTheOutput(t *testing.T) {
	if err := runProgress(t.Context(), "sh", "-c", "echo out; echo no good >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "no good") {
		t.Errorf("progress() = %v", err)
	}
}
