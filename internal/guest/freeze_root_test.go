//go:build root

package guest_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/envd/process"
)

// ticker is a program that counts in a file for as long as it runs.
func ticker(file string) *pb.StartRequest {
	return sh(`i=0; echo ready; while :; do i=$((i+1)); echo $i >` + file + `.new; mv ` + file + `.new ` + file + `; done`)
}

func count(t *testing.T, file string) int {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// control calls one of the host's calls and fails unless the answer is 204.
func (e *envd) control(t *testing.T, path string) {
	t.Helper()
	if status, _, answer := e.call(t, http.MethodPost, path, "{}"); status != http.StatusNoContent {
		t.Fatalf("%s: status %d: %s", path, status, answer)
	}
}

func TestFreeze(t *testing.T) {
	dir := cgroup2(t)
	e := startAgent(t, guest.Config{Cgroups: dir})
	files := []string{filepath.Join(t.TempDir(), "pipe"), filepath.Join(t.TempDir(), "pty")}
	running, _ := e.begin(t, t.Context(), ticker(files[0]))
	pty := ptyRequest("", 80, 24)
	pty.Process.Args = ticker(files[1]).GetProcess().GetArgs()
	e.begin(t, t.Context(), pty)
	for _, file := range files {
		testkit.WaitUntil(t, "the program counts", func() bool { _, err := os.Stat(file); return err == nil })
	}
	for range 2 { // twice is no error
		e.control(t, "/freeze")
	}
	frozen := []int{count(t, files[0]), count(t, files[1])}
	// Whatever is asked of the agent itself is answered.
	if status, _, _ := e.call(t, http.MethodGet, "/health", ""); status != http.StatusNoContent {
		t.Errorf("health: %d", status)
	}
	// A program that is started now waits. The answer to its stream is the proof
	// that it ran, so it is read later.
	started := make(chan *result, 1)
	go func() {
		r := &result{}
		if s, err := e.Start(t.Context(), sh("echo late")); err == nil {
			r, _ = readAll(s)
		}
		started <- r
	}()
	// The programs have the time of several calls in which they would count on.
	for range 20 {
		e.call(t, http.MethodGet, "/metrics", "")
	}
	for i, file := range files {
		if n := count(t, file); n != frozen[i] {
			t.Errorf("%s counted from %d to %d while frozen", filepath.Base(file), frozen[i], n)
		}
	}
	select {
	case r := <-started:
		t.Errorf("a program ran while frozen: %+v", r)
	default:
	}
	for range 2 {
		e.control(t, "/thaw")
	}
	if r := <-started; r.stdout.String() != "late\n" {
		t.Errorf("the program that waited printed %q", &r.stdout)
	}
	for i, file := range files {
		testkit.WaitUntil(t, "the program counts again", func() bool { return count(t, file) > frozen[i] })
	}
	if ev := next(running); string(ev.GetData().GetStdout()) != "ready\n" {
		t.Errorf("the stream that was open before gives %v", ev)
	}
}

// Programs in cgroups that users made are frozen, too, and /init thaws them.
func TestFreezeGroupsOfUsers(t *testing.T) {
	dir := cgroup2(t)
	e := startAgent(t, guest.Config{Cgroups: dir})
	file := filepath.Join(t.TempDir(), "count")
	container := filepath.Join(dir, "container", "inner")
	t.Cleanup(func() {
		for _, path := range []string{container, filepath.Dir(container)} {
			// What the program started may end a moment after it.
			testkit.WaitUntil(t, "the cgroup is empty", func() bool {
				err := os.Remove(path)
				return err == nil || os.IsNotExist(err)
			})
		}
	})
	req := ticker(file)
	req.Process.Args[1] = "mkdir -p " + container + " && echo $$ >" + container + "/cgroup.procs && " + req.Process.Args[1]
	_, pid := e.begin(t, t.Context(), req)
	testkit.WaitUntil(t, "the program counts", func() bool { _, err := os.Stat(file); return err == nil })
	e.control(t, "/freeze")
	frozen := count(t, file)
	for range 20 {
		e.call(t, http.MethodGet, "/metrics", "")
	}
	if n := count(t, file); n != frozen {
		t.Errorf("counted from %d to %d while frozen", frozen, n)
	}
	e.init(t, `{}`)
	testkit.WaitUntil(t, "the program counts again", func() bool { return count(t, file) > frozen })
	e.end(t, pid)
}

// A program that forks as fast as it can stops too, with all that it forks.
func TestFreezeForks(t *testing.T) {
	dir := cgroup2(t)
	e := startAgent(t, guest.Config{Cgroups: dir})
	file := filepath.Join(t.TempDir(), "count")
	_, pid := e.begin(t, t.Context(), sh("while :; do (echo >>"+file+") & (echo >>"+file+") & wait; done"))
	size := func() int64 {
		info, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	testkit.WaitUntil(t, "it forks", func() bool { return size() > 20 })
	e.control(t, "/freeze")
	frozen := size()
	for range 20 {
		e.call(t, http.MethodGet, "/metrics", "")
	}
	if n := size(); n != frozen {
		t.Errorf("%d forks while frozen", n-frozen)
	}
	e.control(t, "/thaw")
	testkit.WaitUntil(t, "it forks again", func() bool { return size() > frozen })
	e.end(t, pid)
}

// An agent that is told to end with frozen programs ends, and they with it.
func TestCloseFrozen(t *testing.T) {
	e := startAgent(t, guest.Config{Cgroups: cgroup2(t)})
	e.begin(t, t.Context(), sh("while :; do :; done"))
	e.control(t, "/freeze")
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		if s, err := e.Start(t.Context(), sh("true")); err == nil {
			s.Close()
		}
	}()
	t.Cleanup(func() { <-waits })
}

// end kills a program and waits until it is gone.
func (e *envd) end(t *testing.T, pid uint32) {
	t.Helper()
	e.signal(t, pid, pb.Signal_SIGNAL_SIGKILL)
	testkit.WaitUntil(t, "the program is gone", func() bool {
		_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(int(pid))))
		return err != nil
	})
}
