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

	"wrenn.dev"
	"wrenn.dev/internal/cli/verify"
	"wrenn.dev/internal/host"
	"wrenn.dev/internal/host/sandbox"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// settle is a script that writes to a guest's memory and disk and starts a process;
// state is a script that prints settled if all of that still exists.
const (
	settle  = "echo memory >/dev/shm/m; echo disk >/root/d; sleep 1000000 >/dev/null 2>&1 & echo $! >/root/pid"
	state   = "cat /dev/shm/m /root/d; kill -0 $(cat /root/pid) && echo alive"
	settled = "memory\ndisk\nalive\n"
)

// content is a script that prints sums of 16 MiB in memory and 16 MiB on the disk.
// It drops the page cache first, so that the disk is read.
const content = "sha256sum /dev/shm/m; sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum /root/d; kill -0 $(cat /root/pid) && echo alive"

const contentPages = 4096

// scribble returns a script that writes and zeroes random pages of memory and disk.
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

// A sandbox has the same memory and disk, byte by byte, after each of eight pauses,
// each of which writes only the difference to the one before; and its programs
// keep running.
func TestEightPauses(t *testing.T) {
	h := openHost(t)
	collectLast(t, h)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	sh(t, sb, fmt.Sprintf("head -c %d /dev/urandom >/dev/shm/m; cp /dev/shm/m /root/d; sleep 1000000 >/dev/null 2>&1 & echo $! >/root/pid", contentPages*4096))
	r := rand.New(rand.NewPCG(5, 8))
	for n := range 8 {
		sh(t, sb, scribble(r))
		want := sh(t, sb, content)
		began := time.Now()
		if err := sb.Pause(t.Context()); err != nil {
			t.Fatalf("pause %d: %v", n, err)
		}
		paused := time.Now()
		if err := sb.Resume(t.Context()); err != nil {
			t.Fatalf("resume %d: %v", n, err)
		}
		sh(t, sb, "true")
		t.Logf("pause %d: paused after %s, first command done after %s", n, paused.Sub(began), time.Since(paused))
		if got := sh(t, sb, content); got != want {
			t.Fatalf("pause %d holds\n%s\nwant\n%s", n, got, want)
		}
	}
	if err := h.Manager.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	if left := snapshots(t, h); len(left) != 1 {
		t.Errorf("snapshots after eight pauses: %q, want the last", left)
	}
	t.Run("fork", func(t *testing.T) { testFork(t, sb) })
	t.Run("checkpoint", func(t *testing.T) { testCheckpoint(t, sb) })
	t.Run("full disk", func(t *testing.T) { testFullDisk(t, h, sb) })
	t.Run("time", func(t *testing.T) { testTime(t, sb) })
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

// All copies of one moment have the same memory and disk, but each has its own
// identity, see docs/fork-safety.md. Two copies are enough to compare, and each
// takes long to answer under nested emulation.
func testFork(t *testing.T, sb *sandbox.Sandbox) {
	t.Helper()
	want := sh(t, sb, content)
	api := newVerifyAPI(t, sb)
	const copies = 2
	report, err := verify.Fork(t.Context(), api, verify.Options{Count: copies, Keep: true})
	if err != nil {
		t.Fatal(err)
	}
	checkVerdicts(t, report, copies)
	for id, box := range api.boxes {
		if got := sh(t, box, content); got != want {
			t.Errorf("%s holds\n%s\nwant\n%s", id, got, want)
		}
	}
}

// clockWatcher is a program that prints in a tight loop the sandbox's start counter
// and the time, once in each millisecond.
const clockWatcher = `
import os, time
out = os.open("/dev/shm/times", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
last = 0
while True:
    with open("/run/wrenn/generation") as f:
        start = f.read().split("generation=")[1].split()[0]
    now = time.time()
    if abs(now - last) >= 0.001:
        os.write(out, f"{start} {now:.6f}\n".encode())
        last = now
`

// No program sees an old time after a resume: a clock that is an hour behind, as if
// the sandbox had been paused for that long, is corrected before programs continue.
func testTime(t *testing.T, sb *sandbox.Sandbox) {
	t.Helper()
	const age = time.Hour
	if err := sb.Guest().WriteFile(t.Context(), "root", "/root/watcher", strings.NewReader(clockWatcher)); err != nil {
		t.Fatal(err)
	}
	// Only the resume must correct this clock.
	sh(t, sb, fmt.Sprintf("pkill chronyd; date -s @%d; setsid python3 /root/watcher </dev/null >/dev/null 2>&1 & until [ -s /dev/shm/times ]; do sleep 0.1; done",
		time.Now().Add(-age).Unix()))
	start := sh(t, sb, "head -n 1 /dev/shm/times | cut -d' ' -f1")
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	sh(t, sb, fmt.Sprintf("until grep -qv '^%s ' /dev/shm/times; do sleep 0.1; done; pkill -f '^python3 /root/watcher'", start))
	past := began.Add(time.Second - age) // date sets whole seconds
	checkWatched(t, strings.Split(sh(t, sb, "cat /dev/shm/times"), "\n"), start, past, began)
}

// checkWatched fails unless each time printed is either from before the pause, up
// to past, or from after the resume began. Once, a line may combine the start
// counter from before and the time from after: the program was stopped between
// reading the two.
func checkWatched(t *testing.T, lines []string, counter string, past, began time.Time) {
	t.Helper()
	last, between, resumed := began, 0, false
	for n, line := range lines {
		var start string
		var seconds float64
		if _, err := fmt.Sscan(line, &start, &seconds); err != nil {
			t.Fatalf("line %d is %q: %v", n, line, err)
		}
		at := time.UnixMicro(int64(seconds * 1e6))
		if !resumed && start == counter && at.Before(past) {
			continue
		}
		if at.Before(last.Add(-time.Millisecond)) { // what a float and its rounding may be off
			t.Fatalf("line %d of %d is %q after %s; the resume began at %s", n, len(lines), line, last, began)
		}
		if start == counter {
			between++
		}
		last, resumed = at, true
	}
	if !resumed || between > 1 {
		t.Errorf("of %d lines, %d have the right time but an old start counter; the last is %q", len(lines), between, lines[len(lines)-1])
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

// A full disk makes a pause fail; the sandbox keeps running.
func testFullDisk(t *testing.T, h *host.Host, sb *sandbox.Sandbox) {
	t.Helper()
	var root, store unix.Statfs_t
	if err := errors.Join(unix.Statfs("/", &root), unix.Statfs(h.Store().Dir, &store)); err != nil {
		t.Fatal(err)
	}
	if root.Fsid == store.Fsid {
		t.Skip("the store is on the root file system, which others need: it needs 4 GiB more for its own")
	}
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

// fillDisk makes a file that takes all free space.
func fillDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	pos := int64(0)
	for filled := int64(-1); filled < pos; { // XFS frees the space of removed files with a delay
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

// A resume from a truncated snapshot fails with the file's name, and the sandbox stays paused.
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

// The agent kills itself at points of pausing and resuming. With the next agent
// the sandbox is running or paused, with all its data.
func TestAgentIsKilledInAPause(t *testing.T) {
	a := newAgent(t)
	a.start(t)
	id := a.create(t, 0)
	a.sh(t, id, settle)
	a.stop(t, syscall.SIGTERM)
	for _, point := range []string{
		"guest frozen", "machine paused", "machine saved", "snapshot published", "paused to be recorded", "paused recorded", "machine stopped",
		"slot recorded", "machine started", "machine recorded", "ready done", "running recorded",
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
