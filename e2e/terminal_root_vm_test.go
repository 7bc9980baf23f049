//go:build root && vm

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const ctrlC = "\x03"

// typist is a command with a terminal, and types into it.
type typist struct {
	keys *os.File     // the terminal's other end
	idle unix.Termios // the terminal's settings before the command
	cmd  *exec.Cmd
	out  *watched
	done chan error
}

// sit runs wrenn with a controlling terminal of that size.
func (e *everything) sit(t *testing.T, cols, rows uint16, args ...string) *typist {
	t.Helper()
	keys, screen := openTerminal(t)
	y := &typist{keys: keys, cmd: e.command(args...), out: newWatched(), done: make(chan error, 1)}
	y.resize(t, cols, rows)
	y.idle = y.settings(t)
	y.cmd.Stdin, y.cmd.Stdout, y.cmd.Stderr = screen, screen, screen
	y.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := y.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = y.cmd.Process.Kill() }) // it has ended in every test that passes
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := keys.Read(buffer)
			if err != nil {
				return // EIO: the last process that had it open has ended
			}
			_, _ = y.out.Write(buffer[:n])
		}
	}()
	go func() { y.done <- y.cmd.Wait() }()
	return y
}

// openTerminal makes a terminal; see pts(4).
func openTerminal(t *testing.T) (keys, screen *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { screen.Close() })
	return keys, screen
}

func (y *typist) resize(t *testing.T, cols, rows uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(y.keys.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		t.Fatal(err)
	}
}

// types types keys and waits until want is on the screen.
func (y *typist) types(t *testing.T, keys, want string) {
	t.Helper()
	if _, err := y.keys.WriteString(keys); err != nil {
		t.Fatal(err)
	}
	if !y.out.wait(want, patience) {
		t.Fatalf("after %q there is no %q on the screen:\n%s", keys, want, y.out)
	}
}

func (y *typist) settings(t *testing.T) unix.Termios {
	t.Helper()
	now, err := unix.IoctlGetTermios(int(y.keys.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *now
}

// end waits for the end of the command and returns its exit code.
func (y *typist) end(t *testing.T) int {
	t.Helper()
	select {
	case <-y.done:
	case <-time.After(patience):
		t.Fatalf("it does not end:\n%s", y.out)
	}
	return y.cmd.ProcessState.ExitCode()
}

// testCtrlC: Ctrl-C here ends a command that has no terminal.
func testCtrlC(t *testing.T, e *everything, id string) {
	t.Helper()
	y := e.sit(t, 80, 24, "sandbox", "exec", id, "--", "sh", "-c", "echo rea''dy; exec sleep 12345")
	y.types(t, "", "ready")
	y.types(t, ctrlC, "^C")
	if code := y.end(t); code != 130 {
		t.Errorf("code %d:\n%s", code, y.out)
	}
	if code, out := e.wrenn(t, nil, "sandbox", "exec", id, "--", "pgrep", "-f", "^sleep 12345"); code != 1 {
		t.Errorf("it still runs: pgrep ended with %d and printed %q", code, out)
	}
}

// testShell uses a shell: resizes, Ctrl-C for a program in it, its exit code.
func testShell(t *testing.T, e *everything, id string) {
	t.Helper()
	y := e.sit(t, 101, 31, "sandbox", "shell", id)
	y.types(t, "stty size\r", "31 101")
	y.resize(t, 122, 42)
	y.types(t, "until [ \"$(stty size)\" = '42 122' ]; do sleep 0.1; done; echo resi''zed\r", "resized")
	// The job itself prints this: before it is in the foreground, the shell would get the signal and keep waiting.
	y.types(t, "sh -c \"echo be''gun; exec sleep 12345\"\r", "begun")
	y.types(t, ctrlC, "^C")
	y.types(t, "echo it was $?\r", "it was 130")
	y.types(t, "exit 7\r", "")
	if code := y.end(t); code != 7 {
		t.Errorf("code %d:\n%s", code, y.out)
	}
	if after := y.settings(t); after != y.idle {
		t.Errorf("the terminal is left as %+v, it was %+v", after, y.idle)
	}
}
