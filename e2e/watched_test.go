//go:build root && vm

package e2e

import (
	"bytes"
	"strings"
	"sync"
	"time"
)

// watched keeps what is written to it and lets tests wait for a text.
type watched struct {
	mu      sync.Mutex // guards all below
	buf     bytes.Buffer
	changed chan struct{} // closed and replaced at every write
}

func newWatched() *watched { return &watched{changed: make(chan struct{})} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
	return w.buf.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// wait returns true once text was written, and false when that takes longer than limit.
func (w *watched) wait(text string, limit time.Duration) bool {
	deadline := time.After(limit)
	for {
		w.mu.Lock()
		there, changed := strings.Contains(w.buf.String(), text), w.changed
		w.mu.Unlock()
		if there {
			return true
		}
		select {
		case <-changed:
		case <-deadline:
			return false
		}
	}
}
