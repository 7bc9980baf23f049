//go:build root && vm

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// counter starts a program that has a secret and a number only in its memory, and
// writes both to a file again and again.
const counter = `setsid sh -c 'secret=$(cat /proc/sys/kernel/random/uuid); n=0
	while :; do n=$((n+1)); echo "$secret $n" >/dev/shm/new; mv /dev/shm/new /dev/shm/told; sleep 0.2; done' >/dev/null 2>&1 </dev/null &
	while ! cat /dev/shm/told 2>/dev/null; do sleep 0.05; done`

// TestSnapshotsByTheAPI tests snapshots through all parts, from the SDK to the guest.
func TestSnapshotsByTheAPI(t *testing.T) {
	s := newStack(t, "wsur", "10.228.0.0/16")
	t.Run("pause", s.testPause)
	t.Run("fork", s.testFork)
	t.Run("checkpoints", s.testCheckpoints)
	t.Run("at the timeout", s.testTimeout)
	t.Run("woken by its use", s.testAutoResume)
	s.clean(t, "snapshots")
}

// sleeper makes a sandbox that lives as long as the test.
func (s *stack) sleeper(t *testing.T, change func(*client.CreateSandbox)) string {
	t.Helper()
	wish := client.CreateSandbox{MemoryMB: 128, Timeout: time.Hour, Metadata: map[string]string{"mark": "snapshots"}}
	if change != nil {
		change(&wish)
	}
	sb, err := s.api.CreateSandbox(t.Context(), wish)
	if err != nil {
		t.Fatal(err)
	}
	s.deleteAfter(t, sb.ID)
	return sb.ID
}

func (s *stack) deleteAfter(t *testing.T, id string) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.api.DeleteSandbox(context.WithoutCancel(t.Context()), id); err != nil {
			t.Error(err)
		}
	})
}

// sh runs a script in a sandbox and returns what it prints.
func (s *stack) sh(t *testing.T, id, script string) (string, error) {
	t.Helper()
	r, err := s.api.Exec(t.Context(), id, client.Command{Cmd: "/bin/sh", Args: []string{"-c", script}, User: "root", Timeout: patience})
	if err != nil {
		return "", err
	}
	if r.ExitCode != 0 {
		return "", fmt.Errorf("%s: %s", r.Status, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout)), nil
}

func (s *stack) must(t *testing.T, id, script string) string {
	t.Helper()
	out, err := s.sh(t, id, script)
	if err != nil {
		t.Fatalf("in %s: %v", id, err)
	}
	return out
}

// checkCounter fails unless the counter of a sandbox continues from what it told before.
func (s *stack) checkCounter(t *testing.T, id, told string) {
	t.Helper()
	var secret string
	var n, now int
	if _, err := fmt.Sscan(told, &secret, &n); err != nil {
		t.Fatalf("the counter told %q: %v", told, err)
	}
	testkit.WaitNoError(t, "the counter continues", func() error {
		said, err := s.sh(t, id, "cat /dev/shm/told")
		if err != nil {
			return err
		}
		var other string
		if _, err := fmt.Sscan(said, &other, &now); err != nil || other != secret {
			t.Fatalf("it told %q, and now %q: another program", told, said)
		}
		if now <= n {
			return fmt.Errorf("it told %q, and now %q", told, said)
		}
		return nil
	})
}

func (s *stack) testPause(t *testing.T) {
	id := s.sleeper(t, nil)
	told := s.must(t, id, counter)
	for range 2 {
		if sb, err := s.api.PauseSandbox(t.Context(), id); err != nil || sb.State != client.Paused {
			t.Fatalf("paused: %+v, %v", sb, err)
		}
	}
	ping, err := s.agent.rpc.Ping(t.Context(), &pb.PingRequest{})
	if err != nil || ping.GetCapacity().GetMemoryMbUsed() != 0 {
		t.Errorf("the host has %v, %v", ping.GetCapacity(), err)
	}
	if err := s.usable(t, id); client.CodeOf(err) != client.InvalidState || !strings.Contains(err.Error(), "resume it first") {
		t.Errorf("a command in a paused one: %v", err)
	}
	if sb, err := s.api.ResumeSandbox(t.Context(), id); err != nil || sb.State != client.Running {
		t.Fatalf("resumed: %+v, %v", sb, err)
	}
	s.checkCounter(t, id, told)
}

