package vmfake

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"wrenn"
	"wrenn/internal/vm"
)

// maxConsole bounds what a guest can make us keep.
const maxConsole = 4 << 10

type machine struct {
	host *Host
	ref  vm.Ref
	spec vm.Spec
	done chan struct{} // closed when it is gone

	mu      sync.Mutex // guards the following
	memory  memory
	awake   chan struct{} // closed while the vCPUs run
	exitErr error         // valid when done is closed
	console []byte
}

var _ interface {
	vm.Machine
	vm.ConsoleReader
} = (*machine)(nil)

func (m *machine) Ref() vm.Ref { return m.ref }

func (m *machine) Console() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.console)
}

// print needs m.mu.
func (m *machine) print(line string) {
	m.console = append(m.console, line...)
	m.console = bytes.Clone(m.console[max(0, len(m.console)-maxConsole):])
}

// end makes the machine be gone for the reason err, if it is not yet.
func (m *machine) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone() != nil {
		return
	}
	if exit, ok := errors.AsType[*vm.ExitError](err); ok {
		exit.Console = string(m.console)
	}
	m.exitErr = err
	m.host.mu.Lock()
	delete(m.host.alive, m.ref.PID)
	m.host.mu.Unlock()
	close(m.done)
}

// gone is nil while the machine is there. It needs m.mu.
func (m *machine) gone() error {
	select {
	case <-m.done:
	default:
		return nil
	}
	exit, ok := errors.AsType[*vm.ExitError](m.exitErr)
	if !ok {
		exit = &vm.ExitError{Driver: Name, Reason: "stopped"}
	}
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the machine does not run any more", Err: exit}
}

// running needs m.mu.
func (m *machine) running() bool {
	select {
	case <-m.awake:
		return true
	default:
		return false
	}
}

func (m *machine) Pause(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone() == nil && m.running() {
		m.awake = make(chan struct{})
	}
	return m.gone()
}

func (m *machine) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone() == nil && !m.running() {
		close(m.awake)
	}
	return m.gone()
}

func (m *machine) Snapshot(_ context.Context, dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.gone(); err != nil {
		return err
	}
	if err := vm.CheckEmpty(dir); err != nil {
		return err
	}
	if m.running() {
		return wrenn.Errorf(wrenn.FailedPrecondition, "a machine is paused before its snapshot is taken")
	}
	data, err := json.Marshal(saved{shapeOf(m.spec), m.memory})
	if err != nil {
		return err
	}
	path := filepath.Join(dir, snapshotName)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return errors.Join(err, remove(path))
	}
	return nil
}

func (m *machine) Stop(context.Context) error {
	m.end(nil)
	return remove(filepath.Join(m.ref.Dir, socketName))
}

func (m *machine) Wait(ctx context.Context) error {
	select {
	case <-m.done:
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.exitErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
