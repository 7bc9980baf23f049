//go:build root

package template_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
)

const team wrenn.TeamID = "7f0c1f3e-0000-4000-8000-000000000001"

// run is a RUN step by a shell that reads no files of a login.
func run(command string) wrenn.BuildStep {
	return wrenn.BuildStep{Kind: wrenn.StepRun, Args: []string{command}, Shell: []string{"/bin/sh", "-c"}}
}

func step(kind wrenn.StepKind, args ...string) wrenn.BuildStep {
	return wrenn.BuildStep{Kind: kind, Args: args}
}

// stepsRun builds a template and returns which steps have run: each RUN writes its
// first word.
func stepsRun(t *testing.T, agent *agenttest.Agent, job wrenn.BuildRequest) (ran string, log *buildLog) {
	t.Helper()
	journal := filepath.Join(t.TempDir(), "ran")
	testkit.Must(t, os.WriteFile(journal, nil, 0o600))
	testkit.Must(t, os.WriteFile(journalLink, []byte(journal), 0o600))
	job.ID, job.Spec.Size = wrenn.NewBuildID(), size
	if job.Team == "" {
		job.Team = team
	}
	log = &buildLog{}
	if _, err := agent.Templates.Build(t.Context(), job, log.add); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	text, err := os.ReadFile(journal)
	testkit.Must(t, err)
	return strings.Join(strings.Fields(string(text)), " "), log
}

// journalLink has the name of the file that steps append to: their commands, which
// are parts of keys, must be the same for each build.
const journalLink = "/tmp/wrenn-steps-test"

func note(word string) wrenn.BuildStep {
	return run("echo " + word + ` >> "$(cat ` + journalLink + `)"`)
}

// bootedGuests returns the snapshots of guests from which steps begin.
func bootedGuests(agent *agenttest.Agent) []string {
	return slices.DeleteFunc(agent.Manager.KeptSnapshots(), func(name string) bool { return !strings.HasPrefix(name, "steps-") })
}

func TestStepsAreCached(t *testing.T) {
	t.Cleanup(func() { _ = os.Remove(journalLink) })
	agent := agenttest.New(t, agenttest.Config{})
	steps := []wrenn.BuildStep{note("1"), step(wrenn.StepEnv, "A", "x"), note("2"), note("3"), note("4")}
	job := wrenn.BuildRequest{Spec: wrenn.TemplateSpec{Steps: steps}}
	ran, log := stepsRun(t, agent, job)
	if ran != "1 2 3 4" {
		t.Errorf("the first build ran %q", ran)
	}
	if diff := cmp.Diff([]string{"base", "1", "2", "3", "4", "5", "finalize"}, log.steps); diff != "" {
		t.Errorf("steps: %s", diff)
	}
	ran, log = stepsRun(t, agent, job)
	if n := strings.Count(log.String(), " CACHED"); ran != "" || n != 5 || strings.Count(log.String(), "booting") != 1 {
		t.Errorf("the same build ran %q; the log is:\n%s", ran, log)
	}
	again := slices.Clone(steps)
	again[4] = note("last")
	job.Spec.Steps = again
	if ran, log = stepsRun(t, agent, job); ran != "last" || len(bootedGuests(agent)) != 1 {
		t.Errorf("with another last step it ran %q, and left %q; the log is:\n%s", ran, bootedGuests(agent), log)
	}
	again[4] = note("other")
	if ran, log = stepsRun(t, agent, job); ran != "other" || len(bootedGuests(agent)) != 1 {
		t.Errorf("with the next last step it ran %q, and left %q; the log is:\n%s", ran, bootedGuests(agent), log)
	}
	agent.Stop(t)
	agent.Start(t)
	testkit.Must(t, agent.Templates.Sweep(t.Context())) // as a host agent at its start
	if left := bootedGuests(agent); len(left) != 0 {
		t.Errorf("the next agent has guests of an earlier one: %q", left)
	}
	changed := slices.Clone(steps)
	changed[3] = note("new")
	job.Spec.Steps = changed
	if ran, log = stepsRun(t, agent, job); ran != "new 4" {
		t.Errorf("with another fourth step it ran %q; the log is:\n%s", ran, log)
	}
	job.Spec.Steps = slices.Clone(steps)
	job.Spec.Steps[1] = step(wrenn.StepEnv, "A", "y")
	if ran, _ = stepsRun(t, agent, job); ran != "2 3 4" {
		t.Errorf("with another variable it ran %q", ran)
	}
	job.Spec.Steps = slices.Clone(steps)
	job.Spec.Steps[2].Force = true
	if ran, _ = stepsRun(t, agent, job); ran != "2 3 4" {
		t.Errorf("with a forced third step it ran %q", ran)
	}
	job.Spec.Steps, job.Spec.NoCache = steps, true
	if ran, _ = stepsRun(t, agent, job); ran != "1 2 3 4" {
		t.Errorf("without the cache it ran %q", ran)
	}
	job.Spec.NoCache, job.Team = false, "7f0c1f3e-0000-4000-8000-000000000002"
	if ran, _ = stepsRun(t, agent, job); ran != "1 2 3 4" {
		t.Errorf("another team's build ran %q: it sees what the first team has built", ran)
	}
}

