package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/cmutex"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/qemu/qmp"
)

// dyingTime bounds the wait for the end of a VMM that has closed its control socket.
const dyingTime = 5 * time.Second

// machine is one QEMU.
type machine struct {
	ref   vm.Ref
	proc  *launch.Process
	image *lease        // released when the VMM has ended; may be nil
	op    cmutex.Mutex  // held while the machine is paused, resumed or its snapshot taken
	done  chan struct{} // closed when the VMM has ended and exitErr is set

	exitErr error // of Wait; valid when done is closed

	mu       sync.Mutex // guards the following
	qmp      *qmp.Client
	shutdown string // the reason in QEMU's SHUTDOWN event, "" for none
	loaded   chan struct{}
}

var _ interface {
	vm.Machine
	vm.ConsoleReader
	vm.SnapshotPreparer
} = (*machine)(nil)

func newMachine(ref vm.Ref, proc *launch.Process, image *lease) *machine {
	m := &machine{
		ref: ref, proc: proc, image: image,
		done: make(chan struct{}), loaded: make(chan struct{}),
	}
	go m.follow()
	return m
}

// follow waits for the end of the VMM and sets exitErr.
func (m *machine) follow() {
	<-m.proc.Done()
	if client := m.client(); client != nil {
		<-client.Done()    // it ends with the VMM; its last event has the reason
		_ = client.Close() // the other end is closed
	}
	m.exitErr = m.verdict()
	if m.image != nil {
		m.image.release()
	}
	close(m.done)
}

// panicked is the reason of a guest whose kernel panicked.
const panicked = "guest panicked"

var panicLine = []byte("Kernel panic - not syncing")

// verdict returns what Wait returns. QEMU ends with status 0 if its guest powers off,
// reboots or panics: only the console shows a panic. A guest could fake one; only its
// owner would see it.
func (m *machine) verdict() error {
	exit, _ := m.proc.Wait(context.Background()) // it has ended: this does not wait
	m.mu.Lock()
	shutdown := m.shutdown
	m.mu.Unlock()
	reason := exit.Reason
	switch {
	case exit.Killed:
		return nil // by Stop
	case shutdown == "host-signal":
		reason = "ended by a signal of the host"
	case exit.Code != 0 && shutdown == "": // "" and 0: it ended before it could send the event
	case bytes.Contains(m.proc.Output(), panicLine):
		reason = panicked
	default:
		return nil
	}
	return m.exitError(reason)
}

// exitError returns why the VMM has ended, with the end of what it and the guest printed.
func (m *machine) exitError(reason string) *vm.ExitError {
	return &vm.ExitError{
		Driver: m.ref.Driver, Reason: reason, Panicked: reason == panicked,
		Console: launch.LastLines(m.proc.Output()), Log: launch.LastLines(m.proc.Log()),
	}
}

func (m *machine) Ref() vm.Ref { return m.ref }

// Console implements vm.ConsoleReader.
func (m *machine) Console() string { return string(m.proc.Output()) }

// ConsoleParts implements vm.ConsoleReader.
func (m *machine) ConsoleParts() (parts []vm.ConsolePart) {
	for _, p := range m.proc.Pieces() {
		parts = append(parts, vm.ConsolePart{Until: p.Until, Text: string(p.Text)})
	}
	return parts
}

// connect connects to the VMM's control socket. An adopted machine keeps running if it
// fails.
func (m *machine) connect(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(m.ref.Dir, socketName))
	if err != nil {
		return m.whyGone(ctx, err)
	}
	client, err := qmp.New(ctx, conn.(*net.UnixConn), m.onEvent)
	if err != nil {
		return m.whyGone(ctx, err)
	}
	m.mu.Lock()
	m.qmp = client
	m.mu.Unlock()
	return nil
}

func (m *machine) client() *qmp.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.qmp
}

