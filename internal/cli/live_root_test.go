//go:build root

package cli

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"wrenn.dev/client"
	"wrenn.dev/internal/livetest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/programs"
	"wrenn.dev/internal/testkit"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// live is a whole control plane with a host whose guests are processes of this machine.
type live struct {
	t       *testing.T
	environ map[string]string
	dir     string // of the test, which its guests see, too
}

func newLive(t *testing.T) *live {
	t.Helper()
	server := livetest.New(t)
	return &live{t: t, dir: t.TempDir(), environ: map[string]string{"WRENN_API_KEY": server.Key, "HOME": "/nonexistent", "URL": server.URL}}
}

func (l *live) run(stdin string, args ...string) result {
	l.t.Helper()
	return invoke(l.t, strings.NewReader(stdin), l.environ, append([]string{"--url", l.environ["URL"]}, args...)...)
}

// want runs a command line and compares all that it prints.
func (l *live) want(want result, stdin string, args ...string) {
	l.t.Helper()
	if diff := cmp.Diff(want, l.run(stdin, args...), cmp.AllowUnexported(result{})); diff != "" {
		l.t.Errorf("wrenn %q (-want +got):\n%s", args, diff)
	}
}

// output runs a command line that must succeed.
func (l *live) output(stdin string, args ...string) string {
	l.t.Helper()
	got := l.run(stdin, args...)
	if got.code != 0 {
		l.t.Fatalf("wrenn %q: %+v", args, got)
	}
	return strings.TrimSuffix(got.out, "\n")
}

// TestLive uses a sandbox as a user does, by its name and by the beginning of its id.
func TestLive(t *testing.T) {
	l := newLive(t)
	l.want(result{0, "hi\n", ""}, "", "run", "--rm", "--", "echo", "hi")
	l.want(result{0, "", ""}, "", "sandbox", "list", "-q")
	id := l.output("", "sandbox", "create", "--name", "web", "-l", "group=a")
	l.want(result{1, "", "sandbox " + id + " has the name web: kill it, or choose another name\n"}, "", "sandbox", "create", "--name", "web")
	l.want(result{0, "6\n", ""}, "", "sandbox", "exec", "-u", "root", "web", "--", "sh", "-c", "echo $((2*3))")
	l.want(result{0, "x", ""}, "x", "sandbox", "exec", "-u", "root", id[:8], "cat")
	l.want(result{1, "", "there is no sandbox absent: wrenn sandbox list --all shows their ids\n"}, "", "sandbox", "get", "absent")
	l.want(result{1, "", "there is no sandbox i00000000000000000000\n"}, "", "sandbox", "get", "i00000000000000000000")
	l.want(result{0, "from the script\n", ""}, "echo from the script\n", "sandbox", "shell", "-u", "root", "web", "--", "sh")
	l.want(result{124, "", "the command did not end in time and was killed: give it a longer --timeout\n"}, "", "sandbox", "exec", "-u", "root", "--timeout", "1s", "web", "sleep", "600")
	l.want(result{0, "", ""}, "", "sandbox", "wait", "web", "--for", "running")
	got := l.run("", "-o", "json", "sandbox", "exec", "-u", "root", "web", "sh", "-c", "echo out; echo err >&2; exit 3")
	if got.code != 3 || got.err != "" || !strings.Contains(got.out, `"stdout": "out\n"`) || !strings.Contains(got.out, `"exit_code": 3`) {
		t.Errorf("exec -o json: %+v", got)
	}
	l.files(t)
	l.programs(t)
	l.ssh(t)
	l.want(result{0, id + "\n", ""}, "", "sandbox", "kill", "-l", "group=a")
	l.want(result{0, "", ""}, "", "sandbox", "wait", id)
	l.want(result{1, "", "sandbox " + id + " has ended\n"}, "", "sandbox", "wait", id, "--for", "running")
}

// files copies several files, and directories of run.
func (l *live) files(t *testing.T) {
	t.Helper()
	for _, name := range []string{"a.log", "b c.log", "d.txt"} {
		testkit.Must(t, os.WriteFile(filepath.Join(l.dir, name), []byte(name), 0o600))
	}
	into := t.TempDir()
	l.want(result{0, "", ""}, "", "sandbox", "cp", "-u", "root", "web:"+l.dir+"/*.log", into)
	l.want(result{0, "", ""}, "", "sandbox", "cp", "-u", "root", filepath.Join(into, "a.log"), filepath.Join(into, "b c.log"), "web:"+l.dir+"/new")
	for _, name := range []string{"a.log", "b c.log"} {
		if text, err := os.ReadFile(filepath.Join(l.dir, "new", name)); err != nil || string(text) != name {
			t.Errorf("copied %q: %q, %v", name, text, err)
		}
	}
	l.want(result{1, "", "no file in the sandbox matches " + l.dir + "/*.no\n"}, "", "sandbox", "cp", "-u", "root", "web:"+l.dir+"/*.no", into)
	work := filepath.Join(l.dir, "work")
	l.want(result{0, "a.log\nb c.log\n", ""}, "", "run", "--rm", "-u", "root", "-v", into+":"+work, "-C", work, "--", "ls")
	env := filepath.Join(t.TempDir(), "env")
	testkit.Must(t, os.WriteFile(env, []byte("# a comment\nA=1\n\nB=two words\n"), 0o600))
	l.want(result{0, "3 two words\n", ""}, "", "sandbox", "exec", "-u", "root", "--env-file", env, "-e", "A=3", "web", "sh", "-c", `echo "$A $B"`)
}