func TestStepsSeeTheState(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	dir := t.TempDir()
	id := wrenn.NewBuildID()
	var log buildLog
	built, err := agent.Templates.Build(t.Context(), wrenn.BuildRequest{ID: id, Team: team, Spec: wrenn.TemplateSpec{
		Size: size, User: "root", Env: map[string]string{"GREETING": "servus"},
		Steps: []wrenn.BuildStep{
			step(wrenn.StepArg, "PLACE", dir),
			step(wrenn.StepEnv, "WHERE", "$PLACE/sub", "TWICE", "${GREETING}-${GREETING}"),
			step(wrenn.StepWorkdir, "$WHERE"),
			run("pwd > pwd; echo $TWICE; echo $PLACE > place"),
			step(wrenn.StepUser, "daemon"),
			step(wrenn.StepWorkdir, "inner"),
			step(wrenn.StepUser, "root"),
			{Kind: wrenn.StepRun, Args: []string{"ls -ld . > owner; shopt login_shell"}},
		},
		ReadyCmd: "test -e owner",
	}}, log.add)
	if err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	if diff := cmp.Diff(map[string]string{"GREETING": "servus", "WHERE": dir + "/sub", "TWICE": "servus-servus"}, built.Env); diff != "" {
		t.Errorf("variables of the sandboxes (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{"sub/pwd": dir + "/sub", "sub/place": dir, "sub/inner/owner": "daemon"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s has %q, %v; want %q", name, got, err, want)
		}
	}
	for _, want := range []string{" servus-servus", "[1/8] ARG PLACE", "#3 DONE", "login_shell"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, &log)
		}
	}
	if strings.Contains(log.String(), "[1/8] ARG PLACE "+dir) {
		t.Errorf("the log has the value of an argument:\n%s", &log)
	}

	// The next template begins where this one ended.
	next := wrenn.NewBuildID()
	built, err = agent.Templates.Build(t.Context(), wrenn.BuildRequest{ID: next, Team: team, Spec: wrenn.TemplateSpec{
		Size: size, From: wrenn.TemplateSource{Template: id}, User: "nobody", Workdir: "/", Steps: []wrenn.BuildStep{run("whoami > who")},
	}}, log.add)
	if err != nil || built.Env["TWICE"] != "servus-servus" {
		t.Fatalf("built %+v, %v\n%s", built, err, &log)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "sub/inner/who")); string(got) != "root\n" {
		t.Errorf("whoami is %q, %v", got, err)
	}
	_, err = agent.Templates.Build(t.Context(), wrenn.BuildRequest{ID: wrenn.NewBuildID(), Team: team, Spec: wrenn.TemplateSpec{
		From: wrenn.TemplateSource{Template: wrenn.NewBuildID()},
	}}, log.add)
	testkit.WantCode(t, err, wrenn.NotFound, "")
}

func TestStepsFail(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	for name, tt := range map[string]struct {
		step wrenn.BuildStep
		code wrenn.Code
		text string
		at   string
	}{
		"a command":             {run("exit 1"), wrenn.GuestFailed, "failed to run command 'exit 1': exit status 1", "2"},
		"an unknown user":       {step(wrenn.StepRun, "whoami", "root123"), wrenn.GuestFailed, "failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'", "2"},
		"files not uploaded":    {wrenn.BuildStep{Kind: wrenn.StepCopy, Args: []string{"a", "/b"}, Files: strings.Repeat("0", 64)}, wrenn.NotFound, "upload them again", "2"},
		"a variable's text":     {step(wrenn.StepEnv, "A", "${B"), wrenn.Invalid, "step 2", "2"},
		"a directory of a file": {step(wrenn.StepWorkdir, "/etc/passwd/x"), wrenn.GuestFailed, "make directory", "2"},
		"a user by a number":    {step(wrenn.StepUser, "4242"), wrenn.GuestFailed, "no user with the number", "2"},
		"an unknown kind":       {step("LINK", "a"), wrenn.Invalid, "not a step", ""},
		"a source above":        {wrenn.BuildStep{Kind: wrenn.StepCopy, Args: []string{"../a", "/b"}, Files: strings.Repeat("0", 64)}, wrenn.Invalid, "without ..", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log buildLog
			_, err := agent.Templates.Build(t.Context(), wrenn.BuildRequest{ID: wrenn.NewBuildID(), Team: team, Spec: wrenn.TemplateSpec{
				Size: size, Steps: []wrenn.BuildStep{run("true"), tt.step},
			}}, log.add)
			testkit.WantCode(t, err, tt.code, tt.text)
			if at := append([]string{""}, log.steps...); at[len(at)-1] != tt.at {
				t.Errorf("it failed at step %q, want %q", log.steps, tt.at)
			}
			if n := agent.Manager.Live(); n != 0 || len(agent.World.Running()) != 0 {
				t.Errorf("%d sandboxes are left, machines: %v", n, agent.World.Running())
			}
		})
	}
}

