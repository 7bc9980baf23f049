package identity

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

// machine notes what it is asked for.
type machine struct {
	hostname string
	shown    map[string]string // what is shown, by where
	signals  []string
	err      error
}

func (m *machine) SetHostname(name string) error {
	m.hostname = name
	return m.err
}

func (m *machine) Show(file, path string) error {
	m.shown[path] = file
	return nil
}

func (m *machine) Signal(pid, signal int) error {
	m.signals = append(m.signals, fmt.Sprintf("%d %d", pid, signal))
	return nil
}

// guest is a keeper of a guest whose files are in a directory.
type guest struct {
	*Keeper
	machine *machine
	dir     string
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	g := &guest{machine: &machine{shown: map[string]string{}}, dir: t.TempDir()}
	for name, text := range map[string]string{
		"etc/hosts": "127.0.0.1 localhost sandbox\n# mine\n10.1.1.1 db", "etc/machine-id": "",
		"var/lib/dbus/machine-id": "old\n",
	} {
		path := filepath.Join(g.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	g.Keeper = New(Config{Machine: g.machine, Log: slog.New(slog.DiscardHandler), RunDir: filepath.Join(g.dir, "run"), Root: g.dir})
	return g
}

func (g *guest) read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

var noon = time.Date(2026, 11, 24, 12, 0, 0, 5, time.UTC)

func (g *guest) become(t *testing.T, id Identity, want bool) {
	t.Helper()
	changed, err := g.Become(id, noon)
	if err != nil || changed != want {
		t.Fatalf("Become(%v) = %t, %v; want %t", id, changed, err, want)
	}
}

func TestBecome(t *testing.T) {
	g := newGuest(t)
	g.become(t, Identity{ID: "ia", StartCounter: 1, Hostname: "box"}, true)
	if diff := cmp.Diff("id=ia\ngeneration=1\ntime=2026-11-24T12:00:00.000000005Z\n", g.read(t, "run/generation")); diff != "" {
		t.Errorf("identity mismatch (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("127.0.0.1 localhost sandbox\n# mine\n10.1.1.1 db\n127.0.1.1\tbox\t# this sandbox\n", g.read(t, "etc/hosts")); diff != "" {
		t.Errorf("hosts mismatch (-want +got):\n%s", diff)
	}
	if g.machine.hostname != "box" {
		t.Errorf("host name %q", g.machine.hostname)
	}
	bootID, machineID := g.read(t, "run/boot_id"), g.read(t, "run/machine_id")
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\n$`).MatchString(bootID) {
		t.Errorf("boot id %q", bootID)
	}
	if !regexp.MustCompile(`^[0-9a-f]{32}\n$`).MatchString(machineID) {
		t.Errorf("machine id %q", machineID)
	}
	in := func(name string) string { return filepath.Join(g.dir, name) }
	if diff := cmp.Diff(map[string]string{
		"/proc/sys/kernel/random/boot_id": in("run/boot_id"),
		in("etc/machine-id"):              in("run/machine_id"), in("var/lib/dbus/machine-id"): in("run/machine_id"),
	}, g.machine.shown); diff != "" {
		t.Errorf("shown (-want +got):\n%s", diff)
	}
	shown, err := os.Stat(in("run/boot_id"))
	if err != nil {
		t.Fatal(err)
	}

	g.become(t, Identity{ID: "ia", StartCounter: 1, Hostname: "box"}, false) // said again
	if g.read(t, "run/boot_id") != bootID {
		t.Error("who is told the same again changes its boot id")
	}
	g.become(t, Identity{ID: "ia", StartCounter: 2}, true) // resumed
	if g.read(t, "run/boot_id") == bootID || g.read(t, "run/machine_id") != machineID || g.machine.hostname != "ia" {
		t.Errorf("resumed: boot id new %t, machine id new %t, host name %q; want true, false, ia",
			g.read(t, "run/boot_id") != bootID, g.read(t, "run/machine_id") != machineID, g.machine.hostname)
	}
	g.become(t, Identity{ID: "ib", StartCounter: 2}, true) // a fork
	if g.read(t, "run/machine_id") == machineID {
		t.Error("a fork keeps the machine id")
	}
	if n := strings.Count(g.read(t, "etc/hosts"), "127.0.1.1"); n != 1 {
		t.Errorf("%d lines in /etc/hosts, want one", n)
	}
	// The first file stays mounted over the kernel's.
	if again, err := os.Stat(in("run/boot_id")); err != nil || !os.SameFile(shown, again) {
		t.Errorf("the file of the boot id is another one: %v", err)
	}
}

func TestBecomeInvalid(t *testing.T) {
	g := newGuest(t)
	for _, id := range []Identity{{}, {ID: "a b"}, {ID: "-a"}, {ID: strings.Repeat("a", 64)}, {ID: "a", Hostname: "b\nc"}} {
		if _, err := g.Become(id, noon); err == nil {
			t.Errorf("Become(%+v) = nil", id)
		}
	}
	g.machine.err = os.ErrPermission
	id := Identity{ID: "ia", StartCounter: 1}
	if _, err := g.Become(id, noon); !errors.Is(err, os.ErrPermission) {
		t.Errorf("Become() = %v, want %v", err, os.ErrPermission)
	}
	g.machine.err = nil
	g.become(t, id, true) // it is tried again
}

// What the guest's root did to /etc/hosts does not keep a sandbox from being restored.
func TestBrokenHosts(t *testing.T) {
	for name, spoil := range map[string]func(hosts, victim string) error{
		"a link":      func(hosts, victim string) error { return errors.Join(os.Remove(hosts), os.Symlink(victim, hosts)) },
		"nothing":     func(hosts, _ string) error { return os.Remove(hosts) },
		"a directory": func(hosts, _ string) error { return errors.Join(os.Remove(hosts), os.MkdirAll(hosts+"/full", 0o755)) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			victim := filepath.Join(g.dir, "victim")
			if err := errors.Join(os.WriteFile(victim, []byte("mine"), 0o600), spoil(filepath.Join(g.dir, "etc/hosts"), victim)); err != nil {
				t.Fatal(err)
			}
			g.become(t, Identity{ID: "ia"}, true)
			if got := g.read(t, "victim"); got != "mine" {
				t.Errorf("a link was followed: %q", got)
			}
			if left, err := filepath.Glob(filepath.Join(g.dir, "etc", ".wrenn-*")); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// Where the C library knows the host name, nothing is written to the disk.
func TestHostsWithMyhostname(t *testing.T) {
	g := newGuest(t)
	before := g.read(t, "etc/hosts")
	if err := os.WriteFile(filepath.Join(g.dir, "etc/nsswitch.conf"), []byte("passwd: files\nhosts:  files myhostname dns\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	g.become(t, Identity{ID: "ia"}, true)
	if diff := cmp.Diff(before, g.read(t, "etc/hosts")); diff != "" {
		t.Errorf("hosts changed (-before +after):\n%s", diff)
	}
}

// registered starts a shell that registers for a restore by hold, and catches the signals of trap.
func (g *guest) registered(t *testing.T, trap, hold string) (pid string, file string) {
	t.Helper()
	file = filepath.Join(g.dir, "run", "notify.d")
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", trap+"; file="+file+"/$$; "+hold+"; echo ready; read -r _")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid = strconv.Itoa(cmd.Process.Pid)
	return pid, filepath.Join(file, pid)
}

func TestNotify(t *testing.T) {
	const lock = `exec 9>$file; echo USR1 >&9; flock 9`
	for _, tc := range []struct {
		name, trap, hold string
		want             []string // after "%s" became the pid
		removed          bool
	}{
		{"registered", "trap : USR1", lock, []string{"%s 10"}, false},
		{"by number", "trap : USR2", `exec 9>$file; echo 12 >&9; flock 9`, []string{"%s 12"}, false},
		{"not locked", "trap : USR1", "echo USR1 >$file", nil, true},
		{"not caught", ":", lock, nil, false},
		{"no signal", "trap : USR1", `exec 9>$file; echo BOOM >&9; flock 9`, nil, false},
		{"a pipe", "trap : USR1", "mkfifo $file", nil, false},
		{"no pid", "trap : USR1", `file=$file.txt; ` + lock, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGuest(t)
			pid, file := g.registered(t, tc.trap, tc.hold)
			g.become(t, Identity{ID: "ia"}, true)
			var want []string
			for _, w := range tc.want {
				want = append(want, fmt.Sprintf(w, pid))
			}
			if diff := cmp.Diff(want, g.machine.signals); diff != "" {
				t.Errorf("signals mismatch (-want +got):\n%s", diff)
			}
			if _, err := os.Lstat(file); tc.name != "no pid" && os.IsNotExist(err) != tc.removed {
				t.Errorf("removed %t, want %t", os.IsNotExist(err), tc.removed)
			}
		})
	}
}

// The lock of POSIX counts too: it is what Java has.
func TestNotifyByPOSIXLock(t *testing.T) {
	testkit.Program(t, "python3")
	g := newGuest(t)
	dir := filepath.Join(g.dir, "run", "notify.d")
	cmd := exec.CommandContext(t.Context(), "python3", "-c", `import fcntl, os, signal, sys
signal.signal(signal.SIGHUP, lambda *_: None)
f = open(f"`+dir+`/{os.getpid()}", "w")
fcntl.lockf(f, fcntl.LOCK_EX)
f.write("SIGHUP"); f.flush()
print("ready", flush=True)
sys.stdin.read()`)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stdin.Close(); cmd.Wait() }()
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	g.become(t, Identity{ID: "ia"}, true)
	if diff := cmp.Diff([]string{fmt.Sprintf("%d 1", cmd.Process.Pid)}, g.machine.signals); diff != "" {
		t.Errorf("signals mismatch (-want +got):\n%s", diff)
	}
}

// A reader that has the file open or mounted sees the next identity, also when its
// text is shorter; a file that was removed is made again.
func TestIdentityFileIsOverwritten(t *testing.T) {
	g := newGuest(t)
	become := func(id Identity, at time.Time) string {
		t.Helper()
		if _, err := g.Become(id, at); err != nil {
			t.Fatal(err)
		}
		return g.read(t, "run/generation")
	}
	become(Identity{ID: "ialong", StartCounter: 1000}, noon)
	seen, err := os.Open(filepath.Join(g.dir, "run/generation"))
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	want := "id=ib\ngeneration=2\ntime=2026-11-24T12:00:00Z\n"
	if diff := cmp.Diff(want, become(Identity{ID: "ib", StartCounter: 2}, noon.Truncate(time.Second))); diff != "" {
		t.Errorf("identity mismatch (-want +got):\n%s", diff)
	}
	if raw, err := io.ReadAll(seen); err != nil || string(raw) != want {
		t.Errorf("who had it open reads %q, %v", raw, err)
	}
	if err := os.Remove(filepath.Join(g.dir, "run/generation")); err != nil {
		t.Fatal(err)
	}
	if got := become(Identity{ID: "ib", StartCounter: 3}, noon); !strings.Contains(got, "generation=3\n") {
		t.Errorf("after it was removed it holds %q", got)
	}
}
