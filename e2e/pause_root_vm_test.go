//go:build root && vm

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wrenn"
	"wrenn/internal/host"
	"wrenn/internal/sandbox"
	pb "wrenn/proto/gen/hostagent/v1"
)

// settle puts something into a guest's memory, on its disk and among its
// processes; state shows whether it is there still, and says settled if so.
const (
	settle  = "echo memory >/dev/shm/m; echo disk >/root/d; sleep 1000000 >/dev/null 2>&1 & echo $! >/root/pid"
	state   = "cat /dev/shm/m /root/d; kill -0 $(cat /root/pid) && echo alive"
	settled = "memory\ndisk\nalive\n"
)

// content is 16 MiB in memory and as many on the disk. The page cache is
// dropped first, so that it is the disk that is read.
const content = "sha256sum /dev/shm/m; sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum /root/d; kill -0 $(cat /root/pid) && echo alive"

const contentPages = 4096

// scribble writes and zeroes random pages of memory and disk.
func scribble(r *rand.Rand) string {
	var script strings.Builder
	for _, file := range []string{"/dev/shm/m", "/root/d"} {
		for _, from := range []string{"urandom", "zero", "urandom", "zero"} {
			n := 1 + r.IntN(200)
			fmt.Fprintf(&script, "dd if=/dev/%s of=%s bs=4096 count=%d seek=%d conv=notrunc status=none;", from, file, n, r.IntN(contentPages-n))
		}
	}
	return script.String()
}

// A sandbox is what it was, byte by byte, after each of eight generations, each
// a difference to the one before; and its programs go on.
func TestGenerations(t *testing.T) {
	h := openHost(t)
	collectLast(t, h)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	sh(t, sb, fmt.Sprintf("head -c %d /dev/urandom >/dev/shm/m; cp /dev/shm/m /root/d; sleep 1000000 >/dev/null 2>&1 & echo $! >/root/pid", contentPages*4096))
	r := rand.New(rand.NewPCG(5, 8))
	for generation := range 8 {
		sh(t, sb, scribble(r))
		want := sh(t, sb, content)
		began := time.Now()
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatalf("pause %d: %v", generation, err)
		}
		paused := time.Now()
		if err := sb.Resume(t.Context()); err != nil {
			t.Fatalf("resume %d: %v", generation, err)
		}
		sh(t, sb, "true")
		t.Logf("generation %d: paused after %s, first command done after %s", generation, paused.Sub(began), time.Since(paused))
		if got := sh(t, sb, content); got != want {
			t.Fatalf("generation %d holds\n%s\nwant\n%s", generation, got, want)
		}
	}
	if err := h.Manager.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	if left := snapshots(t, h); len(left) != 1 {
		t.Errorf("snapshots after eight generations: %q, want the last", left)
	}
	t.Run("fork", func(t *testing.T) { testFork(t, sb) })
	t.Run("checkpoint", func(t *testing.T) { testCheckpoint(t, sb) })
	t.Run("full disk", func(t *testing.T) { testFullDisk(t, h, sb) })
	t.Run("damage", func(t *testing.T) { testDamage(t, h, sb) })
}

func snapshots(t *testing.T, h *host.Host) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.Store().Dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Three copies of one moment have its memory and disk, and draw random numbers
// of their own.
func testFork(t *testing.T, sb *sandbox.Sandbox) {
	t.Helper()
	want := sh(t, sb, content)
	began := time.Now()
	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID(), wrenn.NewSandboxID(), wrenn.NewSandboxID()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("three forks after %s", time.Since(began))
	random := map[string]bool{sh(t, sb, "od -An -N16 -tx1 /dev/urandom"): true}
	for _, c := range copies {
		twin := keep(t, c.Sandbox, c.Err)
		random[sh(t, twin, "od -An -N16 -tx1 /dev/urandom")] = true
		if got := sh(t, twin, content); got != want {
			t.Errorf("a fork holds\n%s\nwant\n%s", got, want)
		}
	}
	if len(random) != 4 {
		t.Error("copies draw the same random numbers")
	}
}

