package filesystem

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
)

func stacks() string {
	buffer := make([]byte, 1<<20)
	return string(buffer[:runtime.Stack(buffer, true)])
}

// wantNoGoroutineIn waits until no goroutine is in a function of that name.
// Tests that call it do not run beside others.
func wantNoGoroutineIn(t *testing.T, function string) {
	t.Helper()
	testkit.WaitUntil(t, "no goroutine is in "+function, func() bool { return !strings.Contains(stacks(), function) })
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
