//go:build root && vm

package e2e

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// everything is a run of "wrenn up" in the test's own directory.
type everything struct {
	dir  string
	cmd  *exec.Cmd
	out  *watched
	done chan error
}

// up starts Wrenn and returns when it is ready.
func up(t *testing.T, dir string, flags ...string) *everything {
	t.Helper()
	e := startUp(t, dir, flags...)
	e.ready(t)
	return e
}

// ready waits until it serves.
func (e *everything) ready(t *testing.T) {
	t.Helper()
	ready := make(chan bool, 1)
	go func() { ready <- e.out.wait("Ctrl-C stops it", patience) }()
	select {
	case ok := <-ready:
		if !ok {
			t.Fatalf("up is not ready:\n%s", e.out)
		}
	case err := <-e.done:
		t.Fatalf("up ended with %v:\n%s", err, e.out)
	}
}

// startUp runs "wrenn up" in a separate process group, as a shell does.
func startUp(t *testing.T, dir string, args ...string) *everything {
	t.Helper()
	e := prepareUp(t, dir, args...)
	e.start(t)
	return e
}

// prepareUp is startUp without the start.
func prepareUp(t *testing.T, dir string, args ...string) *everything {
	t.Helper()
	args = append([]string{
		"up", "--state", filepath.Join(dir, "state"), "--run", filepath.Join(dir, "run"), "--images", needed(t, "WRENN_TEST_IMAGES"),
		"--listen", "127.0.0.1:0", "--net-range", "10.213.0.0/16", "--net-prefix", prefix,
	}, args...)
	if err := os.Chmod(dir, 0o711); err != nil { // the database's user passes through it
		t.Fatal(err)
	}
	e := &everything{dir: dir, out: newWatched(), done: make(chan error, 1)}
	e.cmd = e.command(args...)
	e.cmd.Stdout, e.cmd.Stderr = e.out, e.out
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	e.cmd.WaitDelay = patience // its children hold its output a little longer when it is killed
	return e
}

func (e *everything) start(t *testing.T) {
	t.Helper()
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.cmd.Process.Kill() }) // it has ended in every test that passes
	go func() {
		err := e.cmd.Wait()
		e.done <- err
	}()
}

// command is a run of wrenn with the configuration that up wrote.
func (e *everything) command(args ...string) *exec.Cmd {
	cmd := exec.Command("../bin/wrenn", args...)
	cmd.Env = append(os.Environ(), "WRENN_CONFIG="+e.config(), "WRENN_API_KEY=", "E2B_API_KEY=", "WRENN_API_URL=", "DATABASE_URL=")
	return cmd
}

func (e *everything) config() string { return filepath.Join(e.dir, "config.toml") }

// wrenn runs a command, waits until it ends, and returns its exit code and output.
func (e *everything) wrenn(t *testing.T, stdin io.Reader, args ...string) (int, string) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := e.command(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	stuck := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	err := cmd.Run()
	stuck.Stop()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("wrenn %q: %v", args, exit)
	}
	if errOut.Len() > 0 {
		t.Logf("wrenn %q: %s", args, &errOut)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// must is like wrenn, and fails the test unless the command succeeds.
func (e *everything) must(t *testing.T, stdin io.Reader, args ...string) string {
	t.Helper()
	code, out := e.wrenn(t, stdin, args...)
	if code != 0 {
		t.Fatalf("wrenn %q ended with %d and printed %q", args, code, out)
	}
	return out
}

func (e *everything) create(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(e.must(t, nil, "sandbox", "create", "--timeout", "1h"))
}

// stop sends what Ctrl-C sends, and waits for the end.
func (e *everything) stop(t *testing.T) {
	t.Helper()
	if err := e.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := e.ended(t); err != nil {
		t.Errorf("up ended with %v:\n%s", err, e.out)
	}
}

// ended waits for the end of up and returns its error.
func (e *everything) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-e.done:
		return err
	case <-time.After(patience):
		t.Fatalf("up does not end:\n%s", e.out)
		return nil
	}
}

