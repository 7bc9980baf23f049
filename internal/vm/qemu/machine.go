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

	"wrenn"
	"wrenn/internal/cmutex"
	"wrenn/internal/vm"
	"wrenn/internal/vm/launch"
	"wrenn/internal/vm/qemu/qmp"
)

// dyingTime bounds the wait for the end of a VMM that has closed its control socket.
const dyingTime = 5 * time.Second

// machine is one QEMU.
type machine struct {
	ref   vm.Ref
	proc  *launch.Process
	image *lease        // released when the VMM is gone; may be nil
	op    cmutex.Mutex  // held while the machine is paused, resumed or its snapshot taken
	done  chan struct{} // closed when the VMM is gone and exitErr is set

	exitErr error // of Wait; valid when done is closed

	mu       sync.Mutex // guards the following
	qmp      *qmp.Client
	shutdown string // the reason that QEMU gave for ending, "" for none
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

// follow waits for the end of the VMM and says what it was.
func (m *machine) follow() {
	<-m.proc.Done()
	if client := m.client(); client != nil {
		<-client.Done()    // it ends with the VMM; its last event says why
		_ = client.Close() // the other end is gone
	}
	m.exitErr = m.verdict()
	if m.image != nil {
		m.image.release()
	}
	close(m.done)
}

var panicLine = []byte("Kernel panic - not syncing")

// verdict is what Wait returns. A guest that powers off, reboots or panics
// ends QEMU alike, with status 0: a panic shows on the console alone (a guest
// could fake one; it would deceive itself).
func (m *machine) verdict() error {
	exit, _ := m.proc.Wait(context.Background()) // it is gone: this does not wait
	m.mu.Lock()
	shutdown := m.shutdown
	m.mu.Unlock()
	reason := exit.Reason
	switch {
	case exit.Killed:
		return nil // by Stop
	case shutdown == "host-signal":
		reason = "ended by a signal of the host"
	case exit.Code != 0 && shutdown == "": // "" and 0: it ended before it could tell
	case bytes.Contains(m.proc.Output(), panicLine):
		reason = "guest panicked"
	default:
		return nil
	}
	return m.exitError(reason)
}

// exitError says why the VMM has ended, with the end of what it and the guest printed.
func (m *machine) exitError(reason string) *vm.ExitError {
	return &vm.ExitError{
		Driver: Name, Reason: reason,
		Console: launch.LastLines(m.proc.Output()), Log: launch.LastLines(m.proc.Log()),
	}
}

func (m *machine) Ref() vm.Ref { return m.ref }

// Console implements vm.ConsoleReader.
func (m *machine) Console() string { return string(m.proc.Output()) }

// connect reaches the VMM by its control socket. When it fails for an adopted
// machine that goes on running: whoever calls decides.
func (m *machine) connect(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(m.ref.Dir, socketName))
	if err != nil {
		return m.whyGone(ctx, err)
	}
	client, err := qmp.New(ctx, conn.(*net.UnixConn), m.heard)
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

// heard is called for each event of QEMU.
func (m *machine) heard(ev qmp.Event) {
	var data struct{ Reason, Status string }
	_ = json.Unmarshal(ev.Data, &data) // an event without data, or of another form, says nothing to us
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

// whyGone turns the error of talking to a VMM into the reason of its end, if
// it has ended or is about to.
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

// gone is the error of everything that needs a VMM when that is gone, and nil
// while it is there.
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

// do executes a QMP command.
func (m *machine) do(ctx context.Context, command string, arguments, result any) error {
	if err := m.gone(); err != nil {
		return err
	}
	return m.explain(ctx, m.client().Do(ctx, command, arguments, result))
}

// explain turns the error of a closed connection into the reason for that.
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

// load reads the device state from the VMM's descriptor fd. The machine is
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
	case <-m.done: // QEMU exits when it cannot load
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
		return removeSocket(m.ref.Dir)
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
