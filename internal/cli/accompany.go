package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"wrenn.dev/internal/cli/up"
)

// stopGrace is how long a command of up may take to end after SIGTERM.
const stopGrace = 10 * time.Second

// destroyTimeout bounds destroying the sandboxes of a command that ended.
const destroyTimeout = time.Minute

// accompany runs a command on this machine with a key for the running server and waits until it
// ends. Then it destroys the sandboxes that the command created, and returns the command's exit
// code as an error. When ctx ends, it ends the command.
func (s *session) accompany(ctx context.Context, r *up.Running, argv []string) error {
	loan, err := r.Lend(ctx, "wrenn up -- "+argv[0])
	if err != nil {
		return fmt.Errorf("make an API key: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
		defer cancel()
		if err := loan.Return(ctx); err != nil {
			fmt.Fprintf(s.Err, "%v\nthe next start tries again\n", err)
		}
	}()
	fmt.Fprintf(s.Err, "Wrenn serves at %s (documentation: %s/docs)\n", s.paint(s.Err, green, r.URL), r.URL)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "WRENN_API_URL="+r.URL, "WRENN_API_KEY="+loan.Secret)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, s.Out, s.Err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	// The command stays in this process group, so that it can use the terminal and
	// gets Ctrl-C. This goroutine keeps its thread: Pdeathsig is sent when the
	// thread that forked ends, see prctl(2).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	err = cmd.Run()
	if ctx.Err() != nil {
		return exitCode(codeSignal + int(syscall.SIGINT))
	}
	return ofProcess(argv[0], err)
}

// ofProcess returns the error with which this program ends after cmd.Run returned err.
func ofProcess(name string, err error) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return nil
	case !ok:
		return fmt.Errorf("run %s: %w", name, err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitCode(codeSignal + int(status.Signal()))
	}
	return exitCode(exit.ExitCode())
}
