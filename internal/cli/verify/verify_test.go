package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// local is a server whose sandbox is a directory of this machine, and whose
// copies are the same sandbox under other names. Its probes are the real ones;
// its copies share everything that copies must not share.
type local struct {
	t      *testing.T
	root   string // in place of / for files
	broken string // the method that fails

	running sync.Mutex // one command at a time, because all sandboxes are one machine; guards the fields below
	mark    map[string]string
	living  []string
	deleted []string
}

func newLocal(t *testing.T) *local {
	t.Helper()
	for _, program := range []string{"python3", "timeout", "setsid", "mkfifo"} {
		testkit.Program(t, program)
	}
	l := &local{t: t, root: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(l.root, "run", "notify.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.root, "run", "generation"), []byte("id=ia\ngeneration=1\ntime=2026-11-25T02:00:00Z\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.stop)
	return l
}

// stop ends the probes that still run: the processes whose directory is the test's.
func (l *local) stop() {
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		l.t.Error(err)
	}
	for _, link := range links {
		if cwd, _ := os.Readlink(link); cwd != l.path(dir) { // a process that ended has none
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(link, "/proc/%d/cwd", &pid); err != nil {
			l.t.Error(err)
			continue
		}
		p, err := os.FindProcess(pid)
		if err == nil {
			err = p.Kill()
		}
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			l.t.Error(err)
		}
	}
}

func (l *local) path(name string) string { return filepath.Join(l.root, name) }

func (l *local) fail(method string) error {
	if l.broken == method {
		return &client.Error{Code: client.Internal, Message: method + " is broken"}
	}
	return nil
}

func (l *local) CreateSandbox(_ context.Context, s client.CreateSandbox) (*client.Sandbox, error) {
	if err := l.fail("create"); err != nil {
		return nil, err
	}
	l.mark, l.living = s.Metadata, []string{"parent"}
	return &client.Sandbox{ID: "parent"}, nil
}

func (l *local) Sandboxes(_ context.Context, list client.ListSandboxes) iter.Seq2[client.Sandbox, error] {
	return func(yield func(client.Sandbox, error) bool) {
		if l.mark == nil || !maps.Equal(l.mark, list.Metadata) {
			return
		}
		for _, id := range l.living {
			if !yield(client.Sandbox{ID: id, State: client.Running}, nil) {
				return
			}
		}
		yield(client.Sandbox{ID: "ended", State: client.Stopped}, nil)
	}
}

func (l *local) DeleteSandbox(_ context.Context, id string) error {
	l.running.Lock()
	defer l.running.Unlock()
	l.deleted = append(l.deleted, id)
	return l.fail("delete")
}

func (l *local) WriteFile(_ context.Context, _, name string, content io.Reader, _ client.FileOptions) error {
	text, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.path(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(l.path(name), text, 0o644)
}

func (l *local) Exec(ctx context.Context, _ string, c client.Command) (*client.Result, error) {
	for i, arg := range c.Args {
		if strings.HasPrefix(arg, dir) {
			c.Args[i] = l.path(arg)
		}
	}
	l.running.Lock()
	defer l.running.Unlock()
	cmd := exec.CommandContext(ctx, c.Cmd, c.Args...)
	cmd.Env = append(os.Environ(), "WRENN_RUN="+l.path("run"))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return &client.Result{Stderr: errOut.Bytes(), ExitCode: exit.ExitCode(), Status: exit.String()}, nil
	}
	return &client.Result{Stdout: out.Bytes(), Stderr: errOut.Bytes()}, err
}

func (l *local) Fork(_ context.Context, _ string, n int) ([]string, error) {
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("copy%d", i))
	}
	l.living = append(l.living, ids...)
	if l.broken == "connection" {
		return nil, l.fail("connection")
	}
	return ids, l.fail("fork")
}