// programs starts a command that outlives wrenn, and reads its log.
func (l *live) programs(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { _ = os.RemoveAll(programs.Dir) }) // the guests are this machine
	fifo := filepath.Join(l.dir, "go")
	l.output("", "sandbox", "exec", "-u", "root", "web", "mkfifo", fifo)
	pid := l.output("", "sandbox", "exec", "-u", "root", "-d", "web", "--", "sh", "-c", "echo one; echo two; read x <"+fifo+"; echo $x")
	if !regexp.MustCompile(`^[0-9]+$`).MatchString(pid) {
		t.Fatalf("exec -d printed %q", pid)
	}
	testkit.WaitNoError(t, "the program prints", func() error {
		if got := l.run("", "sandbox", "logs", "--program", pid, "web"); got.out != "one\ntwo\n" {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	l.want(result{0, "two\n", ""}, "", "sandbox", "logs", "--program", pid, "--tail", "1", "web")
	l.want(result{1, "", "no program 999999999 was started by exec -d\n"}, "", "sandbox", "logs", "--program", "999999999", "web")
	followed := make(chan result, 1)
	go func() { followed <- l.run("", "sandbox", "logs", "-f", "--program", pid, "web") }()
	l.output("", "sandbox", "exec", "-u", "root", "web", "sh", "-c", "echo three >"+fifo)
	if got := <-followed; got.code != 0 || got.out != "one\ntwo\nthree\n" {
		t.Errorf("followed: %+v", got)
	}
}

// ssh uses the sandbox by SSH, as ssh(1) does with ssh-proxy as its ProxyCommand.
func (l *live) ssh(t *testing.T) {
	t.Helper()
	here, there := connected(t)
	std := Std{In: there, Out: there, Err: t.Output(), Environ: func(name string) string { return l.environ[name] }}
	ended := make(chan error, 1)
	go func() {
		ended <- Command(t.Context(), []string{"--url", l.environ["URL"], "sandbox", "ssh-proxy", "web.wrenn"}, std)
	}()
	conn, channels, requests, err := ssh.NewClientConn(here, "web.wrenn", &ssh.ClientConfig{User: "root", HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	testkit.Must(t, err)
	c := ssh.NewClient(conn, channels, requests)
	run := func(line, stdin string, pty bool) (string, error) {
		session, err := c.NewSession()
		testkit.Must(t, err)
		defer session.Close()
		testkit.Must(t, session.Setenv("LANG", "C.UTF-8"))
		if session.Setenv("LD_PRELOAD", "x") == nil {
			t.Error("a variable other than the language was taken")
		}
		if pty {
			testkit.Must(t, session.RequestPty("xterm", 30, 100, ssh.TerminalModes{}))
		}
		session.Stdin = strings.NewReader(stdin)
		out, err := session.Output(line)
		return string(out), err
	}
	if out, err := run("cat; echo $LANG; exit 3", "in", false); out != "inC.UTF-8\n" || err == nil || err.Error() != "Process exited with status 3" {
		t.Errorf("a command: %q, %v", out, err)
	}
	if out, err := run("stty size; echo $TERM", "", true); out != "30 100\r\nxterm\r\n" || err != nil {
		t.Errorf("a terminal: %q, %v", out, err)
	}
	for address, want := range map[string]string{"192.0.2.1:80": "only ports of the sandbox itself", "localhost:1": "no program in the sandbox listens on it"} {
		if conn, err := c.Dial("tcp", address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a connection to %s: %v, %v", address, conn, err)
		}
	}
	testkit.Must(t, c.Close())
	if err := <-ended; err != nil {
		t.Errorf("ssh-proxy: %v", err)
	}
}

// connected returns the two ends of a connection.
func connected(t *testing.T) (here, there net.Conn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "ssh"))
	testkit.Must(t, err)
	defer l.Close()
	here, err = new(net.Dialer).DialContext(t.Context(), "unix", l.Addr().String())
	testkit.Must(t, err)
	there, err = l.Accept()
	testkit.Must(t, err)
	return here, there
}

// TestFiles looks at and changes the files of a sandbox, watches them, and lists and ends
// its programs.
func TestFiles(t *testing.T) {
	l := newLive(t)
	id := l.output("", "sandbox", "create", "--name", "web")
	files := func(command string, args ...string) []string {
		return append([]string{"sandbox", "files", command, "-u", "root", "web"}, args...)
	}
	dir := filepath.Join(l.dir, "d")
	l.want(result{0, dir + "/a/b\n", ""}, "", files("mkdir", dir+"/a/b")...)
	l.want(result{1, "", dir + "/a: make directory: directory '" + dir + "/a' already exists\n"}, "", files("mkdir", dir+"/a")...)
	l.want(result{0, dir + "/a\n", ""}, "", files("mkdir", "-p", dir+"/a")...)
	testkit.Must(t, os.WriteFile(dir+"/a.txt", []byte("text"), 0o640))
	testkit.Must(t, os.Symlink("../a.txt", dir+"/a/link"))

	l.lists(t, dir, files)
	l.watches(t, dir, files)

	l.want(result{0, "", ""}, "", files("mv", dir+"/a.txt", dir+"/a")...)
	l.want(result{0, "", ""}, "", files("mv", dir+"/a/a.txt", dir+"/new/b.txt")...)
	l.want(result{1, "", "move: path '" + dir + "/a.txt' does not exist\n"}, "", files("mv", dir+"/a.txt", dir+"/c")...)
	l.want(result{1, "", dir + "/a: it is a directory: add -r\n"}, "", files("rm", dir+"/a")...)
	l.want(result{1, "", dir + "/no: stat: path '" + dir + "/no' does not exist\n"}, "", files("rm", "-r", dir+"/no")...)
	l.want(result{0, dir + "/a\n" + dir + "/no\n", ""}, "", files("rm", "-rf", dir+"/a", dir+"/no")...)
	l.want(result{1, "", "list: invalid username: 'nobody-at-all'\n"}, "", "sandbox", "files", "ls", "-u", "nobody-at-all", id, "/")

	l.processes(t)
	l.want(result{0, id + "\n", ""}, "", "sandbox", "pause", "web")
	l.want(result{1, "", "sandbox " + id + " is paused: resume it first, by POST /v1/sandboxes/" + id + "/resume or wrenn sandbox resume " + id + "\n"}, "", files("ls", "/")...)
}

// lists lists the directory that has a/b, a/link and a.txt.
func (l *live) lists(t *testing.T, dir string, files func(string, ...string) []string) {
	t.Helper()
	paths := func(args ...string) (out []string) {
		for line := range strings.Lines(l.output("", files("ls", args...)...)) {
			out = append(out, strings.Join(strings.Fields(line)[4:], " "))
		}
		return out
	}
	if diff := cmp.Diff([]string{"PATH", "a", "a.txt"}, paths(dir)); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"PATH", "a", "a/b", "a/link -> " + dir + "/a.txt", "a.txt"}, paths("--depth", "2", dir)); diff != "" {
		t.Errorf("listed two levels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"PATH", "a.txt"}, paths(dir+"/a.txt")); diff != "" {
		t.Errorf("listed a file (-want +got):\n%s", diff)
	}
	api, err := client.New(client.Config{URL: l.environ["URL"], Key: l.environ["WRENN_API_KEY"]})
	testkit.Must(t, err)
	var got []string
	list := client.ListFiles{FileOptions: client.FileOptions{User: "root"}, Depth: 2, PageSize: 1} // a page for each
	for e, err := range api.Files(t.Context(), l.output("", "sandbox", "list", "-q"), dir, list) {
		testkit.Must(t, err)
		got = append(got, strings.TrimPrefix(e.Path, dir+"/"))
	}
	if diff := cmp.Diff([]string{"a", "a/b", "a/link", "a.txt"}, got); diff != "" {
		t.Errorf("listed by pages (-want +got):\n%s", diff)
	}
	shown := l.output("", files("stat", dir+"/a.txt", dir+"/a/link")...)
	for _, want := range []string{"path      " + dir + "/a.txt\n", "size      4\n", "mode      0640 -rw-r-----\n", "owner     root:root\n", "target    " + dir + "/a.txt"} {
		if !strings.Contains(shown, want) {
			t.Errorf("stat printed %q, without %q", shown, want)
		}
	}
	l.want(result{1, "", "stat: path '" + dir + "/no' does not exist\n"}, "", files("stat", dir+"/no")...)
	l.want(result{1, "", "list: path '" + dir + "/no' does not exist\n"}, "", files("ls", dir+"/no")...)
}

// watches watches a directory until it is removed.
func (l *live) watches(t *testing.T, dir string, files func(string, ...string) []string) {
	t.Helper()
	api, err := client.New(client.Config{URL: l.environ["URL"], Key: l.environ["WRENN_API_KEY"]})
	testkit.Must(t, err)
	id, as := l.output("", "sandbox", "list", "-q"), client.FileOptions{User: "root"}
	watched := filepath.Join(dir, "watched")
	l.output("", files("mkdir", watched)...)
	watch, err := api.WatchFiles(t.Context(), id, watched, client.WatchFiles{FileOptions: as, Recursive: true})
	testkit.Must(t, err)
	defer func() { testkit.Must(t, watch.Close()) }()
	l.output("", files("mkdir", watched+"/x")...)
	got, err := watch.Next()
	testkit.Must(t, err)
	if want := (client.FileChange{Path: "x", Type: "create"}); got != want {
		t.Errorf("the first change is %+v, want %+v", got, want)
	}
	l.output("", files("rm", "-r", watched)...)
	for err == nil {
		_, err = watch.Next()
	}
	if client.CodeOf(err) != client.NotFound || err.Error() != "the directory was removed" {
		t.Errorf("the watch ended with %v", err)
	}
	if _, err := api.WatchFiles(t.Context(), id, dir+"/a.txt", client.WatchFiles{FileOptions: as}); client.CodeOf(err) != client.InvalidRequest {
		t.Errorf("watch a file: %v", err)
	}
	paused, err := api.WatchFiles(t.Context(), id, dir, client.WatchFiles{FileOptions: as})
	testkit.Must(t, err)
	defer func() { testkit.Must(t, paused.Close()) }()
	l.output("", "sandbox", "pause", "web")
	if _, err := paused.Next(); client.CodeOf(err) != client.CutByPause {
		t.Errorf("the watch of a paused sandbox ended with %v", err)
	}
	l.output("", "sandbox", "resume", "web")
}

// processes lists and ends a program.
func (l *live) processes(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { _ = os.RemoveAll(programs.Dir) }) // the guests are this machine
	pid := l.output("", "sandbox", "exec", "-u", "root", "-d", "web", "--", "sleep", "600")
	listed := func() string { return l.output("", "sandbox", "ps", "web") }
	if got := listed(); !regexp.MustCompile(`(?m)^` + pid + ` .*sleep 600`).MatchString(got) {
		t.Errorf("ps printed %q, without %s", got, pid)
	}
	l.want(result{0, pid + "\n", ""}, "", "sandbox", "signal", "web", pid)
	testkit.WaitNoError(t, "the program ends", func() error {
		if strings.Contains(listed(), "sleep 600") {
			return io.ErrNoProgress
		}
		return nil
	})
	if got := l.run("", "sandbox", "signal", "-s", "KILL", "web", "999999999", "x"); got.code == 0 || !strings.Contains(got.err, "999999999: signal: ") || !strings.Contains(got.err, "x: ") {
		t.Errorf("signal what is no program: %+v", got)
	}
}