func TestUp(t *testing.T) {
	e := up(t, stateDir(t), "--on-exit", "destroy")
	if info, err := os.Stat(e.config()); err != nil || info.Mode() != 0o600 {
		t.Errorf("the configuration, which holds a key: %v, %v", info.Mode(), err)
	}
	id := e.create(t)
	t.Run("exit code", func(t *testing.T) {
		if code, out := e.wrenn(t, nil, "sandbox", "exec", id, "--", "sh", "-c", "echo hello; exit 3"); code != 3 || out != "hello\n" {
			t.Errorf("code %d, printed %q", code, out)
		}
		if code, out := e.wrenn(t, nil, "sandbox", "exec", "--timeout", "3s", id, "--", "sh", "-c", "echo begun; exec sleep 1000"); code != 124 || out != "begun\n" {
			t.Errorf("code %d of a command that does not end in time, printed %q", code, out)
		}
		if code, _ := e.wrenn(t, nil, "sandbox", "exec", id, "--", "sh", "-c", "kill -9 $$"); code != 128+9 {
			t.Errorf("code %d of a command that was killed", code)
		}
		for command, want := range map[string]int{"no-such-program": 127, "/no/such/program": 127, "/etc/passwd": 126, "/etc": 126} {
			if code, _ := e.wrenn(t, nil, "sandbox", "exec", id, "--", command); code != want {
				t.Errorf("code %d of %s, want %d", code, command, want)
			}
		}
	})
	t.Run("bytes", func(t *testing.T) { testBytes(t, e, id) })
	t.Run("trees", func(t *testing.T) { testTrees(t, e, id) })
	t.Run("terminal", func(t *testing.T) {
		if out := e.must(t, nil, "sandbox", "exec", "-t", id, "--", "stty", "size"); out != "24 80\r\n" {
			t.Errorf("printed %q", out)
		}
	})
	t.Run("Ctrl-C", func(t *testing.T) { testCtrlC(t, e, id) })
	t.Run("shell", func(t *testing.T) { testShell(t, e, id) })
	t.Run("an output without a reader", func(t *testing.T) { testReaderGone(t, e, id) })
	t.Run("ports", func(t *testing.T) { testPorts(t, e, id) })
	t.Run("volumes", func(t *testing.T) { testVolumes(t, e) })
	t.Run("connections are reset", func(t *testing.T) { testResetsOfUp(t, e, id) })
	t.Run("the agent is killed", func(t *testing.T) {
		killAgent(t, e.dir)
		late := time.After(patience)
		tries := time.NewTicker(200 * time.Millisecond)
		defer tries.Stop()
		for out := ""; out != "alive\n"; _, out = e.wrenn(t, nil, "sandbox", "exec", id, "--", "echo", "alive") {
			select {
			case <-tries.C:
			case <-late:
				t.Fatalf("the sandbox does not come back:\n%s", e.out)
			}
		}
	})
	t.Run("a guest that does not answer", func(t *testing.T) { testSilence(t, e, id) })
	e.must(t, nil, "sandbox", "kill", id)
	if out := e.must(t, nil, "sandbox", "list", "-q"); out != "" {
		t.Errorf("still there: %q", out)
	}
	e.create(t) // the stop destroys it
	e.stop(t)
}

// testSilence takes the guest's network away. Afterwards the sandbox is paused.
func testSilence(t *testing.T, e *everything, id string) {
	t.Helper()
	refused := func(args ...string) {
		t.Helper()
		out, err := e.command(args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "nothing in it answers on its network; calls work again when it answers") {
			t.Errorf("wrenn %q: %v, printed %q", args, err, out)
		}
	}
	refused("sandbox", "exec", "-u", "root", id, "--", "ip", "link", "set", "eth0", "down") // waits until it is noticed
	refused("sandbox", "exec", id, "--", "true")
	refused("sandbox", "pause", id)
	if out := e.must(t, nil, "sandbox", "list"); !strings.Contains(out, "unresponsive") {
		t.Errorf("the list shows\n%s", out)
	}
	e.must(t, nil, "sandbox", "pause", "--force", id)
	if out := e.must(t, nil, "sandbox", "list"); strings.Contains(out, "unresponsive") || !strings.Contains(out, "paused") {
		t.Errorf("after the pause the list shows\n%s", out)
	}
}

// testBytes moves binary data through exec and cp, both ways.
func testBytes(t *testing.T, e *everything, id string) {
	t.Helper()
	content := make([]byte, 3<<20+1)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	if out := e.must(t, bytes.NewReader(content), "sandbox", "exec", id, "--", "cat"); out != string(content) {
		t.Errorf("%d bytes went through cat, %d other ones came back", len(content), len(out))
	}
	here, back := filepath.Join(e.dir, "here"), filepath.Join(e.dir, "back")
	if err := os.WriteFile(here, content, 0o600); err != nil {
		t.Fatal(err)
	}
	e.must(t, nil, "sandbox", "cp", here, id+":/srv/")
	e.must(t, nil, "sandbox", "cp", id+":/srv/here", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes were copied there and back, %d other ones came, %v", len(content), len(got), err)
	}
}