// The probes, run on this machine, report every value that is checked. All three
// sandboxes are the same machine, which must make checks fail.
func TestFork(t *testing.T) {
	t.Parallel()
	l := newLocal(t)
	var steps []string
	ctx, cancel := context.WithTimeout(t.Context(), probeTimeout)
	defer cancel()
	report, err := Fork(ctx, l, Options{Count: 2, Progress: func(what string) { steps = append(steps, what) }})
	if err != nil {
		t.Fatal(err)
	}
	if report.OK {
		t.Error("one machine three times is fine")
	}
	if len(steps) != 4 || len(l.deleted) != 3 {
		t.Errorf("steps %q, deleted %q", steps, l.deleted)
	}
	want := map[string]Verdict{
		"kernel.urandom": Good, "kernel.getrandom": Good, "kernel.uuid": Good, "kernel.time": Good,
		"kernel.boot_id": Failed, "kernel.hostname": Failed, "told.file": Failed, "told.signal": Failed, "told.time": Failed,
		"fresh.random": Good, "fresh.secrets": Good, "fresh.uuid4": Good, "fresh.tls_random": Good, "fresh.tls_key": Good,
		"registered.secrets": Good, "registered.random": Good, "registered.openssl": Good, "registered.tls_key": Good,
		"plain.secrets": Good, "plain.random": Good, "plain.openssl": Good, "plain.tls_random": Good, "plain.tls_key": Good,
		"links.tcp": Good, "links.tls": Good, "links.listener": Good, "links.tls_record": Good, "links.outside": Skipped,
	}
	if report.Guest[nodeJS] != "" {
		want["node.random_bytes"], want["node.uuid"], want["node.key"] = Good, Good, Good
	}
	if report.Guest[openssl] != "" {
		want["fresh.openssl_key"] = Good
	}
	got := map[string]Verdict{}
	for _, r := range report.Results {
		if _, ok := want[r.Name]; ok {
			got[r.Name] = r.Verdict
		}
		t.Logf("%-8s %-24s %s", r.Verdict, r.Name, r.Found)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
}

// The sandboxes are deleted on success and on failure, and kept with Keep.
func TestForkFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, broken string
		keep         bool
		count        int
		deleted      int
		says         string
	}{
		{"too many copies", "", false, MaxCount + 1, 0, "51 copies"},
		{"no copies", "", false, 0, 0, "0 copies"},
		{"create", "create", false, 1, 0, "creating a sandbox: create is broken"},
		{"fork", "fork", false, 1, 2, "forking 1 copies: fork is broken"},
		{"the answer of fork is lost", "connection", false, 1, 2, "connection is broken"},
		{"fork, kept", "fork", true, 1, 0, "(kept: parent, copy0)"},
		{"delete", "delete", false, 1, 2, "delete sandbox"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLocal(t)
			l.broken = c.broken
			_, err := Fork(t.Context(), l, Options{Count: c.count, Keep: c.keep})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one that says %q", err, c.says)
			}
			if len(l.deleted) != c.deleted {
				t.Errorf("deleted %q, want %d", l.deleted, c.deleted)
			}
		})
	}
}

// said makes evidence of a parent and two copies that reported these values of name.
func said(name string, values ...string) evidence {
	e := evidence{parent: "p", copies: []string{"a", "b"}, answers: map[string]map[string]string{"p": {}, "a": {}, "b": {}}}
	for i, id := range e.ids() {
		if values[i] != "" {
			e.answers[id][name] = values[i]
		}
	}
	return e
}