// TestCheckpointCopies makes sandboxes of a checkpoint.
func TestCheckpointCopies(t *testing.T) {
	l := newLive(t)
	id := l.output("", "sandbox", "create", "--name", "web", "-l", "group=a")
	checkpoint := l.output("", "checkpoint", "create", "web")
	copied := l.output("", "sandbox", "create", "--name", "copy", "--from-checkpoint", "web:"+checkpoint)
	if got := l.output("", "sandbox", "list"); !regexp.MustCompile(`(?m)^`+copied+` .* name=copy$`).MatchString(got) || !strings.Contains(got, id) {
		t.Errorf("listed %q", got)
	}
	l.want(result{0, "hi\n", ""}, "", "sandbox", "exec", "-u", "root", "copy", "echo", "hi")
	other := l.output("", "sandbox", "fork", "web", "--checkpoint", checkpoint)
	l.want(result{0, other + "\n" + id + "\n", ""}, "", "sandbox", "list", "-q", "-l", "group=a")
	l.want(result{1, "", "sandbox " + id + " has no checkpoint \"s00000000000000000000\"\n"}, "", "sandbox", "fork", id, "--checkpoint", "s00000000000000000000")
	if got := l.run("", "sandbox", "create", "--from-checkpoint", id+":"+checkpoint, "--memory", "1024"); got.code != 2 {
		t.Errorf("with another memory: %+v", got)
	}
	if got := l.run("", "sandbox", "create", "--from-checkpoint", id); got.code != 2 {
		t.Errorf("without a checkpoint: %+v", got)
	}
}
