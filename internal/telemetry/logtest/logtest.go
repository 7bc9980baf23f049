// Package logtest reads logs in tests.
package logtest

import (
	"bytes"
	"regexp"
	"sync"
	"testing"
	"time"
)

// patience bounds the wait for a line, on a busy machine too.
const patience = 5 * time.Minute

// Journal is a log that can be read while it is written. The zero value is empty.
type Journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (j *Journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

// String is all that was written.
func (j *Journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// Until returns what the pattern finds in the log, and its groups, as soon as
// it does; the test fails when it never does, or when stop, which may be nil,
// yields why it never will.
func (j *Journal) Until(tb testing.TB, pattern string, stop <-chan error) []string {
	tb.Helper()
	wanted := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if found := wanted.FindStringSubmatch(j.String()); found != nil {
			return found
		}
		select {
		case err := <-stop:
			tb.Fatalf("before %s came into the log it was over: %v\n%s", pattern, err, j)
		default:
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s is not in the log:\n%s", pattern, j)
		}
	}
}