func TestJudge(t *testing.T) {
	t.Parallel()
	with := func(e evidence, name string, values ...string) evidence {
		for i, id := range e.ids() {
			e.answers[id][name] = values[i]
		}
		return e
	}
	abroad := func(values ...string) evidence {
		e := said("plain.outside", values...)
		e.outside = true
		return e
	}
	told := func(at string) evidence {
		return with(said("registered.heard_at", "0", "1764036000.100000", at), "generation.time",
			"2025-11-25T01:00:00Z", "2025-11-25T02:00:00.05Z", "2025-11-25T02:00:00.100000001Z")
	}
	broken := said("x.v", "1", "2", "")
	broken.answers["b"]["error.x"] = "it did not answer"
	for _, c := range []struct {
		name  string
		judge judgement
		e     evidence
		want  Verdict
		found string
	}{
		{"all differ", differs("x.v"), said("x.v", "1", "2", "3"), Good, "different in all 3"},
		{"all repeat", differs("x.v"), said("x.v", "1", "1", "1"), Failed, "the same in all 3"},
		{"copies repeat", differs("x.v"), said("x.v", "1", "2", "2"), Failed, "the same in a, b"},
		{"a copy is as the parent", differs("x.v"), said("x.v", "1", "2", "1"), Failed, "the same in the parent, b"},
		{"documented", mayRepeat(memory, "x.v"), said("x.v", "1", "2", "2"), Warning, "the same in a, b"},
		{"documented, but differs", mayRepeat(memory, "x.v"), said("x.v", "1", "2", "3"), Good, "different in all 3"},
		{"the second repeats", differs("x.v", "x.w"), with(said("x.v", "1", "2", "3"), "x.w", "1", "1", "2"), Failed, "v different in all 3; w the same in the parent, a"},
		{"both repeat", mayRepeat(memory, "x.v", "x.w"), with(said("x.v", "1", "1", "1"), "x.w", "1", "1", "1"), Warning, "the same in all 3"},
		{"one has no value", differs("x.v"), said("x.v", "1", "", "3"), Failed, "a: the probe did not report x.v"},
		{"one has no value where repeats are documented", mayRepeat(memory, "x.v"), said("x.v", "1", "1", ""), Failed, "b: the probe did not report x.v"},
		{"one has an error", differs("x.v"), broken, Failed, "b: it did not answer"},

		{"holds", holds("x.v"), said("x.v", "ok", "ok", "ok"), Good, "works in all 3"},
		{"does not hold", holds("x.v"), said("x.v", "ok", "OSError: gone", "ok"), Failed, "a: OSError: gone"},

		{"secrets are near", sequenceSecret, said("connect.secret", "4294967290", "5", "1000"), Warning, "the same in all 3"},
		{"secrets are far", sequenceSecret, said("connect.secret", "1000000000", "2000000000", "3000000000"), Good, "different in all 3"},

		{"heard", heard, said("registered.heard", "0", "1", "1"), Good, "heard in all 2 copies"},
		{"not heard", heard, said("registered.heard", "0", "1", "0"), Failed, "b did not hear it"},
		{"first time", firstTime, told("1764036000.100000"), Good, "after the fork in all copies"},
		{"first time in the past", firstTime, told("1764036000.000000"), Failed, "b saw a time 100.000001ms before it was a copy"},
		{"first time is none", firstTime, told("noon"), Failed, "b reported no time"},

		{"outside, not asked for", toOutside, said("plain.outside", "none", "none", "none"), Skipped, "no server was named: --outside HOST:PORT"},
		{"outside, in the parent alone", toOutside, abroad("answers", "fails: reset", "fails: reset"), Warning, "continues only in the parent; in a copy: fails: reset"},
		{"outside, nowhere", toOutside, abroad("closed", "closed", "closed"), Skipped, "it does not work in the parent: closed"},
		{"outside, everywhere", toOutside, abroad("answers", "answers", "answers"), Good, "works in all"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := c.judge(c.e)
			if got.Verdict != c.want || got.Found != c.found {
				t.Errorf("%s: %q, want %s: %q", got.Verdict, got.Found, c.want, c.found)
			}
			if (got.See != "" && got.Do != "") != (got.Verdict == Warning) {
				t.Errorf("%s, see %q, do %q", got.Verdict, got.See, got.Do)
			}
		})
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	// at returns a clock that is ahead by skew, read within a tenth of a second, that many seconds later.
	at := func(seconds int, skew time.Duration) reading {
		sent := noon.Add(time.Duration(seconds) * time.Second)
		return reading{sent, sent.Add(100 * time.Millisecond), sent.Add(50*time.Millisecond + skew)}
	}
	for _, c := range []struct {
		name  string
		copy  reading
		want  Verdict
		found string
	}{
		{"right, as far as can be told", at(9, time.Hour), Good, "after the fork in all, and off by 100ms at most"},
		{"a bit off", at(9, time.Hour+400*time.Millisecond), Good, "after the fork in all, and off by 500ms at most"},
		{"late", at(9, time.Hour-700*time.Millisecond), Warning, "a is behind by 600ms at least"},
		{"early", at(9, time.Hour+time.Second), Warning, "a is ahead by 900ms at least"},
		{"late by far", at(9, time.Hour-6*time.Second), Failed, "a is behind by 5.9s at least"},
		{"in the past", at(9, time.Hour-10*time.Second), Failed, "a is in the past of the fork"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := evidence{parent: "p", copies: []string{"a"}, before: at(0, time.Hour), clocks: map[string]reading{"p": at(8, time.Hour), "a": c.copy}}
			if got := timeIsRight(e); got.Verdict != c.want || got.Found != c.found {
				t.Errorf("%s: %q, want %s: %q", got.Verdict, got.Found, c.want, c.found)
			}
		})
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	got := parse("a.b 1\nnothing\n\n  c two words \x1b[31m\r\nd " + strings.Repeat("é", maxValue) + "\n")
	want := map[string]string{"a.b": "1", "c": "two words \ufffd[31m", "d": strings.Repeat("é", (maxValue-len("…"))/2) + "…"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var flood strings.Builder
	for i := range 10 * maxLines {
		fmt.Fprintln(&flood, i, "x")
	}
	if n := len(parse(flood.String())); n != maxLines {
		t.Errorf("%d lines were taken", n)
	}
}

func TestParseTime(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{
		"1764036000.25": time.Unix(1764036000, 250_000_000), "1764036000": time.Unix(1764036000, 0), "1764036000.N": time.Unix(1764036000, 0),
		"1764036000.%N": time.Unix(1764036000, 0), "": {}, "x.1": {}, "1.x": {},
	} {
		got, err := parseTime(text)
		if !got.Equal(want) || (err != nil) != want.IsZero() {
			t.Errorf("parseTime(%q) = %v, %v", text, got, err)
		}
	}
}

// Every warning refers to an existing section.
func TestSections(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../" + page)
	if err != nil {
		t.Fatal(err)
	}
	anchors := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if title, ok := strings.CutPrefix(strings.TrimSpace(line), "### "); ok {
			anchors[anchor(title)] = true
		}
	}
	for _, s := range []section{memory, openSSL, node, openTLS, tcp, outside, uuid1, clock} {
		if !anchors[s.anchor] {
			t.Errorf("%s has no section #%s", page, s.anchor)
		}
	}
}

// anchor returns the link target of a heading, as common Markdown renderers make it.
func anchor(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		}
		return -1
	}, strings.ToLower(title))
}

func TestChecksAreNamedOnce(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range checks {
		if seen[c.name] || c.title == "" || c.group == "" {
			t.Errorf("check %q", c.name)
		}
		seen[c.name] = true
	}
}