func (s *stack) testFork(t *testing.T) {
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	id := s.sleeper(t, nil)
	told := s.must(t, id, counter)
	forked, err := s.api.ForkSandbox(t.Context(), id, client.Fork{Count: 2})
	if err != nil || len(forked.Sandboxes) != 2 || len(forked.Errors) != 0 {
		t.Fatalf("%+v, %v", forked, err)
	}
	boots := map[string]bool{s.must(t, id, bootID): true}
	for _, sb := range forked.Sandboxes {
		s.deleteAfter(t, sb.ID)
		if sb.ParentID != id || sb.State != client.Running || sb.Metadata["mark"] != "snapshots" {
			t.Errorf("copy: %+v", sb)
		}
		s.checkCounter(t, sb.ID, told)
		s.must(t, sb.ID, "echo mine >/root/mine")
		boots[s.must(t, sb.ID, bootID)] = true
	}
	if len(boots) != 3 {
		t.Errorf("three machines have the boot ids %v", boots)
	}
	if out := s.must(t, id, "ls /root/mine 2>&1 || true"); !strings.Contains(out, "No such file") {
		t.Errorf("what a copy wrote is in the original: %s", out)
	}
	if err := s.api.DeleteSandbox(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for _, sb := range forked.Sandboxes { // the test no longer needs them
		if err := s.usable(t, sb.ID); err != nil {
			t.Error(err)
		}
	}
}

func (s *stack) testCheckpoints(t *testing.T) {
	id := s.sleeper(t, nil)
	state := func(want string) {
		t.Helper()
		if got := s.must(t, id, "cat /root/disk /dev/shm/memory | tr '\\n' ' '"); got != want {
			t.Errorf("the sandbox has %q, want %q", got, want)
		}
	}
	mark := func(name string) string {
		t.Helper()
		s.must(t, id, fmt.Sprintf("echo %[1]s >/root/disk; echo %[1]s >/dev/shm/memory", name))
		cp, err := s.api.CreateCheckpoint(t.Context(), id, name)
		if err != nil {
			t.Fatal(err)
		}
		return cp.ID
	}
	one := mark("one")
	two := mark("two")
	if _, err := s.api.RestoreCheckpoint(t.Context(), id, one); err != nil {
		t.Fatal(err)
	}
	state("one one")
	three := mark("three")
	out, err := s.wrenn(t, "checkpoint", "tree", id)
	ids := []string{id, one, two, three}
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if err != nil || i >= len(ids) || !strings.Contains(line, ids[i]) || strings.Contains(line, "<-") != (ids[i] == three) {
			t.Fatalf("tree of %q: %v\n%s", ids, err, out)
		}
	}
	if _, err := s.api.RestoreCheckpoint(t.Context(), id, two); err != nil { // the other branch
		t.Fatal(err)
	}
	state("two two")
	if err := s.api.DeleteCheckpoint(t.Context(), id, one); err != nil {
		t.Fatal(err)
	}
	all, err := s.api.Checkpoints(t.Context(), id)
	if err != nil || len(all.Checkpoints) != 2 || all.Head != two || all.Checkpoints[0].ParentID != "" {
		t.Errorf("%+v, %v", all, err)
	}
	var own, sizes int64
	for _, cp := range all.Checkpoints { // both share most of the memory with the template
		if cp.OwnBytes == nil || *cp.OwnBytes >= cp.SizeBytes {
			t.Fatalf("checkpoint %s of %d bytes does not share any", cp.Name, cp.SizeBytes)
		}
		own, sizes = own+*cp.OwnBytes, sizes+cp.SizeBytes
	}
	if all.DiskBytes == nil || *all.DiskBytes < own || *all.DiskBytes >= sizes-own {
		t.Errorf("checkpoints of %d bytes, %d of them their own, do not share any", sizes, own)
	}
	if _, err := s.api.RestoreCheckpoint(t.Context(), id, one); client.CodeOf(err) != client.NotFound {
		t.Errorf("restore to a deleted checkpoint: %v", err)
	}
	state("two two")
}

// wrenn runs the program to its end.
func (s *stack) wrenn(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../bin/wrenn", append([]string{"--url", s.url}, args...)...)
	cmd.Env = append(cmd.Environ(), "WRENN_API_KEY="+s.key)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}

