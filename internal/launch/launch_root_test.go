//go:build root

package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sh(script string) Command {
	return Command{Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

func start(t *testing.T, cmd Command) *Process {
	t.Helper()
	p, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestExit(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   Exit
	}{
		"clean":  {"exit 0", Exit{Reason: "exit status 0"}},
		"status": {"echo why >&2; exit 3", Exit{Reason: "exit status 3", Code: 3}},
		"signal": {"kill -SEGV $$", Exit{Reason: "signal: segmentation fault", Code: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, sh(c.script))
			got, err := p.Wait(t.Context())
			got.Reason = strings.TrimSuffix(got.Reason, " (core dumped)")
			if err != nil || got != c.want {
				t.Errorf("Wait() = %+v, %v; want %+v", got, err, c.want)
			}
			if c.want.Code == 3 && (string(p.Log()) != "why\n" || len(p.Output()) > 0) {
				t.Errorf("Log() = %q, Output() = %q", p.Log(), p.Output())
			}
		})
	}
}

func TestProcessIsApart(t *testing.T) {
	extra, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	cmd := sh("id -u; id -g; id -G; readlink /proc/self/ns/mnt; cut -d' ' -f6 /proc/$$/stat; echo $$; env | grep -c HOME; echo three >&3; umount /proc; mount -t tmpfs x /mnt; exit 0")
	cmd.UID, cmd.GID, cmd.Files = 64_123, 64_124, []*os.File{extra}
	t.Setenv("HOME", "/not-inherited")
	p := start(t, cmd)
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Fatalf("Wait() = %+v, %v", exit, err)
	}
	lines := strings.Split(string(p.Output()), "\n")
	here, _ := os.Readlink("/proc/self/ns/mnt")
	if lines[0] != "64123" || lines[1] != "64124" || lines[2] != "64124" {
		t.Errorf("runs as %q", lines[:3])
	}
	if lines[3] == here {
		t.Error("runs in our mount namespace")
	}
	if lines[4] != lines[5] {
		t.Errorf("is in session %s, not its own %s", lines[4], lines[5])
	}
	if lines[6] != "0" {
		t.Error("inherited our environment")
	}
	if got, _ := os.ReadFile(extra.Name()); string(got) != "three\n" {
		t.Errorf("fd 3 got %q", got)
	}
}

func TestSmallPages(t *testing.T) {
	cmd := sh("grep THP_enabled /proc/$$/status")
	cmd.SmallPages = true
	p := start(t, cmd)
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Skipf("this kernel does not tell: %+v, %v", exit, err) // Linux before 5.0
	}
	if got := strings.Fields(string(p.Output())); len(got) != 2 || got[1] != "0" {
		t.Errorf("%q, want huge pages to be off", got)
	}
}

func TestMountsDoNotPropagate(t *testing.T) {
	dir := t.TempDir()
	p := start(t, sh("mount -t tmpfs none "+dir+" && touch "+dir+"/inside && ls "+dir))
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Fatalf("Wait() = %+v, %v: %s", exit, err, p.Log())
	}
	if got, _ := os.ReadDir(dir); len(got) != 0 {
		t.Errorf("its mount is seen here: %v", got)
	}
}

func TestUnmountsDoPropagate(t *testing.T) {
	shared := t.TempDir()
	mount := func(dir string) {
		t.Helper()
		if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // gone already when all went well
	}
	mount(shared)
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(shared, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(store)
	p := start(t, sh("sleep 1000"))
	if err := unix.Unmount(store, 0); err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.Identity().PID))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), store) {
		t.Error("what was unmounted is still mounted for the process")
	}
	if !strings.Contains(string(mounts), shared) {
		t.Error("the process lost a mount that is still there")
	}
}

func TestNetworkNamespace(t *testing.T) {
	ns := start(t, Command{Path: "/usr/bin/unshare", Args: []string{"--net", "sleep", "1000"}})
	path := fmt.Sprintf("/proc/%d/ns/net", ns.Identity().PID)
	here, _ := os.Readlink("/proc/self/ns/net")
	there := here
	for deadline := time.Now().Add(10 * time.Second); there == here; runtime.Gosched() {
		if there, _ = os.Readlink(path); time.Now().After(deadline) {
			t.Fatal("no namespace")
		}
	}
	cmd := sh("readlink /proc/self/ns/net")
	cmd.Namespace = path
	p := start(t, cmd)
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(p.Output())); got != there {
		t.Errorf("runs in %s, want %s", got, there)
	}
	if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != here {
		t.Error("this thread is in another namespace")
	}
}

func TestStartFails(t *testing.T) {
	for name, cmd := range map[string]Command{
		"no program":   {Path: "/nonexistent"},
		"no directory": {Path: "/bin/true", Dir: "/nonexistent"},
		"no namespace": {Path: "/bin/true", Namespace: "/nonexistent"},
	} {
		if _, err := Start(cmd); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: Start() = %v, want ErrNotExist", name, err)
		}
	}
}

func TestKill(t *testing.T) {
	p := start(t, sh("trap '' TERM INT HUP; while :; do sleep 1000; done"))
	for range 2 {
		if err := p.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := Exit{Reason: "signal: killed", Code: -1, Killed: true}
	if got, err := p.Wait(t.Context()); err != nil || got != want {
		t.Errorf("Wait() = %+v, %v; want %+v", got, err, want)
	}
}

func TestKillAfterTheEndIsNotTheReason(t *testing.T) {
	p := start(t, sh("exit 7"))
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := p.Wait(t.Context()); got.Killed || got.Code != 7 {
		t.Errorf("Wait() = %+v", got)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	p := start(t, sh("sleep 1000"))
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := p.Wait(ctx); !errors.Is(err, why) {
		t.Errorf("Wait() = %v, want %v", err, why)
	}
}

func TestNothingIsLeftOfManyProcesses(t *testing.T) {
	count := func() (fds, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	fds, goroutines := count()
	for range 50 {
		p, err := Start(Command{Path: "/bin/true"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.Identity().PID)); err == nil {
			t.Fatal("a zombie is left")
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; runtime.Gosched() { // goroutines end just after Wait
		nowFDs, nowGoroutines := count()
		if nowFDs <= fds+2 && nowGoroutines <= goroutines {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("fds: %d, before %d; goroutines: %d, before %d", nowFDs, fds, nowGoroutines, goroutines)
		}
	}
}

// TestFloodDoesNotStall proves that a guest that prints without end and without
// a reader goes on.
func TestFloodDoesNotStall(t *testing.T) {
	p := start(t, sh("i=0; while [ $i -lt 40000 ]; do echo 0123456789 2>/dev/null; i=$((i+1)); done; exit 5"))
	exit, err := p.Wait(t.Context())
	if err != nil || exit.Code != 5 {
		t.Errorf("Wait() = %+v, %v", exit, err)
	}
	if len(p.Output()) > ConsoleSize {
		t.Errorf("%d bytes are kept", len(p.Output()))
	}
}