// onEvent is called for each event of QEMU.
func (m *machine) onEvent(ev qmp.Event) {
	var data struct{ Reason, Status string }
	_ = json.Unmarshal(ev.Data, &data) // no event without data, or with other data, matters
	m.mu.Lock()
	defer m.mu.Unlock()
	switch ev.Name {
	case "SHUTDOWN":
		m.shutdown = data.Reason
	case "MIGRATION":
		select {
		case <-m.loaded:
		default:
			if data.Status == "completed" {
				close(m.loaded)
			}
		}
	}
}

// whyGone returns the end of the VMM instead of the error of its connection, if it has
// ended or is about to.
func (m *machine) whyGone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dyingTime)
	defer cancel()
	if _, waitErr := m.proc.Wait(ctx); waitErr != nil {
		return &wrenn.Error{Code: wrenn.Unavailable, Message: "the machine's VMM does not answer", Err: err}
	}
	if client := m.client(); client == nil {
		exit, _ := m.proc.Wait(ctx)
		return m.exitError(exit.Reason)
	}
	<-m.done
	return m.gone()
}

// gone returns nil while the VMM runs, and the error of all calls once it has ended.
func (m *machine) gone() error {
	select {
	case <-m.done:
	default:
		return nil
	}
	exit, ok := errors.AsType[*vm.ExitError](m.exitErr)
	if !ok {
		exit = &vm.ExitError{Driver: m.ref.Driver, Reason: "stopped"}
	}
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the machine has ended", Err: exit}
}

// do executes a QMP command.
func (m *machine) do(ctx context.Context, command string, arguments, result any) error {
	if err := m.gone(); err != nil {
		return err
	}
	return m.explain(ctx, m.client().Do(ctx, command, arguments, result))
}

// explain returns the end of the VMM instead of the error of a closed connection.
func (m *machine) explain(ctx context.Context, err error) error {
	if errors.Is(err, qmp.ErrClosed) {
		return m.whyGone(ctx, err)
	}
	return err
}

// exclusively calls fn while it holds op.
func (m *machine) exclusively(ctx context.Context, fn func() error) error {
	if err := m.op.Lock(ctx); err != nil {
		return err
	}
	defer m.op.Unlock()
	return fn()
}

func (m *machine) Pause(ctx context.Context) error {
	return m.exclusively(ctx, func() error { return m.do(ctx, "stop", nil, nil) })
}

func (m *machine) Resume(ctx context.Context) error {
	return m.exclusively(ctx, func() error { return m.do(ctx, "cont", nil, nil) })
}

// ResizeDisk implements vm.Machine.
func (m *machine) ResizeDisk(ctx context.Context, disk int, size int64) error {
	return m.exclusively(ctx, func() error {
		return m.do(ctx, "block_resize", map[string]any{"device": fmt.Sprintf("disk%d", disk), "size": size}, nil)
	})
}

// load makes the VMM read the device state from its descriptor fd. The machine is
// paused afterwards, as it was when it was saved.
func (m *machine) load(ctx context.Context, fd int) error {
	events := map[string]any{"capabilities": []any{map[string]any{"capability": "events", "state": true}}}
	if err := m.do(ctx, "migrate-set-capabilities", events, nil); err != nil {
		return err
	}
	if err := m.do(ctx, "migrate-incoming", map[string]string{"uri": fmt.Sprintf("fd:%d", fd)}, nil); err != nil {
		return err
	}
	select {
	case <-m.loaded:
		return nil
	case <-m.done: // QEMU exits if it cannot load
		return m.gone()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *machine) Stop(ctx context.Context) error {
	if err := m.proc.Kill(ctx); err != nil {
		return err
	}
	select {
	case <-m.done:
		return errors.Join(removeSocket(m.ref.Dir), launch.RemoveCgroup(ctx, m.ref.Private[refCgroup]))
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *machine) Wait(ctx context.Context) error {
	select {
	case <-m.done:
		return m.exitErr
	default:
	}
	select {
	case <-m.done:
		return m.exitErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
