package vmfake

import (
	"context"
	"errors"
	"os"
	"strings"

	"wrenn/internal/vm"
)

// Guest is what answers in a network namespace: the machine that is in it at
// the moment of each call. It waits while that is paused.
type Guest struct {
	host      *Host
	namespace string
}

// Guest returns the guest of a namespace, whether or not one is there yet.
func (h *Host) Guest(namespace string) *Guest { return &Guest{h, namespace} }

var errNoGuest = errors.New("no guest answers")

// with calls fn while the guest's machine runs, and cannot stop running.
func (g *Guest) with(ctx context.Context, fn func(*machine) error) error {
	m := g.host.in(g.namespace)
	if m == nil {
		return errNoGuest
	}
	for {
		m.mu.Lock()
		awake := m.awake
		if m.gone() != nil {
			m.mu.Unlock()
			return errNoGuest
		}
		if m.running() {
			defer m.mu.Unlock()
			return fn(m)
		}
		m.mu.Unlock()
		select {
		case <-awake:
		case <-m.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// WaitReady returns at once when there is a guest: it has no boot.
func (g *Guest) WaitReady(ctx context.Context, _ func(context.Context) error) error {
	return g.with(ctx, func(*machine) error { return nil })
}

// Fill keeps b under a name in the guest's memory.
func (g *Guest) Fill(ctx context.Context, name string, b byte) error {
	return g.with(ctx, func(m *machine) error {
		m.memory.Fills[name] = b
		return nil
	})
}

// Filled says whether b is kept under the name.
func (g *Guest) Filled(ctx context.Context, name string, b byte) (ok bool, err error) {
	err = g.with(ctx, func(m *machine) error {
		have, found := m.memory.Fills[name]
		ok = found && have == b
		return nil
	})
	return ok, err
}

// WriteDisk makes text the content of the first disk.
func (g *Guest) WriteDisk(ctx context.Context, text string) error {
	return g.with(ctx, func(m *machine) error { return os.WriteFile(m.spec.Disks[0].Path, []byte(text), 0o600) })
}

// ReadDisk returns the content of the first disk.
func (g *Guest) ReadDisk(ctx context.Context) (text string, err error) {
	err = g.with(ctx, func(m *machine) error {
		data, err := os.ReadFile(m.spec.Disks[0].Path)
		text = strings.TrimRight(string(data), "\x00")
		return err
	})
	return text, err
}

// StartCounter makes Counter count.
func (g *Guest) StartCounter(ctx context.Context) error {
	return g.with(ctx, func(m *machine) error {
		m.memory.Counting = true
		return nil
	})
}

// Counter is one more each time it is asked.
func (g *Guest) Counter(ctx context.Context) (n int, err error) {
	err = g.with(ctx, func(m *machine) error {
		if m.memory.Counting {
			m.memory.Count++
		}
		n = m.memory.Count
		return nil
	})
	return n, err
}

// BusyTimer has no timer to try.
func (g *Guest) BusyTimer(ctx context.Context) error {
	return g.with(ctx, func(*machine) error { return nil })
}

// Print prints n bytes.
func (g *Guest) Print(ctx context.Context, n int) error {
	return g.with(ctx, func(m *machine) error {
		m.print(strings.Repeat("x", n))
		return nil
	})
}

// Flood prints more than is kept.
func (g *Guest) Flood(ctx context.Context) error { return g.Print(ctx, 2*maxConsole) }

// PowerOff ends the machine as a guest does.
func (g *Guest) PowerOff(ctx context.Context) error { return g.end(ctx, nil) }

// Panic ends the machine with an ExitError.
func (g *Guest) Panic(ctx context.Context) error {
	return g.end(ctx, &vm.ExitError{Driver: Name, Reason: "guest panicked"})
}

func (g *Guest) end(ctx context.Context, reason error) error {
	var found *machine
	err := g.with(ctx, func(m *machine) error {
		found = m
		return nil
	})
	if err == nil {
		found.end(reason)
	}
	return err
}
