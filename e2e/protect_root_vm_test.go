//go:build root && vm

package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/testkit"
)

// answers fails unless the guest's agent and its commands answer.
func answers(t *testing.T, sb *sandbox.Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	res, err := sb.Guest().Exec(ctx, wrenn.ExecCommand{Cmd: "echo", Args: []string{"here"}, User: "root"})
	if err != nil || string(res.Stdout) != "here\n" {
		t.Errorf("a command beside the greedy one: %+v, %v", res, err)
	}
}

// A guest whose user uses up all memory or all processes still answers its host.
func TestGreedyCommands(t *testing.T) {
	h := openHost(t)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	for file, want := range map[string]string{
		"/proc/$(pidof envd)/cgroup":        "0::/agent",
		"/proc/$(pidof envd)/oom_score_adj": "-1000",
		"/proc/self/oom_score_adj":          "100",
	} {
		if got := sh(t, sb, "cat "+file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	t.Log(sh(t, sb, "cd /sys/fs/cgroup; grep -r . agent/memory.min agent/memory.current agent/cpu.weight user/memory.max user/pids.max user/1/memory.max user/1/pids.max; free -m"))

	t.Run("memory", func(t *testing.T) {
		// tail keeps what it reads, for want of a newline, and needs few pages of code
		// itself: an interpreter spends minutes reading its code again and again
		// before the kernel gives up on it.
		for range 2 {
			res, err := sb.Guest().Exec(t.Context(), wrenn.ExecCommand{Cmd: "tail", Args: []string{"/dev/zero"}, User: "user"})
			if err != nil {
				t.Fatal(err)
			}
			if res.Reason != wrenn.EndOutOfMemory || res.ExitCode != -1 {
				t.Errorf("a command that takes all memory ended with %+v", res)
			}
			answers(t, sb)
		}
		// A child is killed, and the shell reports that by its exit code.
		res, err := sb.Guest().Exec(t.Context(), wrenn.ExecCommand{Cmd: "sh", Args: []string{"-c", "tail /dev/zero; exit $?"}})
		if err != nil || res.Reason != wrenn.EndOutOfMemory {
			t.Errorf("a command whose child takes all memory ended with %+v, %v", res, err)
		}
	})
	t.Run("processes", func(t *testing.T) {
		bomb, err := sb.Guest().Start(t.Context(), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "bash", Args: []string{"-c", "bomb() { bomb | bomb & }; bomb; sleep 1000"}, User: "user"}})
		if err != nil {
			t.Fatal(err)
		}
		defer bomb.Close()
		// Starting programs costs a busy guest more than the shell's builtins.
		sh(t, sb, "until read -r n </sys/fs/cgroup/user/pids.current && [ $n -gt 100 ]; do :; done")
		for range 3 {
			answers(t, sb)
		}
		began := time.Now()
		// When memory is short, the kernel may have killed its first process, and with it all others.
		if err := bomb.Signal(t.Context(), wrenn.SIGKILL); err != nil && wrenn.CodeOf(err) != wrenn.NotFound {
			t.Fatal(err)
		}
		t.Logf("killed in %v", time.Since(began))
		testkit.WaitUntil(t, "nothing of the bomb is left", func() bool { return sh(t, sb, "pgrep -c -u user bash || true") == "0" })
	})
	answers(t, sb)
}

// Files are read and written with the permissions of the user that a call names.
func TestFilesAreUsers(t *testing.T) {
	h := openHost(t)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	sh(t, sb, "ln -s /etc/shadow /home/user/link && chown -h user /home/user/link")
	for _, path := range []string{"/etc/shadow", "link", "/proc/1/environ"} {
		if _, err := sb.Guest().ReadFile(t.Context(), "user", path); wrenn.CodeOf(err) != wrenn.PermissionDenied {
			t.Errorf("ReadFile(%s) = %v, want permission denied", path, err)
		}
	}
	for _, path := range []string{"/etc/new", "/root/new", "link", "/proc/sys/kernel/hostname"} {
		if err := sb.Guest().WriteFile(t.Context(), "user", path, strings.NewReader("x")); wrenn.CodeOf(err) != wrenn.PermissionDenied {
			t.Errorf("WriteFile(%s) = %v, want permission denied", path, err)
		}
	}
	if err := sb.Guest().WriteFile(t.Context(), "user", "mine/file", strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	if got := sh(t, sb, "stat -c '%U:%G %a' /home/user/mine /home/user/mine/file"); got != "user:user 755\nuser:user 644" {
		t.Errorf("the user's files are %q", got)
	}
}

// The processes that a command started freeze with it, survive a pause, and end with it.
func TestCommandIsOneOverPause(t *testing.T) {
	h := openHost(t)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	const script = `setsid sh -c 'trap "" TERM; sleep 1000; sleep 1000' & echo; sleep 1000`
	proc, err := sb.Guest().Start(t.Context(), wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "bash", Args: []string{"-c", script}, User: "user"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proc.Next(); err != nil {
		t.Fatal(err)
	}
	pid := proc.PID()
	proc.Close()
	if err := sb.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sb.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	sh(t, sb, "[ $(pgrep -c sleep) = 2 ]")
	if err := sb.Guest().Kill(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	if left := sh(t, sb, "pgrep -c sleep || true"); left != "0" {
		t.Errorf("%s processes are left", left)
	}
}
