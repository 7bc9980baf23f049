package sandbox

import (
	"sync"

	"wrenn.dev"
	"wrenn.dev/internal/cmutex"
)

// templateFetches are the templates that are being fetched from the snapshot store.
type templateFetches struct {
	one cmutex.Mutex // one at a time: the bandwidth is the same for one or many

	mu    sync.Mutex // guards calls
	calls map[wrenn.BuildID]*templateFetch
}

// templateFetch is the fetch of one template, for which callers wait.
type templateFetch struct {
	sharedCall
	callers int
}

func (f *templateFetches) enter(id wrenn.BuildID) *templateFetch {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = map[wrenn.BuildID]*templateFetch{}
	}
	call := f.calls[id]
	if call == nil {
		call = &templateFetch{}
		f.calls[id] = call
	}
	call.callers++
	return call
}

func (f *templateFetches) leave(id wrenn.BuildID, call *templateFetch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if call.callers--; call.callers == 0 {
		delete(f.calls, id)
	}
}
