package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/cmutex"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
)

// machine is a vm.Machine.
type machine struct {
	driver  *Driver
	id      string
	jail    *jail
	shape   shape
	api     *client
	process *launch.Process // nil until it is launched, or adopted
	kernel  string          // vm.Kernel.Digest of what was booted; "" if unknown
	tracks  string          // the directory of the snapshot that it was restored from if the VMM tracks its changes, else ""
	op      cmutex.Mutex    // held while a snapshot is prepared or taken: files are lent under fixed names
	memory  lineage         // guarded by op
}

var _ interface {
	vm.Machine
	vm.ConsoleReader
	vm.SnapshotPreparer
} = (*machine)(nil)

func (d *Driver) newMachine(id string, s shape, c *jail) *machine {
	return &machine{
		driver: d, id: id, jail: c, shape: s,
		api: newClient(func(ctx context.Context) (net.Conn, error) { return c.dial(ctx) }),
	}
}

// Ref implements vm.Machine.
func (m *machine) Ref() vm.Ref {
	id := m.process.Identity()
	kept, err := json.Marshal(private{
		Root: m.jail.root, Jailed: m.jail.enforced, UID: m.jail.uid, GID: m.jail.gid, Cgroup: m.jail.cgroup, Shape: m.shape,
		Kernel: m.kernel, Tracks: m.tracks,
	})
	if err != nil {
		panic(err) // strings and numbers only
	}
	return vm.Ref{
		Driver: driverName, ID: m.id, Dir: m.jail.dir, PID: id.PID, StartTime: id.StartTime, BootID: id.BootID,
		Private: map[string]string{privateKey: string(kept)},
	}
}

// privateKey is the key of Ref.Private whose value is the JSON of private.
const privateKey = "machine"

// private is what Adopt needs besides the process.
type private struct {
	Root   string `json:"root"`
	Jailed bool   `json:"jailed"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Cgroup string `json:"cgroup,omitempty"`
	Shape  shape  `json:"shape"`
	Kernel string `json:"kernel,omitempty"`
	Tracks string `json:"tracks,omitempty"`
}

// recall returns the machine of a ref, without its process.
func (d *Driver) recall(ref vm.Ref) (*machine, error) {
	var kept private
	if ref.Driver != driverName {
		return nil, wrenn.Errorf(wrenn.Invalid, "a machine of driver %q, not of Firecracker", ref.Driver)
	}
	if err := json.Unmarshal([]byte(ref.Private[privateKey]), &kept); err != nil {
		return nil, fmt.Errorf("machine %s: invalid reference: %w", ref.ID, err)
	}
	c := &jail{dir: ref.Dir, root: kept.Root, enforced: kept.Jailed, uid: kept.UID, gid: kept.GID, cgroup: kept.Cgroup}
	m := d.newMachine(ref.ID, kept.Shape, c)
	m.kernel, m.tracks = kept.Kernel, kept.Tracks
	return m, nil
}

// Pause implements vm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.setState(ctx, "Paused") }

// Resume implements vm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.setState(ctx, "Resumed") }

func (m *machine) setState(ctx context.Context, state string) error {
	if err := m.alive(); err != nil {
		return err
	}
	if err := m.api.setState(ctx, state); err != nil {
		return m.explain(ctx, err)
	}
	return nil
}

// ResizeDisk implements vm.Machine. Firecracker reads the size of a disk's file when
// it is told of the file again.
func (m *machine) ResizeDisk(ctx context.Context, disk int, _ int64) error {
	if err := m.alive(); err != nil {
		return err
	}
	name := diskName(disk)
	if err := m.api.updateDrive(ctx, driveUpdate{ID: name, Path: name}); err != nil {
		return m.explain(ctx, err)
	}
	return nil
}

// Stop implements vm.Machine.
func (m *machine) Stop(ctx context.Context) error {
	if m.process != nil {
		if err := m.process.Kill(ctx); err != nil {
			return err
		}
	}
	m.api.close()
	if err := m.forget(ctx); err != nil {
		return err
	}
	return m.jail.clear(ctx)
}

// forget closes the memory file that the next snapshot would be based on.
func (m *machine) forget(ctx context.Context) error {
	if err := m.op.Lock(ctx); err != nil {
		return err
	}
	defer m.op.Unlock()
	m.memory.end()
	return nil
}

// Wait implements vm.Machine.
func (m *machine) Wait(ctx context.Context) error {
	exit, err := m.process.Wait(ctx)
	if err != nil {
		return err
	}
	if exit.Killed {
		return nil
	}
	if why := m.reason(exit); why != poweredOff {
		return m.exitError(why)
	}
	return nil
}

// Console implements vm.ConsoleReader. Firecracker logs on its standard output,
// where the guest's console is as well: the lines of its log are left out. A guest
// that prints such lines hides them from its own console.
func (m *machine) Console() string { return string(logLine.ReplaceAll(m.process.Output(), nil)) }

// ConsoleParts implements vm.ConsoleReader.
func (m *machine) ConsoleParts() (parts []vm.ConsolePart) {
	for _, p := range m.process.Pieces() { // which end at ends of lines
		parts = append(parts, vm.ConsolePart{Until: p.Until, Text: string(logLine.ReplaceAll(p.Text, nil))})
	}
	return parts
}

// With --show-level a line of Firecracker's log is "TIME [ID:THREAD:LEVEL] …". It
// logs each call that it gets, and what is wrong.
var (
	logLine   = regexp.MustCompile(`(?m)^` + logStart + `[A-Z]+\].*\n?`)
	innocuous = regexp.MustCompile(`(?m)^` + logStart + `(INFO|DEBUG|TRACE)\].*\n?`)
)

const logStart = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} \[[a-z0-9-]*:[^:\]\n]*:`