// testTrees copies a directory into the sandbox, within it, and back, and compares by tar.
func testTrees(t *testing.T, e *everything, id string) {
	t.Helper()
	here := filepath.Join(e.dir, "tree")
	back := filepath.Join(e.dir, "back-again")
	for _, script := range []string{
		"mkdir -p $0/d/empty $0/closed && head -c 3000001 /dev/urandom > $0/d/bytes && ln -s d/bytes $0/link && ln -s /nowhere $0/dangling",
		"echo x > '$0/a name' && chmod 750 '$0/a name' && touch $0/closed/-f && chmod 500 $0/closed",
	} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(script, "$0", here)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	e.must(t, nil, "sandbox", "cp", "-r", here, id+":/srv")                       // into a directory that exists
	e.must(t, nil, "sandbox", "cp", "-r", id+":/srv/tree", id+":/srv/new")        // makes one
	e.must(t, nil, "sandbox", "cp", "-r", id+":/srv/new", back)                   // makes one here
	e.must(t, nil, "sandbox", "cp", "-r", id+":/srv/new/d/bytes", e.dir+"/bytes") // a file is one, too
	list := func(dir string) string {
		const look = `cd "$0" && find . ! -name . -printf '%p %y %m %l %s\n' | grep -v ' d ' | sort && find . -type d ! -name . -printf '%p %m\n' | sort && find . -type f -exec sha256sum {} + | sort`
		out, err := exec.CommandContext(t.Context(), "sh", "-c", look, dir).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if diff := cmp.Diff(list(here), list(back)); diff != "" {
		t.Errorf("the tree that came back (-want +got):\n%s", diff)
	}
	for args, want := range map[[2]string]int{
		{id + ":/nothing", e.dir + "/none"}: 1, {here + "/nothing", id + ":/srv"}: 1, {here, id + ":/etc/passwd/x"}: 1,
	} {
		if code, _ := e.wrenn(t, nil, "sandbox", "cp", "-r", args[0], args[1]); code != want {
			t.Errorf("cp -r %s %s ended with %d", args[0], args[1], code)
		}
	}
	if _, err := os.Stat(e.dir + "/none"); err == nil {
		t.Error("a directory was made for nothing")
	}
}

// testReaderGone is "exec ID -- yes | head -n 1": the command must end.
func testReaderGone(t *testing.T, e *everything, id string) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := e.command("sandbox", "exec", "-n", id, "--", "yes", "nobody reads this")
	cmd.Stdout = write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	_, err = io.ReadFull(read, make([]byte, 18))
	read.Close()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); err != nil || code != 128+int(syscall.SIGPIPE) {
		t.Errorf("code %d, %v", code, err)
	}
	if code, out := e.wrenn(t, nil, "sandbox", "exec", id, "--", "pgrep", "-x", "yes"); code != 1 {
		t.Errorf("yes still runs: pgrep ended with %d and printed %q", code, out)
	}
}

// killAgent kills the host agent that uses dir, like a crash.
func killAgent(t *testing.T, dir string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(line, []byte("\x00serve\x00--config\x00"+dir)) {
			continue
		}
		pid := 0
		for _, digit := range filepath.Base(filepath.Dir(path)) {
			pid = 10*pid + int(digit-'0')
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("no host agent runs")
}

// TestUpKeepsSandboxes: without --on-exit destroy up destroys no sandbox, however it ends, except
// for those that the command of "up -- COMMAND" created.
func TestUpKeepsSandboxes(t *testing.T) {
	dir := stateDir(t)
	e := up(t, dir)
	id := e.create(t)
	e.must(t, nil, "sandbox", "exec", id, "--", "sh", "-c", "sleep 10000 & echo $! > /run/sleeper")
	key := e.key(t)
	e.stop(t)

	e = up(t, dir)
	e.alive(t, id)
	if key != e.key(t) {
		t.Error("the second start made another key, though the first one is good")
	}
	if err := e.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = e.ended(t) // it was killed

	const create = "../bin/wrenn sandbox create --timeout 1h && "
	e = startUp(t, dir, "--", "sh", "-c", create+"echo asle''ep && exec sleep 600")
	if !e.out.wait("asleep\n", patience) {
		t.Fatalf("the command does not run:\n%s", e.out)
	}
	if err := e.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = e.ended(t)
	e = startUp(t, dir, "--", "sh", "-c", create+"exit 3") // destroys the sandboxes of both commands
	if code, out := e.end(t); code != 3 {
		t.Errorf("it ended with %d:\n%s", code, out)
	}

	e = prepareUp(t, dir)
	e.loseReader(t)
	e = up(t, dir, "--on-exit", "destroy")
	if out := e.must(t, nil, "sandbox", "list", "-q"); out != id+"\n" {
		t.Errorf("there are %q, want %s alone", out, id)
	}
	e.alive(t, id)
	e.stop(t)
}

// key returns the configuration's key.
func (e *everything) key(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(e.config())
	if err != nil {
		t.Fatal(err)
	}
	_, secret, _ := strings.Cut(string(text), "key")
	return secret
}

// alive checks that the sandbox's process still runs.
func (e *everything) alive(t *testing.T, id string) {
	t.Helper()
	e.must(t, nil, "sandbox", "exec", id, "--", "sh", "-c", "kill -0 $(cat /run/sleeper)")
}

// loseReader starts up with a pipe for its output, closes the pipe, and makes up print something:
// up must stop as by Ctrl-C, and not be killed by SIGPIPE.
func (e *everything) loseReader(t *testing.T) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	e.cmd.Stdout, e.cmd.Stderr = write, write
	e.start(t)
	write.Close()
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(e.out, read) // until it is closed
	}()
	e.ready(t)
	read.Close()
	<-copied
	killAgent(t, e.dir)
	if err := e.ended(t); err != nil {
		t.Errorf("up ended with %v:\n%s", err, e.out)
	}
}