func testCheckpoint(t *testing.T, sb *sandbox.Sandbox) {
	t.Helper()
	want := sh(t, sb, content)
	c, err := sb.Checkpoint(t.Context(), "", "before the change")
	if err != nil {
		t.Fatal(err)
	}
	sh(t, sb, "echo changed >/dev/shm/m; echo changed >/root/d; kill $(cat /root/pid)")
	if err := sb.RestoreCheckpoint(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, sb, content); got != want {
		t.Errorf("after going back it holds\n%s\nwant\n%s", got, want)
	}
	if err := sb.DeleteCheckpoint(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
}

// A full disk makes a pause fail, and nothing else.
func testFullDisk(t *testing.T, h *host.Host, sb *sandbox.Sandbox) {
	t.Helper()
	want := sh(t, sb, content)
	filler := filepath.Join(h.Store().Dir, "filler")
	if err := fillDisk(filler); err != nil {
		t.Fatal(err)
	}
	err := sb.Pause(t.Context())
	if removeErr := os.Remove(filler); removeErr != nil {
		t.Error(removeErr)
	}
	if wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("Pause() on a full disk = %v, want Exhausted", err)
	}
	if got := sh(t, sb, content); got != want {
		t.Errorf("after a pause that failed it holds\n%s\nwant\n%s", got, want)
	}
	if err := errors.Join(sb.Pause(t.Context()), sb.Resume(t.Context())); err != nil {
		t.Error(err)
	}
	if got := sh(t, sb, content); got != want {
		t.Errorf("after a pause it holds\n%s\nwant\n%s", got, want)
	}
}

// fillDisk makes a file that takes all that is free.
func fillDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	pos := int64(0)
	for filled := int64(-1); filled < pos; { // XFS frees what was removed some time later
		filled = pos
		for size := int64(1 << 30); size >= 4096; {
			err := unix.Fallocate(int(f.Fd()), 0, pos, size)
			switch {
			case errors.Is(err, unix.ENOSPC):
				size /= 2
			case err != nil:
				return err
			default:
				pos += size
			}
		}
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

// A snapshot that is cut is refused by name, and the sandbox stays paused.
func testDamage(t *testing.T, h *host.Host, sb *sandbox.Sandbox) {
	t.Helper()
	if err := errors.Join(sb.Pause(t.Context()), h.Manager.Collect(t.Context())); err != nil {
		t.Fatal(err)
	}
	names := snapshots(t, h)
	var memory string
	err := filepath.WalkDir(filepath.Join(h.Store().Dir, "snapshots", names[0]), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == "memory" {
			memory = path
		}
		return err
	})
	if err != nil || len(names) != 1 || memory == "" {
		t.Fatalf("snapshots: %q, memory %q, %v", names, memory, err)
	}
	if err := os.Truncate(memory, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := sb.Resume(t.Context()); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "memory has 1048576 bytes") {
		t.Errorf("Resume() = %v, want FailedPrecondition that names the file", err)
	}
	if s := sb.Info().Status; s != sandbox.StatusPaused {
		t.Errorf("it is %s", s)
	}
}

// The agent kills itself at points of pausing and resuming. The next one has
// the sandbox running or paused, and whole.
func TestAgentIsKilledInAPause(t *testing.T) {
	a := newAgent(t)
	a.start(t)
	id := a.create(t, 0)
	a.sh(t, id, settle)
	a.stop(t, syscall.SIGTERM)
	for _, point := range []string{
		"guest frozen", "machine paused", "machine saved", "snapshot published", "paused to be noted", "paused noted", "machine stopped",
		"slot noted", "machine started", "machine noted", "ready done", "running noted",
	} {
		t.Run(point, func(t *testing.T) {
			a.start(t, "WRENN_TEST_CRASH="+point)
			_, err := a.rpc.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id})
			if err == nil {
				_, err = a.rpc.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: id})
			}
			if err == nil {
				t.Fatal("the agent did not die")
			}
			a.wait(t)
			a.start(t)
			if s := a.info(t, id).GetStatus(); s != pb.SandboxStatus_SANDBOX_STATUS_RUNNING && s != pb.SandboxStatus_SANDBOX_STATUS_PAUSED {
				t.Errorf("status = %s", s)
			}
			if _, err := a.rpc.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: id}); err != nil {
				t.Fatal(err)
			}
			if r := a.sh(t, id, state); string(r.GetStdout()) != settled {
				t.Errorf("it holds %q", r.GetStdout())
			}
			a.stop(t, syscall.SIGTERM)
		})
	}
	a.start(t)
	if _, err := a.rpc.DestroySandbox(t.Context(), &pb.DestroySandboxRequest{SandboxId: id}); err != nil {
		t.Error(err)
	}
	a.stop(t, syscall.SIGTERM)
}
