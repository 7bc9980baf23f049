//go:build root

package fakehost_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/host/fakehost"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/run"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmproc"
)

func TestMain(m *testing.M) {
	if part, ok := fakehost.Part(); ok {
		run.Main(part)
	}
	m.Run()
}

// TestMachinesOutliveTheirAgent: a program in a machine goes on when the agent is killed;
// memory and disk come back from a snapshot, and the program does not.
func TestMachinesOutliveTheirAgent(t *testing.T) {
	dir, err := os.MkdirTemp("", "fh") //nolint:usetesting // t.TempDir's names are too long for sockets
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "run", "agent.sock")
	h, err := fakehost.New(fakehost.Config{
		Dir: dir, Listen: server.Listen{Address: "unix:" + socket}, Output: t.Output(), LogLevel: slog.LevelWarn,
		Network: network.Config{Prefix: fmt.Sprintf("f%05x", os.Getpid()&0xfffff), Range: netip.MustParsePrefix("10.222.0.0/24"), Max: 2},
	})
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, h.Close(context.WithoutCancel(t.Context()))) })
	testkit.Must(t, h.Start(t.Context()))
	c, err := hostclient.New(hostclient.Config{ID: "h1", URL: "unix://" + socket})
	testkit.Must(t, err)
	defer c.Close()
	id := wrenn.NewSandboxID()
	testkit.Must(t, c.Create(t.Context(), id, wrenn.SandboxSpec{}, nil))
	says := func(script string) string {
		t.Helper()
		var got *wrenn.ExecResult
		testkit.WaitNoError(t, "a command runs", func() (err error) {
			got, err = c.Exec(t.Context(), id, "", wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", script}, User: "root"})
			return err
		})
		return strings.TrimSpace(string(got.Stdout) + string(got.Stderr))
	}
	const read = "head -c 6 " + vmproc.MemoryFile + " " + vmproc.DiskFile + " | tr -d '\\n'; cat /root/pid | xargs kill -0 && echo runs"
	const files = "==> " + vmproc.MemoryFile + " <==memory==> " + vmproc.DiskFile + " <==disk01"
	says("printf memory | dd conv=notrunc of=" + vmproc.MemoryFile + "; printf disk01 | dd conv=notrunc of=" + vmproc.DiskFile + "; sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > /root/pid")

	testkit.Must(t, h.Kill())
	testkit.Must(t, h.Start(t.Context()))
	if got := says(read); got != files+"runs" {
		t.Errorf("after the agent was killed: %q", got)
	}
	testkit.Must(t, c.Pause(t.Context(), id, wrenn.PauseOptions{}))
	if n, err := h.Machines(); n != 0 || err != nil {
		t.Errorf("%d machines run, %v", n, err)
	}
	testkit.Must(t, c.Resume(t.Context(), id, ""))
	if got := says(read); !strings.HasPrefix(got, files) || strings.HasSuffix(got, "runs") {
		t.Errorf("after a pause: %q", got)
	}
	testkit.Must(t, c.Destroy(t.Context(), id))
	journals, err := h.Journals()
	slots, slotsErr := h.Slots()
	if err != nil || slotsErr != nil || len(journals)+len(slots) > 0 {
		t.Errorf("left are %q, %q, %v, %v", journals, slots, err, slotsErr)
	}
}
