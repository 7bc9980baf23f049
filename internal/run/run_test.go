package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

type exit int

func (e exit) Error() string { return "" }
func (e exit) ExitCode() int { return int(e) }

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name   string
		err    error
		code   int
		stderr string
	}{
		{"done", nil, 0, ""},
		{"failed", errors.New("no space"), 1, "no space\n"},
		{"control characters", errors.New("read /x: \x1b[2J\u009b2J\x07\nTry again"), 1, "read /x: \ufffd[2J\ufffd2J\ufffd\nTry again\n"},
		{"usage", fmt.Errorf("%w: no such flag", ErrUsage), 2, "usage: no such flag\n"},
		{"own code, silent", exit(7), 7, ""},
		{"own code, wrapped", fmt.Errorf("ran: %w", exit(7)), 7, "ran: \n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stderr bytes.Buffer
			got := Run(t.Context(), func(context.Context, []string) error { return tc.err }, nil, &stderr)
			if got != tc.code || stderr.String() != tc.stderr {
				t.Errorf("Run() = %d, stderr %q; want %d, %q", got, stderr.String(), tc.code, tc.stderr)
			}
		})
	}
}

// TestMain makes the test binary a program that ends with the code 3 on a
// signal, or ignores it if it is to be stubborn. With unread output it ends with 3
// when it cannot write.
func TestMain(m *testing.M) {
	how := os.Getenv("WRENN_RUN_TEST")
	if how == "unread" {
		Main(func(context.Context, []string) error {
			SurviveBrokenPipes()
			_, _ = io.ReadAll(os.Stdin) // until the reader has gone
			if _, err := os.Stdout.WriteString("unread"); err != nil {
				return exit(3)
			}
			return nil
		})
	}
	if how != "" {
		Main(func(ctx context.Context, _ []string) error {
			fmt.Fprintln(os.Stdout, "ready")
			<-ctx.Done()
			if how == "stubborn" {
				fmt.Fprintln(os.Stdout, "first")
				select {}
			}
			return exit(3)
		})
	}
	m.Run()
}

func program(t *testing.T, how string) (*exec.Cmd, *bytes.Buffer, func(string)) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "WRENN_RUN_TEST="+how)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, stderr, func(want string) {
		t.Helper()
		line := make([]byte, len(want)+1)
		if _, err := out.Read(line); err != nil || strings.TrimSpace(string(line)) != want {
			t.Fatalf("program said %q (%v), want %q", line, err, want)
		}
	}
}

func TestSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, stderr, expect := program(t, "polite")
		expect("ready")
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 3 || stderr.Len() > 0 {
			t.Errorf("after %v: exit code %d, stderr %q; want 3 and nothing", sig, code, stderr)
		}
	}
}

func TestSecondSignal(t *testing.T) {
	cmd, _, expect := program(t, "stubborn")
	expect("ready")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	expect("first")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v, want SIGTERM", cmd.ProcessState)
	}
}
