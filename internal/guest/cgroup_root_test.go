//go:build root

package guest_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/envd/process"
)

// groups lists the cgroups of commands below dir.
func groups(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "user", "*", "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// family is a command that starts children which end with nothing but SIGKILL:
// one in its session, one in a new session, and one below that. It prints their pids.
const family = `trap "" TERM HUP
sleep 1000 & echo $!
setsid sh -c 'trap "" TERM HUP; echo $$; sleep 1000 & echo $!; wait; wait' &
trap - TERM HUP
%s`

// beginFamily returns when all of a family run.
func beginFamily(t *testing.T, e *envd, ctx context.Context, leader string) (s stream, pid uint32, children []int) {
	t.Helper()
	s, pid = e.begin(t, ctx, sh(fmt.Sprintf(family, leader)))
	text := ""
	for strings.Count(text, "\n") < 3 {
		ev := next(s)
		if ev == nil {
			t.Fatalf("the stream ended: %v after %q", s.Err(), text)
		}
		text += string(ev.GetData().GetStdout()) + string(ev.GetData().GetStderr()) + ev.GetEnd().GetStatus()
	}
	for field := range strings.FieldsSeq(text) {
		child, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
	}
	return s, pid, children
}

// endOf returns the end event of a stream whose start event was read.
func endOf(t *testing.T, s stream) *pb.ProcessEvent_EndEvent {
	t.Helper()
	for ev := next(s); ev != nil; ev = next(s) {
		if ev.GetEnd() != nil {
			return ev.GetEnd()
		}
	}
	t.Fatalf("the stream ended without an end event: %v", s.Err())
	return nil
}

func TestEndOfCommandIsEndOfAll(t *testing.T) {
	dir := cgroup2(t)
	e := startAgent(t, guest.Config{Cgroups: dir})
	for name, end := range map[string]func() []int{
		"SIGKILL": func() []int {
			_, pid, children := beginFamily(t, e, t.Context(), "sleep 1000")
			e.signal(t, pid, pb.Signal_SIGNAL_SIGKILL)
			for _, child := range children { // without waiting: they are gone when the answer comes
				if running(child) {
					t.Errorf("process %d runs after SIGKILL was answered", child)
				}
			}
			return children
		},
		"SIGTERM": func() []int {
			_, pid, children := beginFamily(t, e, t.Context(), "sleep 1000")
			e.signal(t, pid, pb.Signal_SIGNAL_SIGTERM)
			return children
		},
		"deadline": func() []int {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			s, _, children := beginFamily(t, e, ctx, "sleep 1000")
			for next(s) != nil {
			}
			if connect.CodeOf(s.Err()) != connect.CodeDeadlineExceeded {
				t.Errorf("the stream ended with %v", s.Err())
			}
			return children
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, child := range end() {
				testkit.WaitUntil(t, fmt.Sprintf("process %d is gone", child), func() bool { return !running(child) })
			}
		})
	}
}

// What a command started that ended by itself runs on, and its cgroup with it.
func TestChildrenOutliveCommand(t *testing.T) {
	dir := cgroup2(t)
	e := startAgent(t, guest.Config{Cgroups: dir})
	s, _, children := beginFamily(t, e, t.Context(), "exit 3")
	if end := endOf(t, s); end.GetExitCode() != 3 {
		t.Errorf("the command ended with %v", end)
	}
	e.run(t, sh("true"))
	for _, child := range children {
		if !running(child) {
			t.Errorf("process %d ended with its command", child)
		}
		syscall.Kill(child, syscall.SIGKILL)
	}
}

