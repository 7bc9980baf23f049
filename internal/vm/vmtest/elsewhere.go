package vmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/vm"
)

// elsewhereEnv tells a test binary that it is to be the other process.
const elsewhereEnv = "WRENN_VMTEST_ELSEWHERE"

// order is what the other process gets on its standard input.
type order struct {
	Spec     vm.Spec
	Snapshot string
}

// Main is the body of TestMain of a driver's tests that use Elsewhere; with
// driver the other process makes the one that it starts machines with.
func Main(m *testing.M, driver func() (vm.Driver, error)) {
	if os.Getenv(elsewhereEnv) == "" {
		m.Run()
		return
	}
	if err := obey(os.Stdin, os.Stdout, driver); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed, as an agent would be, or its parent is
}

func obey(in io.Reader, out io.Writer, driver func() (vm.Driver, error)) error {
	var o order
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	d, err := driver()
	if err != nil {
		return err
	}
	var machine vm.Machine
	if o.Snapshot == "" {
		machine, err = d.Start(context.Background(), o.Spec)
	} else {
		machine, err = d.Restore(context.Background(), o.Spec, o.Snapshot)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(machine.Ref())
}

// Elsewhere is Harness.Elsewhere by a copy of this test binary, whose TestMain
// must call Main.
func Elsewhere(t *testing.T, spec vm.Spec, snapshot string) vm.Ref {
	t.Helper()
	input, err := json.Marshal(order{spec, snapshot})
	must(t, "order", err)
	self, err := os.Executable()
	must(t, "executable", err)
	cmd := exec.CommandContext(within(t), self)
	cmd.Env = append(os.Environ(), elsewhereEnv+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, "stdin", err)
	stdout, err := cmd.StdoutPipe()
	must(t, "stdout", err)
	must(t, "other process", cmd.Start())
	_, err = stdin.Write(input)
	must(t, "order", err)
	var ref vm.Ref
	err = json.NewDecoder(stdout).Decode(&ref)
	must(t, "kill the other process", cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
	must(t, "machine of another process", err)
	return ref
}

// Kill is Harness.Kill for real processes.
func Kill(t *testing.T, ref vm.Ref) {
	t.Helper()
	must(t, "kill", syscall.Kill(ref.PID, syscall.SIGKILL))
}

// FillConsole is Harness.FillConsole by the standard output of a VMM whose
// agent is gone. The descriptor that it takes has the VMM's own offset.
func FillConsole(t *testing.T, ref vm.Ref) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(ref.PID, 0)
	must(t, "pidfd_open", err)
	defer func() { _ = unix.Close(pidfd) }() // nothing was written to it
	fd, err := unix.PidfdGetfd(pidfd, unix.Stdout, 0)
	must(t, "pidfd_getfd", err)
	console := os.NewFile(uintptr(fd), "console")
	defer console.Close()
	at, err := console.Seek(0, io.SeekCurrent)
	must(t, "seek", err)
	if room := launch.ConsoleSize - at - 1024; room > 0 {
		_, err = console.Write(bytes.Repeat([]byte("."), int(room)))
		must(t, "write", err)
	}
}