// testTimeout lets sandboxes pause at their timeout. Their rows change later: requests must work all the same.
func (s *stack) testTimeout(t *testing.T) {
	asleep := func(id string) {
		t.Helper()
		testkit.WaitNoError(t, "it sleeps", func() error {
			inv, err := s.agent.rpc.ListSandboxes(t.Context(), &pb.ListSandboxesRequest{})
			if err != nil {
				return err
			}
			for _, info := range inv.GetSandboxes() {
				if info.GetSandboxId() == id && info.GetStatus() == pb.SandboxStatus_SANDBOX_STATUS_PAUSED {
					return nil
				}
			}
			return fmt.Errorf("the host has %v", inv.GetSandboxes())
		})
	}
	short := func(wakes bool) func(*client.CreateSandbox) {
		return func(c *client.CreateSandbox) {
			c.Timeout, c.OnTimeout, c.AutoResume = 3*time.Second, client.PauseOnTimeout, wakes
		}
	}
	woken := s.sleeper(t, short(true))
	told := s.must(t, woken, counter)
	asleep(woken)
	s.checkCounter(t, woken, told) // its row may be running or paused
	asleep(woken)
	testkit.WaitNoError(t, "its row says so", func() error {
		sb, err := s.api.Sandbox(t.Context(), woken)
		if err == nil && sb.State != client.Paused {
			err = fmt.Errorf("it is %s", sb.State)
		}
		return err
	})
	s.checkCounter(t, woken, told)

	sleeping := s.sleeper(t, short(false))
	asleep(sleeping)
	if err := s.usable(t, sleeping); client.CodeOf(err) != client.InvalidState || !strings.Contains(err.Error(), "wrenn sandbox resume "+sleeping) {
		t.Errorf("a command in one that sleeps: %v", err)
	}
	testkit.WaitNoError(t, "it is resumed, and used before it sleeps again", func() error {
		if _, err := s.api.ResumeSandbox(t.Context(), sleeping); err != nil {
			return err
		}
		return s.usable(t, sleeping)
	})
}

// testAutoResume uses a paused sandbox in each way that resumes it. A pause that a user requests
// ends the sandbox's streams: their clients must not resume it by connecting again.
func (s *stack) testAutoResume(t *testing.T) {
	id := s.sleeper(t, func(c *client.CreateSandbox) { c.AutoResume = true })
	told := s.must(t, id, counter)
	local := t.TempDir()
	if err := os.WriteFile(filepath.Join(local, "note"), []byte("copied"), 0o600); err != nil {
		t.Fatal(err)
	}
	program := func(args ...string) func() (string, error) {
		return func() (string, error) { return s.wrenn(t, args...) }
	}
	for _, way := range []struct {
		name string
		use  func() (string, error)
		want string
	}{
		{"wrenn sandbox exec", program("sandbox", "exec", "-n", id, "echo", "by the program"), "by the program\n"},
		{"wrenn sandbox exec -t", program("sandbox", "exec", "-nt", id, "echo", "by a terminal"), "by a terminal\r\n"},
		{"wrenn sandbox cp -r", program("sandbox", "cp", "-r", local, id+":/root/copy"), ""},
		{"wrenn sandbox cp", program("sandbox", "cp", id+":/root/copy/note", "-"), "copied"},
		{"stream", func() (string, error) { return s.stream(t, id, "cat /root/copy/note") }, "copied"},
		{"exec", func() (string, error) { return s.sh(t, id, "cat /root/copy/note") }, "copied"},
		{"checkpoint", func() (string, error) {
			_, err := s.api.CreateCheckpoint(t.Context(), id, "of one that slept")
			return "", err
		}, ""},
	} {
		t.Run(way.name, func(t *testing.T) {
			if _, err := s.api.PauseSandbox(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if out, err := way.use(); err != nil || out != way.want {
				t.Errorf("%q, %v; want %q", out, err, way.want)
			}
			if sb, err := s.api.Sandbox(t.Context(), id); err != nil || sb.State != client.Running {
				t.Errorf("%+v, %v", sb, err)
			}
		})
	}
	s.checkCounter(t, id, told)
	t.Run("paused under a stream", func(t *testing.T) {
		stream, err := s.api.Start(t.Context(), id, client.Command{Cmd: "cat"}, client.StartOptions{Stdin: true})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		if _, err := s.api.PauseSandbox(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if sb, err := s.api.Sandbox(t.Context(), id); err != nil || sb.State != client.Paused {
			t.Errorf("a stream that waits wakes the sandbox: %+v, %v", sb, err)
		}
		if _, err := stream.Write([]byte("on\n")); err != nil { // this does
			t.Fatal(err)
		}
		if event, err := stream.Receive(); err != nil || string(event.Stdout) != "on\n" {
			t.Errorf("the stream after the pause: %+v, %v", event, err)
		}
	})
}

// stream is like sh, but through a stream.
func (s *stack) stream(t *testing.T, id, script string) (string, error) {
	t.Helper()
	stream, err := s.api.Start(t.Context(), id, client.Command{Cmd: "/bin/sh", Args: []string{"-c", script}, User: "root"}, client.StartOptions{})
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var out, said strings.Builder
	exit, err := stream.Copy(&out, &said)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%s: %s", exit.Status, said.String())
	}
	return out.String(), err
}
