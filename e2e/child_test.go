//go:build root && vm

package e2e

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// child is a program that a test starts and ends.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
	out   *watched
}

func startChild(t *testing.T, cmd *exec.Cmd) *child {
	t.Helper()
	c := &child{cmd: cmd, ended: make(chan struct{}), out: newWatched()}
	cmd.Stdout, cmd.Stderr = c.out, c.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		_ = cmd.Wait() // some are killed
	}()
	return c
}

// stop ends the program by the signal and waits for its end.
func (c *child) stop(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	c.wait(t)
}

func (c *child) wait(t *testing.T) {
	t.Helper()
	select {
	case <-c.ended:
	case <-time.After(patience):
		t.Fatalf("%s did not end; it printed:\n%s", c.cmd, c.out)
	}
}
