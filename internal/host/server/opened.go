package server

import (
	"sync"

	"wrenn.dev"
)

// maxOpen bounds what one sandbox has open: commands that a caller waits for or
// follows, transfers of files, followers of its console. Each has goroutines and
// buffers on this host, and a stream on the control plane's connection.
const maxOpen = 512

// opened counts what each sandbox has open. The zero value is ready.
type opened struct {
	mu     sync.Mutex // guards counts
	counts map[wrenn.SandboxID]int
}

// add counts one more, until done is called: Exhausted when that is too many.
func (o *opened) add(id wrenn.SandboxID) (done func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts[id] >= maxOpen {
		return nil, wrenn.Errorf(wrenn.Exhausted, "sandbox %s has %d commands, transfers and followers of its console open, which is the limit: end some", id, maxOpen)
	}
	if o.counts == nil {
		o.counts = map[wrenn.SandboxID]int{}
	}
	o.counts[id]++
	return sync.OnceFunc(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.counts[id]--; o.counts[id] == 0 {
			delete(o.counts, id)
		}
	}), nil
}