func TestCommandsHaveCgroups(t *testing.T) {
	dir := cgroup2(t)
	e := startAgent(t, guest.Config{Cgroups: dir})
	below := "/" + filepath.Base(dir) + "/user/"
	seen := map[string]bool{}
	first, pid := e.begin(t, t.Context(), sh("cat /proc/self/cgroup; sleep 1000"))
	seen[string(next(first).GetData().GetStdout())] = true
	for _, req := range []*pb.StartRequest{sh("cat /proc/self/cgroup"), ptyRequest("cat /proc/self/cgroup", 80, 24)} {
		r := e.run(t, req)
		got := strings.ReplaceAll(r.stdout.String()+r.pty.String(), "\r", "")
		if !strings.Contains(got, below) || seen[got] && req.GetPty() == nil {
			t.Errorf("cgroups %q, want another one below %s", got, below)
		}
	}
	e.end(t, pid)
	// The guest's root may have removed them.
	for _, path := range groups(t, dir) {
		if err := syscall.Rmdir(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if r := e.run(t, sh("cat /proc/self/cgroup")); !strings.Contains(r.stdout.String(), below) {
		t.Errorf("after the cgroups were removed a command is in %q", &r.stdout)
	}
	testkit.WaitUntil(t, "the cgroups are idle", func() bool { return syscall.Rmdir(filepath.Dir(groups(t, dir)[0])) == nil })
	if err := syscall.Rmdir(filepath.Join(dir, "user")); err != nil {
		t.Fatal(err)
	}
	if r := e.run(t, sh("cat /proc/self/cgroup")); strings.Contains(r.stdout.String(), below) {
		t.Errorf("after the upper cgroup was removed a command is in %q", &r.stdout)
	}
}

// openBelow counts the files below dir that this process has open.
func openBelow(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, entry := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && strings.HasPrefix(target, dir+"/user/") {
			n++
		}
	}
	return n
}

// Neither cgroups nor descriptors stay, whatever the commands do.
func TestCgroupsDoNotLeak(t *testing.T) {
	dir := cgroup2(t)
	e := startAgent(t, guest.Config{Cgroups: dir})
	for range 20 {
		var streams []stream
		for range 15 {
			s, _ := e.begin(t, t.Context(), sh("setsid sh -c 'sleep 0.01' >/dev/null 2>&1 & exit 0"))
			streams = append(streams, s)
		}
		for _, s := range streams {
			endOf(t, s)
		}
	}
	testkit.WaitUntil(t, "few cgroups are left", func() bool { return len(groups(t, dir)) <= 8 })
	testkit.WaitUntil(t, "only files of idle cgroups are open", func() bool { return openBelow(t, dir) <= 2*8 })
}

// A cgroup that a command has changed is not given to another one.
func TestChangedCgroupIsNotReused(t *testing.T) {
	dir := cgroup2(t)
	e := startAgent(t, guest.Config{Cgroups: dir})
	own := func(then string) string {
		r := e.run(t, sh("own="+filepath.Dir(dir)+"$(sed -n s/^0:://p /proc/self/cgroup); "+then))
		return strings.TrimSpace(r.stdout.String())
	}
	changed := own("mkdir $own/inner && echo $own")
	if changed == "" {
		t.Fatal("the command could not make a cgroup in its own")
	}
	testkit.WaitUntil(t, "the changed cgroup is removed", func() bool { _, err := os.Stat(changed); return errors.Is(err, fs.ErrNotExist) })
	if again := own("echo $own"); again == changed || again == "" {
		t.Errorf("after %q was changed a command is in %q", changed, again)
	}
}

// The reason of an end is for callers that ask for it.
func TestEndReason(t *testing.T) {
	e := startAgent(t, guest.Config{Cgroups: cgroup2(t)})
	for name, c := range map[string]struct {
		script string
		end    func(pid uint32)
		want   pb.EndReason
	}{
		"exit":         {"exit 1", nil, pb.EndReason_END_REASON_EXITED},
		"own signal":   {"kill -KILL $$", nil, pb.EndReason_END_REASON_EXITED},
		"SIGKILL":      {"sleep 1000", func(pid uint32) { e.signal(t, pid, pb.Signal_SIGNAL_SIGKILL) }, pb.EndReason_END_REASON_SIGNALED},
		"SIGTERM":      {"sleep 1000", func(pid uint32) { e.signal(t, pid, pb.Signal_SIGNAL_SIGTERM) }, pb.EndReason_END_REASON_SIGNALED},
		"heeded, fine": {`trap "exit 0" TERM; echo; sleep 1000 & wait`, func(pid uint32) { e.signal(t, pid, pb.Signal_SIGNAL_SIGTERM) }, pb.EndReason_END_REASON_EXITED},
	} {
		for _, asked := range []bool{true, false} {
			req := sh(c.script)
			req.EndReason = asked
			s, pid := e.begin(t, t.Context(), req)
			if strings.Contains(c.script, "trap") {
				next(s) // the trap is set
			}
			if c.end != nil {
				c.end(pid)
			}
			want := c.want
			if !asked {
				want = pb.EndReason_END_REASON_UNSPECIFIED
			}
			if end := endOf(t, s); end.GetReason() != want {
				t.Errorf("%s: asked %v: end %v, want %v", name, asked, end, want)
			}
		}
	}
}

// A user may divide the cgroups of its commands, as container engines do, and no
// others; a command of another user gets none of that.
func TestUserDividesItsCgroups(t *testing.T) {
	dir := cgroup2(t)
	testkit.Must(t, os.Chmod(dir, 0o755))
	db, _ := guestAccounts(t)
	e := startAgent(t, guest.Config{Accounts: db, Cgroups: dir})
	own := "own=" + dir + `$(sed -n 's/^0::.*\(\/user\/\)/\1/p' /proc/self/cgroup); `
	for _, tt := range []struct{ user, script, want string }{
		{"guest", own + "stat -c %u:%g $own $own/cgroup.procs", "4242:4243\n4242:4243\n"},
		{"root", own + "stat -c %u:%g $own $own/cgroup.procs", "0:0\n0:0\n"}, // of the one before
		{"guest", own + "mkdir $own/leaf && echo $$ >$own/leaf/cgroup.procs && sed -n 's/^0::.*user//p' /proc/self/cgroup", "/1/leaf\n"},
		{"guest", own + "echo 1 >$own/pids.max || echo 1 >$own/cgroup.freeze || mkdir " + dir + "/user/mine || echo refused", "refused\n"},
	} {
		r := e.runAs(t, tt.user, sh(tt.script))
		if r.stdout.String() != tt.want {
			t.Errorf("%s as %s printed %q and %q, want %q", tt.script, tt.user, &r.stdout, &r.stderr, tt.want)
		}
	}
}
