// Package testkit has the few helpers that tests of every side need: to stop on
// an unexpected error, to check an error's code, to wait for something that
// sends no signal, to cut a connection, and to find a program or an address that the machine may lack. Only tests and packages for tests import it.
package testkit

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
)

// Timeout bounds every wait of a test. It only matters to a test that fails, so
// it is long: what takes milliseconds takes minutes on a busy machine.
const Timeout = 3 * time.Minute

// interval is how often a condition is checked.
const interval = 5 * time.Millisecond

// Must ends the test unless err is nil.
func Must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// WantCode fails the test unless err has the code and its message contains all
// of text. The code "" stands for no error.
func WantCode(tb testing.TB, err error, code wrenn.Code, text ...string) {
	tb.Helper()
	if got := wrenn.CodeOf(err); got != code || !containsAll(err, text) {
		tb.Errorf("error = %v, code %q, want code %q%s", err, got, code, mention(text))
	}
}

// WantRPCCode fails the test unless err is an RPC's error with the code, whose
// message contains all of text. The code 0 stands for no error.
func WantRPCCode(tb testing.TB, err error, code connect.Code, text ...string) {
	tb.Helper()
	got := connect.CodeOf(err)
	if err == nil {
		got = 0
	}
	if got != code || !containsAll(err, text) {
		tb.Errorf("error = %v, code %d, want code %d%s", err, got, code, mention(text))
	}
}

func containsAll(err error, text []string) bool {
	for _, part := range text {
		if err != nil && !strings.Contains(err.Error(), part) {
			return false
		}
	}
	return true
}

func mention(text []string) string {
	if len(text) == 0 {
		return ""
	}
	return fmt.Sprintf(" and a message with %q", text)
}

// WaitUntil returns when the condition holds, and ends the test if it does not
// within Timeout. The condition completes the sentence "timed out waiting until".
func WaitUntil(tb testing.TB, condition string, holds func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(Timeout); !holds(); time.Sleep(interval) {
		if time.Now().After(deadline) {
			tb.Fatalf("timed out waiting until %s", condition)
		}
	}
}

// WaitNoError calls check until it returns nil, and ends the test with its last
// error if it does not within Timeout. It returns how long that took.
func WaitNoError(tb testing.TB, condition string, check func() error) time.Duration {
	tb.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > Timeout {
			tb.Fatalf("timed out waiting until %s: %v", condition, err)
		}
		time.Sleep(interval)
	}
}

// Program returns the path of a program that the machine may lack. Without it the
// test is skipped; with WRENN_CI=1 it fails, since nothing may be left out there.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	ci := os.Getenv("WRENN_CI") == "1" // asked first: go test caches a result for each value
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case ci:
		tb.Fatal(err)
	}
	tb.Skip(err)
	return ""
}

// FreeAddress returns a TCP address of this machine on which nothing listens now.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	Must(tb, err)
	Must(tb, l.Close())
	return l.Addr().String()
}
