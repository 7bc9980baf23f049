package filesystem

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// poll asks until it is true, and fails the test when it never is.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after %v", what, patience)
		}
		time.Sleep(5 * time.Millisecond) // nothing signals it
	}
}

func stacks() string {
	buffer := make([]byte, 1<<20)
	return string(buffer[:runtime.Stack(buffer, true)])
}

// wantNoGoroutineIn waits until no goroutine is in a function of that name.
// Tests that call it do not run beside others.
func wantNoGoroutineIn(t *testing.T, function string) {
	t.Helper()
	poll(t, "no goroutine in "+function, func() bool { return !strings.Contains(stacks(), function) })
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