// tarOf makes an archive of files with contents.
func tarOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		testkit.Must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}))
		_, err := io.WriteString(w, content)
		testkit.Must(t, err)
	}
	testkit.Must(t, w.Close())
	return buf.Bytes()
}

func TestCopy(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	dir := t.TempDir()
	hash, big := strings.Repeat("a", 64), strings.Repeat("b", 64)
	testkit.Must(t, agent.Templates.PutFiles(t.Context(), team, hash, bytes.NewReader(tarOf(t, "src/a=one", "src/lib/b=two"))))
	testkit.Must(t, agent.Templates.PutFiles(t.Context(), team, big, bytes.NewReader(tarOf(t, "big="+strings.Repeat("x", 3<<20)))))
	if !agent.Templates.HasFiles(team, hash) || agent.Templates.HasFiles("another", hash) {
		t.Error("HasFiles does not tell teams apart")
	}
	testkit.Must(t, os.MkdirAll(filepath.Join(dir, "real"), 0o755))
	testkit.Must(t, os.Symlink("real", filepath.Join(dir, "link")))
	var log buildLog
	_, err := agent.Templates.Build(t.Context(), wrenn.BuildRequest{ID: wrenn.NewBuildID(), Team: team, Spec: wrenn.TemplateSpec{
		Size: size, Workdir: dir, User: "root",
		Steps: []wrenn.BuildStep{
			{Kind: wrenn.StepCopy, Args: []string{"src", "app"}, Files: hash},
			{Kind: wrenn.StepCopy, Args: []string{"src/", "./owned/deep/", "daemon", "0751"}, Files: hash},
			{Kind: wrenn.StepCopy, Args: []string{"big", dir + "/link", "daemon:root", ""}, Files: big},
			{Kind: wrenn.StepCopy, Args: []string{"big", dir + "/renamed", "", ""}, Files: big},
			run("ls -lR > listing"),
		},
	}}, log.add)
	if err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	for name, want := range map[string]string{"app/a": "one", "app/lib/b": "two", "owned/deep/lib/b": "two", "real/big": strings.Repeat("x", 3<<20), "renamed": strings.Repeat("x", 3<<20)} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s has %d bytes, %v", name, len(got), err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "owned/deep/a")); err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("owned/deep/a is %v, %v", info, err)
	}
	listing, err := os.ReadFile(filepath.Join(dir, "listing"))
	if err != nil || strings.Count(string(listing), "daemon") < 3 {
		t.Errorf("%v\n%s", err, listing)
	}
	if info, err := os.Lstat(filepath.Join(dir, "link")); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v", info, err)
	}
}

func TestUploadIsWholeOrNothing(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	hash := strings.Repeat("a", 64)
	broken := errors.New("the client is gone")
	err := agent.Templates.PutFiles(t.Context(), team, hash, io.MultiReader(strings.NewReader("half"), testkitFailing{broken}))
	if !errors.Is(err, broken) || agent.Templates.HasFiles(team, hash) {
		t.Errorf("PutFiles() = %v", err)
	}
	err = agent.Templates.PutFiles(t.Context(), team, "../../etc/passwd", strings.NewReader("x"))
	testkit.WantCode(t, err, wrenn.Invalid, "not a hash")
	err = agent.Templates.PutFiles(t.Context(), "../..", hash, strings.NewReader("x"))
	testkit.WantCode(t, err, wrenn.Invalid, "cannot name")
}

type testkitFailing struct{ err error }

func (f testkitFailing) Read([]byte) (int, error) { return 0, f.err }

// A build that is canceled in a step leaves no machine, and no half result.
func TestStepIsCanceled(t *testing.T) {
	agent := agenttest.New(t, agenttest.Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the caller is gone")
	job := wrenn.BuildRequest{ID: wrenn.NewBuildID(), Team: team, Spec: wrenn.TemplateSpec{
		Size: size, Steps: []wrenn.BuildStep{run("echo it runs; exec sleep 1000")},
	}}
	_, err := agent.Templates.Build(ctx, job, func(ev wrenn.BuildEvent) {
		if strings.HasSuffix(ev.Line, " it runs") {
			cancel(why)
		}
	})
	if !errors.Is(err, why) || len(agent.World.Running()) != 0 {
		t.Errorf("Build() = %v, left %v", err, agent.World.Running())
	}
}
