//go:build root

package guest_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/envd/process"
	"wrenn.dev/proto/gen/envd/process/processconnect"
)

// guestAccounts are those of a guest: the user has a group beside its own.
func guestAccounts(t *testing.T) (db account.DB, home string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "envd-home-") //nolint:usetesting // the parents of t.TempDir are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	db = account.DB{Passwd: filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group")}
	home = filepath.Join(dir, "home")
	for path, text := range map[string]string{
		db.Passwd: "root:x:0:0::/root:/bin/sh\nguest:x:4242:4243::" + home + ":/bin/sh\n",
		db.Group:  "root:x:0:\nguest:x:4243:\nextra:x:4244:root,guest\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(home, 0o700), os.Chown(home, 4242, 4243)); err != nil {
		t.Fatal(err)
	}
	return db, home
}

// startAgent serves an agent of this process.
func startAgent(t *testing.T, cfg guest.Config) *envd {
	t.Helper()
	cfg.Machine, cfg.Log, cfg.RunDir = failing{}, discard(), t.TempDir()
	agent := guest.New(cfg)
	server := httptest.NewServer(agent.Handler())
	t.Cleanup(func() {
		agent.Close()
		server.CloseClientConnections()
		server.Close()
	})
	return &envd{base: server.URL, pid: os.Getpid(), http: server.Client(), ProcessClient: processconnect.NewProcessClient(server.Client(), server.URL)}
}

func (e *envd) runAs(t *testing.T, user string, req *pb.StartRequest) *result {
	t.Helper()
	s, err := e.Start(as(t.Context(), user), req)
	if err != nil {
		t.Fatal(err)
	}
	return collect(t, s)
}

func TestUser(t *testing.T) {
	db, home := guestAccounts(t)
	e := startAgent(t, guest.Config{Accounts: db})
	const script = `echo $(id -u) $(id -g) $(id -G) $HOME $USER $(pwd); grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status`
	want := fmt.Sprintf("4242 4243 4243 4244 %s guest %s\nUid:\t4242\t4242\t4242\t4242\nGid:\t4243\t4243\t4243\t4243\nGroups:\t4244 \nCapEff:\t0000000000000000\n", home, home)
	if diff := cmp.Diff(want, e.runAs(t, "guest", sh(script)).stdout.String()); diff != "" {
		t.Errorf("as guest (-want +got):\n%s", diff)
	}
	// What the user's own files are, it may open again by name.
	for name, req := range map[string]*pb.StartRequest{
		"pipes":    sh("echo a > /dev/stdout; echo b > /dev/stderr"),
		"terminal": ptyRequest("echo a > /dev/tty; echo b > $(tty)", 80, 24),
	} {
		r := e.runAs(t, "guest", req)
		if got := r.stdout.String() + r.stderr.String() + r.pty.String(); strings.ReplaceAll(got, "\r", "") != "a\nb\n" || r.end.GetExitCode() != 0 {
			t.Errorf("%s: output %q, end %v", name, got, r.end)
		}
	}
	if r := e.run(t, sh("id -u")); r.stdout.String() != "0\n" {
		t.Errorf("without a name it ran as %q, want root", &r.stdout)
	}
	if r := e.runAs(t, "root", sh("grep Groups /proc/self/status")); r.stdout.String() != "Groups:\t4244 \n" {
		t.Errorf("root's groups: %q, want those of /etc/group", &r.stdout)
	}
}

func TestUserMayNotEnter(t *testing.T) {
	db, _ := guestAccounts(t)
	e := startAgent(t, guest.Config{Accounts: db})
	req := sh("true")
	req.Process.Cwd = new(t.TempDir())
	if err := os.Chmod(req.Process.GetCwd(), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := e.Start(as(t.Context(), "guest"), req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAll(s); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("Start() in another's directory = %v, want permission_denied", err)
	}
}

// cgroup2 returns a directory of a cgroup2 file system that is removed at the end.
func cgroup2(t *testing.T) string {
	t.Helper()
	mounts, err := os.Open("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if fields[2] != "cgroup2" {
			continue
		}
		dir, err := os.MkdirTemp(fields[1], "envd-test-") //nolint:usetesting // a directory there is a cgroup
		if err != nil {
			t.Skipf("cgroup2 is not writable: %v", err)
		}
		t.Cleanup(func() {
			for _, sub := range []string{"user", ""} {
				testkit.WaitUntil(t, "the cgroup is empty", func() bool {
					err := syscall.Rmdir(filepath.Join(dir, sub))
					return err == nil || errors.Is(err, syscall.ENOENT)
				})
			}
		})
		return dir
	}
	t.Skip("no cgroup2 is mounted")
	return ""
}

// Programs do not inherit the protection of the agent.
func TestProtect(t *testing.T) {
	old, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	want := "-1000\n"
	if os.WriteFile("/proc/self/oom_score_adj", []byte(want), 0o644) != nil {
		want = string(old) // root without CAP_SYS_RESOURCE: the agent goes on unprotected
	}
	t.Cleanup(func() { os.WriteFile("/proc/self/oom_score_adj", old, 0o644) })
	e := startAgent(t, guest.Config{Protect: true})
	for _, req := range []*pb.StartRequest{sh("cat /proc/self/oom_score_adj"), ptyRequest("cat /proc/self/oom_score_adj", 80, 24)} {
		r := e.run(t, req)
		if got := strings.TrimSpace(r.stdout.String() + r.pty.String()); got != "100" {
			t.Errorf("a program's score is %s, want 100", got)
		}
	}
	if own, err := os.ReadFile("/proc/self/oom_score_adj"); err != nil || string(own) != want {
		t.Errorf("the agent's score is %q (%v), want %q", own, err, want)
	}
}

// machineState is what /init changes in a guest.
func machineState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	for _, path := range []string{
		"/proc/sys/kernel/hostname", "/proc/sys/kernel/random/boot_id", "/etc/hosts", "/etc/machine-id", "/proc/self/cgroup",
	} {
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		state[path] = string(raw)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) { // other tests mount, too
		if dir := strings.Fields(line)[1]; strings.HasPrefix(dir, "/proc/") || strings.HasPrefix(dir, "/run/wrenn/") || strings.HasSuffix(dir, "/machine-id") {
			state["mounts"] += line
		}
	}
	_, err = os.Stat("/run/wrenn")
	state["/run/wrenn"] = fmt.Sprint(err)
	return state
}

// An agent that root starts outside a guest leaves the machine alone, without a flag.
func TestRootOutsideGuest(t *testing.T) {
	before := machineState(t)
	e := startEnvdWith(t)
	e.init(t, `{"identity": {"id": "another", "generation": 7, "hostname": "another"}, "timestamp": "2001-02-03T04:05:06Z", "entropy": "AAAA"}`)
	if r := e.run(t, sh("id -u")); r.stdout.String() != "0\n" {
		t.Errorf("a command ran as %q", &r.stdout)
	}
	if diff := cmp.Diff(before, machineState(t)); diff != "" {
		t.Errorf("the agent changed the machine (-before +after):\n%s", diff)
	}
	if year := time.Now().Year(); year < 2020 {
		t.Errorf("the agent set the clock to %d", year)
	}
}
