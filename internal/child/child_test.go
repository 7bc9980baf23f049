package child_test

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/child"
	"wrenn.dev/internal/run"
	"wrenn.dev/internal/testkit"
)

// parent is the environment variable with which this program starts a child and waits.
const parent = "WRENN_TEST_CHILD_PARENT"

func TestMain(m *testing.M) {
	if path := os.Getenv(parent); path != "" {
		run.Main(func(context.Context, []string) error { return startOne(path) })
	}
	m.Run()
}

// startOne starts a child, writes its PID to the file at path, and waits for its end.
func startOne(path string) error {
	p, err := child.Start(exec.Command("sleep", "1000"))
	if err == nil {
		err = os.WriteFile(path, []byte(strconv.Itoa(p.PID())), 0o600)
	}
	if err == nil {
		<-p.Done()
	}
	return err
}

// TestEndsWithItsParent kills a program that has started a child.
func TestEndsWithItsParent(t *testing.T) {
	path := t.TempDir() + "/pid"
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), parent+"="+path)
	p, err := child.Start(cmd)
	testkit.Must(t, err)
	var pid int
	testkit.WaitNoError(t, "the child of the child runs", func() error {
		text, err := os.ReadFile(path)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err
	})
	pidfd, err := unix.PidfdOpen(pid, 0)
	testkit.Must(t, err)
	defer unix.Close(pidfd)
	testkit.Must(t, p.Kill())
	testkit.WaitUntil(t, "the child of the child has ended", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	})
}

func TestStopAndKill(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	obeys, err := child.Start(exec.Command("sleep", "1000"))
	testkit.Must(t, err)
	testkit.Must(t, obeys.Stop(t.Context()))
	testkit.Must(t, obeys.Stop(ended)) // twice is allowed
	testkit.Must(t, obeys.Kill())

	stays, err := child.Start(exec.Command("sh", "-c", "trap '' TERM; while :; do sleep 1000; done"))
	testkit.Must(t, err)
	if err := stays.Stop(ended); err == nil || !strings.Contains(err.Error(), "did not stop") {
		t.Errorf("Stop() = %v", err)
	}
	<-stays.Done()

	if _, err := child.Start(exec.Command("/does/not/exist")); err == nil {
		t.Error("a program that does not exist was started")
	}
}