const (
	poweredOff = "guest powered off"
	panicked   = "guest panicked"
)

// exitCodes are Firecracker's own exit codes, from its src/vmm/src/lib.rs (FcExitCode).
var exitCodes = map[int]string{
	148: "a system call that its filter forbids",
	149: "SIGBUS: the memory file was cut, or no memory was left",
	150: "SIGSEGV",
	151: "SIGXFSZ",
	152: "a configuration that it cannot use",
	153: "arguments that it does not know",
}

// reason returns why the VMM has ended. A guest that panics resets the machine, and
// Firecracker exits as if the guest had powered off: only the console shows the
// difference. The exit status of an adopted VMM is unknown, but Firecracker logs it.
func (m *machine) reason(exit launch.Exit) string {
	out := m.process.Output()
	clean := exit.Code == 0 || exit.Code < 0 && bytes.Contains(out, []byte("Firecracker exiting successfully. exit_code=0"))
	switch {
	case clean && bytes.Contains(out, []byte("Kernel panic - not syncing")):
		return panicked
	case clean:
		return poweredOff
	case exitCodes[exit.Code] != "":
		return exit.Reason + ", " + exitCodes[exit.Code]
	default:
		return exit.Reason
	}
}

// exitError returns why the VMM has ended, with the end of what it and the guest printed.
func (m *machine) exitError(reason string) *vm.ExitError {
	return &vm.ExitError{
		Driver: driverName, Reason: reason, Panicked: reason == panicked, Console: launch.LastLines([]byte(m.Console())),
		Log: launch.LastLines(slices.Concat(complaints(m.process.Output()), m.process.Log())),
	}
}

// complaints returns the lines of Firecracker's log in its output that say more
// than which calls it got.
func complaints(output []byte) []byte {
	var found []byte
	for _, line := range logLine.FindAll(output, -1) {
		if !innocuous.Match(line) {
			found = append(found, line...)
		}
	}
	return found
}

// alive returns nil while the VMM runs.
func (m *machine) alive() error {
	select {
	case <-m.process.Done():
		return m.gone()
	default:
		return nil
	}
}

func (m *machine) gone() error {
	exit, _ := m.process.Wait(context.Background()) // it has ended
	why := m.reason(exit)
	if exit.Killed {
		why = "stopped"
	}
	return &wrenn.Error{Code: wrenn.FailedPrecondition, Message: "the machine has ended", Err: m.exitError(why)}
}

// deathNotice is how long a failed call waits for the end of the VMM, whose
// connections end just before the process does.
const deathNotice = time.Second

// explain turns the error of a call into that of a VMM that has ended, if it has.
func (m *machine) explain(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*Fault](err); ok || m.process == nil || ctx.Err() != nil {
		return err // it runs, or never did, or the caller no longer waits
	}
	ctx, cancel := context.WithTimeout(ctx, deathNotice)
	defer cancel()
	if _, waitErr := m.process.Wait(ctx); waitErr != nil {
		return err
	}
	return m.gone()
}
