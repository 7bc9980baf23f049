package vmfake

import (
	"context"

	"wrenn.dev"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/vm"
)

// machine is a driver's handle of a process; an adopted process has several.
type machine struct {
	*process
	hook rollback.Hook
}

var _ interface {
	vm.Machine
	vm.ConsoleReader
	vm.SnapshotPreparer
} = (*machine)(nil)

func (m *machine) Ref() vm.Ref { return m.ref }

// Pause implements vm.Machine. If the hook fails it the machine has paused all the
// same, like after a call whose answer was lost.
func (m *machine) Pause(ctx context.Context) error { return m.do(ctx, StepPause, m.pause) }

// Resume implements vm.Machine. If the hook fails it the machine runs all the same.
func (m *machine) Resume(ctx context.Context) error { return m.do(ctx, StepResume, m.resume) }

// ResizeDisk implements vm.Machine. It checks that the disk's file has that size.
func (m *machine) ResizeDisk(ctx context.Context, disk int, size int64) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := m.whileAlive(func() {}); err != nil {
		return err
	}
	if disk < 0 || disk >= len(m.disks) {
		return wrenn.Errorf(wrenn.Invalid, "the machine has no disk %d", disk)
	}
	info, err := m.disks[disk].Stat()
	if err != nil {
		return err
	}
	if info.Size() != size {
		return wrenn.Errorf(wrenn.Invalid, "the disk's file has %d bytes, not %d", info.Size(), size)
	}
	return nil
}

func (m *machine) do(ctx context.Context, step Step, f func()) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := m.whileAlive(f); err != nil {
		return err
	}
	return m.hook.At(step)
}

// Stop implements vm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := m.hook.At(StepStop); err != nil {
		return err
	}
	m.end(stopped)
	return removeFiles(m.ref.Dir)
}

// Wait implements vm.Machine.
func (m *machine) Wait(ctx context.Context) error {
	select {
	case <-m.gone:
		return m.verdict()
	default:
	}
	select {
	case <-m.gone:
		return m.verdict()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *machine) verdict() error {
	if m.ended.orderly {
		return nil
	}
	return m.exitError()
}

// Console implements vm.ConsoleReader.
func (m *machine) Console() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.console)
}

// ConsoleParts implements vm.ConsoleReader.
func (m *machine) ConsoleParts() []vm.ConsolePart {
	return []vm.ConsolePart{{Text: m.Console()}}
}
