// Package logtest reads logs in tests.
package logtest

import (
	"bytes"
	"regexp"
	"sync"
	"testing"
	"time"
)

// timeout bounds the wait for a line on a busy machine.
const timeout = 5 * time.Minute

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

// String returns the whole log.
func (j *Journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// Until waits until the pattern matches the log, and returns the match and its
// groups. It ends the test after a timeout, or when an error comes from stop, which
// may be nil.
func (j *Journal) Until(tb testing.TB, pattern string, stop <-chan error) []string {
	tb.Helper()
	wanted := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(timeout); ; time.Sleep(5 * time.Millisecond) {
		if found := wanted.FindStringSubmatch(j.String()); found != nil {
			return found
		}
		select {
		case err := <-stop:
			tb.Fatalf("the program ended before %s was in the log: %v\n%s", pattern, err, j)
		default:
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s is not in the log:\n%s", pattern, j)
		}
	}
}
