package cgroup

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"
)

// Group is the cgroup of one command, until the command has ended and nothing
// of it is left. Its methods are safe for concurrent use, and do nothing after that.
type Group struct {
	fd       int           // of the directory
	oomKills uint64        // that had happened before
	empty    chan struct{} // closed by retire

	mu  sync.Mutex // guards dir
	dir *dir       // nil after retire
}

// FD is the directory's descriptor, for clone3(2). It is valid until Release.
func (g *Group) FD() int { return g.fd }

// retire returns the directory, which is another command's from now on.
func (g *Group) retire() *dir {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.dir
	g.dir = nil
	close(g.empty)
	return d
}

// Kill sends SIGKILL to everything in the group and below it.
func (g *Group) Kill() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dir == nil {
		return nil
	}
	return g.dir.kill()
}

// Signal sends a signal to every process in the group and below it, but those
// in the process group except.
func (g *Group) Signal(signal unix.Signal, except int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dir == nil {
		return nil
	}
	return g.dir.signal(signal, except)
}

// OutOfMemory reports whether the kernel has killed a process of the group for
// want of memory.
func (g *Group) OutOfMemory() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dir != nil && g.dir.readOOMKills() > g.oomKills
}

// WaitEmpty returns when the group was released and no process is left in it,
// or with ctx's cause.
func (g *Group) WaitEmpty(ctx context.Context) error {
	select {
	case <-g.empty:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
