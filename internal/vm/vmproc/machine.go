package vmproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
)

// machine is a process that is a machine.
type machine struct {
	process *launch.Process
	ref     vm.Ref
	details details
}

var _ interface {
	vm.Machine
	vm.ConsoleReader
	vm.SnapshotPreparer
} = (*machine)(nil)

func (m *machine) Ref() vm.Ref { return m.ref }

// Pause implements vm.Machine.
func (m *machine) Pause(ctx context.Context) error {
	if err := m.signal(unix.SIGSTOP); err != nil {
		return err
	}
	for {
		stopped, err := m.stopped()
		if err != nil || stopped {
			return err
		}
		select {
		case <-time.After(time.Millisecond): // the kernel tells only a parent
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Resume implements vm.Machine.
func (m *machine) Resume(context.Context) error { return m.signal(unix.SIGCONT) }

// signal sends a signal to the process, unless it has ended.
func (m *machine) signal(s unix.Signal) error {
	fd, err := unix.PidfdOpen(m.ref.PID, 0)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
	}
	select {
	case <-m.process.Done(): // the PID may be another's
		return m.ended()
	default:
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, s, nil, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		<-m.process.Done()
		return m.ended()
	}
	return err
}

func (m *machine) ended() error {
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the machine has ended", Err: m.exitError()}
}

// exitError returns why the machine has ended, which it must have.
func (m *machine) exitError() *vm.ExitError {
	exit, _ := m.process.Wait(context.Background()) // it has ended
	return &vm.ExitError{Driver: Name, Reason: exit.Reason, Console: launch.LastLines(m.process.Output()), Log: launch.LastLines(m.process.Log())}
}

// stopped reports whether the process is stopped by a signal.
func (m *machine) stopped() (bool, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.ref.PID))
	if err != nil {
		return false, m.ended()
	}
	_, rest, _ := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(") "))
	return bytes.HasPrefix(rest, []byte("T")), nil
}

// PrepareSnapshot implements vm.SnapshotPreparer. It has nothing to do.
func (m *machine) PrepareSnapshot(_ context.Context, dir string) error {
	if err := m.signal(0); err != nil {
		return err
	}
	return vm.CheckEmpty(dir)
}

// Snapshot implements vm.Machine.
func (m *machine) Snapshot(_ context.Context, dir string) error {
	if err := m.signal(0); err != nil {
		return err
	}
	stopped, err := m.stopped()
	if err != nil {
		return err
	}
	if !stopped {
		return wrenn.Errorf(wrenn.FailedPrecondition, "a machine must be paused for a snapshot")
	}
	if err := vm.CheckEmpty(dir); err != nil {
		return err
	}
	if err := m.write(dir); err != nil {
		return errors.Join(err, remove(filepath.Join(dir, memoryName)), remove(filepath.Join(dir, manifestName)))
	}
	return nil
}

func (m *machine) write(dir string) error {
	content, err := os.ReadFile(filepath.Join(m.ref.Dir, memoryName))
	if err != nil {
		return err
	}
	path := filepath.Join(dir, memoryName)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	sum, err := vm.SumFile(path)
	if err != nil {
		return err
	}
	return vm.WriteManifest(filepath.Join(dir, manifestName), manifest{m.details.Shape, m.details.Kernel, sum})
}

// ResizeDisk implements vm.Machine. The file is the disk, so there is nothing to do.
func (m *machine) ResizeDisk(_ context.Context, disk int, _ int64) error {
	if disk < 0 || disk >= m.details.Shape.Disks {
		return wrenn.Errorf(wrenn.Invalid, "the machine has no disk %d", disk)
	}
	return m.signal(0)
}

// Stop implements vm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	if err := m.process.Kill(ctx); err != nil {
		return err
	}
	return removeFiles(m.ref.Dir)
}

// Wait implements vm.Machine.
func (m *machine) Wait(ctx context.Context) error {
	exit, err := m.process.Wait(ctx)
	if err != nil || exit.Killed {
		return err
	}
	return m.exitError()
}

// Console implements vm.ConsoleReader.
func (m *machine) Console() string { return string(m.process.Output()) }

// ConsoleParts implements vm.ConsoleReader.
func (m *machine) ConsoleParts() (parts []vm.ConsolePart) {
	for _, p := range m.process.Pieces() {
		parts = append(parts, vm.ConsolePart{Until: p.Until, Text: string(p.Text)})
	}
	return parts
}
