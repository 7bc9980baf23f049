package service_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

const secondly = time.Second

// built starts a build and waits for its end.
func built(t *testing.T, s *service.Service, c service.Caller, req service.BuildTemplate) *wrenn.Build {
	t.Helper()
	g, err := s.BuildTemplate(t.Context(), c, req)
	if err != nil {
		t.Fatal(err)
	}
	if g.State != wrenn.BuildBuilding {
		t.Errorf("a build that began is %s", g.State)
	}
	return settled(t, s, c, g)
}

func settled(t *testing.T, s *service.Service, c service.Caller, g *wrenn.Build) *wrenn.Build {
	t.Helper()
	testkit.WaitUntil(t, "the build ends", func() bool {
		now, _, err := s.Build(t.Context(), c, g.Template.String(), g.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		g = now
		return g.State != wrenn.BuildBuilding
	})
	return g
}

func TestTemplateLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{}, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	req := service.BuildTemplate{Name: "py", Spec: wrenn.TemplateSpec{Size: wrenn.Size{VCPUs: 2, MemoryMiB: 1024}, Env: map[string]string{"A": "template", "B": "template"}, StartCmd: "serve"}}
	first := built(t, s, w.caller, req)
	if first.State != wrenn.BuildReady || first.SizeBytes == 0 || first.Host == "" {
		t.Fatalf("built %+v", first)
	}
	_, log, err := s.Build(t.Context(), w.caller, "py:latest", first.ID, 1)
	if diff := cmp.Diff(service.BuildLog{First: 1, Lines: []string{"saved as a snapshot"}, Next: 2}, log); diff != "" || err != nil {
		t.Errorf("log: %v\n%s", err, diff)
	}

	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: "py:latest", Env: map[string]string{"B": "mine"}}})
	if err != nil {
		t.Fatal(err)
	}
	if sb.Host != first.Host || sb.VCPUs != 2 || sb.MemoryMiB != 1024 || sb.Build != first.ID || sb.Template != "py" {
		t.Errorf("created %+v from %+v", sb, first)
	}
	if diff := cmp.Diff(map[string]string{"A": "template", "B": "mine"}, sb.Env); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
	_, err = s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: "py", Size: wrenn.Size{MemoryMiB: 512}}})
	testkit.WantCode(t, err, wrenn.Invalid, "built with 2 vCPUs and 1024 MB")
	_, err = s.CreateSandbox(t.Context(), w.team(t, "other"), service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: "py"}})
	testkit.WantCode(t, err, wrenn.NotFound, "no template py")

	second := built(t, s, w.caller, req)
	list, err := s.ListTemplates(t.Context(), w.caller)
	if err != nil || len(list) != 2 || !list[0].Name.Base() || list[1].Current == nil || list[1].Current.ID != second.ID {
		t.Errorf("templates: %+v, %v", list, err)
	}
	old, _, err := s.Build(t.Context(), w.caller, "py", first.ID, 0)
	if err != nil || old.State != wrenn.BuildDeleted || !strings.Contains(old.Reason, string(second.ID)) {
		t.Errorf("the build before: %+v, %v", old, err)
	}

	if err := s.DeleteTemplate(t.Context(), w.caller, "py"); err != nil {
		t.Fatal(err)
	}
	for _, id := range append(w.agents[0].Builds(), w.agents[1].Builds()...) {
		if id == string(second.ID) {
			t.Error("the host still has what was deleted")
		}
	}
	_, err = s.Template(t.Context(), w.caller, "py")
	testkit.WantCode(t, err, wrenn.NotFound, "py")
	testkit.WantCode(t, s.DeleteTemplate(t.Context(), w.caller, "py"), wrenn.NotFound, "py")
}

// TestOwnBase: a team's own base takes the place of the built-in one, until it is deleted.
func TestOwnBase(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	create := func(c service.Caller) *wrenn.Sandbox {
		t.Helper()
		sb, err := s.CreateSandbox(t.Context(), c, service.CreateSandbox{})
		if err != nil {
			t.Fatal(err)
		}
		return sb
	}
	build := service.BuildTemplate{Name: "base", FromTemplate: "base", Spec: wrenn.TemplateSpec{Size: wrenn.Size{VCPUs: 2, MemoryMiB: 1024}}}
	first := built(t, s, w.caller, build)
	second := built(t, s, w.caller, build)
	if second.State != wrenn.BuildReady || second.Spec.From != first.Spec.From {
		t.Errorf("built %+v, from another source than %+v", second, first)
	}
	if sb := create(w.caller); sb.Build != second.ID || sb.MemoryMiB != 1024 || sb.Template != "base" {
		t.Errorf("created %+v, want one of %s", sb, second.ID)
	}
	if sb := create(w.team(t, "other")); sb.Build != "" {
		t.Errorf("another team's base: %+v", sb)
	}
	derived := built(t, s, w.caller, service.BuildTemplate{Name: "mine", FromTemplate: "base"})
	if derived.Spec.From.Template != second.ID {
		t.Errorf("a template from the base: %+v", derived)
	}
	list, err := s.ListTemplates(t.Context(), w.caller)
	if err != nil || len(list) != 2 {
		t.Errorf("templates: %+v, %v", list, err)
	}
	if err := s.DeleteTemplate(t.Context(), w.caller, "base"); err != nil {
		t.Fatal(err)
	}
	if sb := create(w.caller); sb.Build != "" {
		t.Errorf("created %+v, want one of the built-in base", sb)
	}
	testkit.WantCode(t, s.DeleteTemplate(t.Context(), w.caller, "base"), wrenn.FailedPrecondition, "built in")
}

// TestDisks: the size of a disk comes from the request, or from the template.
func TestDisks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	create := func(template string, mib int) (*wrenn.Sandbox, error) {
		return s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: template, DiskMiB: mib}})
	}
	build := service.BuildTemplate{Name: "large", Spec: wrenn.TemplateSpec{DiskMiB: 15 << 10, MinFreeDiskMiB: 100}}
	if g := built(t, s, w.caller, build); g.State != wrenn.BuildReady || g.Spec.DiskMiB != 15<<10 {
		t.Fatalf("built %+v", g)
	}
	for _, tt := range []struct {
		template  string
		mib, want int
	}{{"base", 0, 0}, {"base", 20 << 10, 20 << 10}, {"large", 0, 15 << 10}, {"large", 16 << 10, 16 << 10}} {
		sb, err := create(tt.template, tt.mib)
		if err != nil || sb.DiskMiB != tt.want {
			t.Errorf("%s with %d MiB: %+v, %v", tt.template, tt.mib, sb, err)
		}
	}
	_, err := create("large", 10<<10)
	testkit.WantCode(t, err, wrenn.Invalid, "template large has a disk of 15360 MiB")
	_, err = create("base", 20<<10+1)
	testkit.WantCode(t, err, wrenn.Invalid, "limits.disk_mb of the control plane")
	for _, spec := range []wrenn.TemplateSpec{{DiskMiB: 1 << 20}, {MinFreeDiskMiB: 1 << 20}} {
		_, err = s.BuildTemplate(t.Context(), w.caller, service.BuildTemplate{Name: "huge", Spec: spec})
		testkit.WantCode(t, err, wrenn.Invalid, "at most 20480 MiB, not 1048576")
	}
}

func TestTemplateFromSandboxAndImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{}, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Env: map[string]string{"KEY": "of the sandbox"}, Size: wrenn.Size{MemoryMiB: 256}}})
	if err != nil {
		t.Fatal(err)
	}
	g := built(t, s, w.caller, service.BuildTemplate{Name: "mine:v1", Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Sandbox: sb.ID}}})
	if g.State != wrenn.BuildReady || g.Host != sb.Host || g.Spec.MemoryMiB != 256 || g.Spec.Env["KEY"] == "" || g.Template.String() != "mine:v1" {
		t.Errorf("from a sandbox: %+v", g)
	}
	_, err = s.BuildTemplate(t.Context(), w.team(t, "other"), service.BuildTemplate{Name: "x", Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Sandbox: sb.ID}}})
	testkit.WantCode(t, err, wrenn.NotFound, string(sb.ID))

	// The variables of a container image are kept, those of the request win.
	g = built(t, s, w.caller, service.BuildTemplate{Name: "oci", Login: wrenn.RegistryLogin{Username: "u", Password: "p"}, Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{OCI: "debian:12"}, Env: map[string]string{"A": "1"}}})
	if diff := cmp.Diff(map[string]string{"FROM_IMAGE": "yes", "A": "1"}, g.Spec.Env); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}

	// An image may be on any of the hosts.
	for i, agent := range w.agents {
		agent.Build = func(context.Context, *pb.BuildTemplateRequest, func(string)) error {
			if i == 0 {
				return wrenn.Errorf(wrenn.NotFound, "there is no image tools")
			}
			return nil
		}
	}
	g = built(t, s, w.caller, service.BuildTemplate{Name: "img", Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Image: "tools"}}})
	if g.State != wrenn.BuildReady || g.Host != hostID(1) {
		t.Errorf("from an image: %+v", g)
	}
}

func TestBuildTemplateRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	for name, tt := range map[string]struct {
		req  service.BuildTemplate
		code wrenn.Code
		text string
	}{
		"a tag of the base":         {service.BuildTemplate{Name: "base:mine"}, wrenn.Invalid, "has no tags"},
		"no name":                   {service.BuildTemplate{Name: "a b"}, wrenn.Invalid, "name"},
		"two sources":               {service.BuildTemplate{Name: "x", Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Image: "a", OCI: "b"}}}, wrenn.Invalid, "one of them"},
		"a sandbox with a size":     {service.BuildTemplate{Name: "x", Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Sandbox: wrenn.NewSandboxID()}, Size: wrenn.Size{VCPUs: 1}}}, wrenn.Invalid, "as it is"},
		"a sandbox that is not":     {service.BuildTemplate{Name: "x", Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Sandbox: wrenn.NewSandboxID()}}}, wrenn.NotFound, "no sandbox"},
		"a login for no registry":   {service.BuildTemplate{Name: "x", Login: wrenn.RegistryLogin{Password: "p"}}, wrenn.Invalid, "login"},
		"more memory than may be":   {service.BuildTemplate{Name: "x", Spec: wrenn.TemplateSpec{Size: wrenn.Size{MemoryMiB: 1 << 20}}}, wrenn.Invalid, "MB of memory"},
		"more memory than there is": {service.BuildTemplate{Name: "x", Spec: wrenn.TemplateSpec{Size: wrenn.Size{VCPUs: 99}}}, wrenn.Invalid, "vCPUs"},
		"variables without end":     {service.BuildTemplate{Name: "x", Spec: wrenn.TemplateSpec{Env: map[string]string{"A": strings.Repeat("a", 70<<10)}}}, wrenn.Invalid, "variables"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.BuildTemplate(t.Context(), w.caller, tt.req)
			testkit.WantCode(t, err, tt.code, tt.text)
		})
	}
	if n := w.dump(t, "SELECT count(*)::text FROM template_generations"); n != "0" {
		t.Errorf("%s rows of builds that were refused", n)
	}
}

// TestBuildFails: the reason is the host's, the name keeps its build.
func TestBuildFails(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	good := built(t, s, w.caller, service.BuildTemplate{Name: "x"})
	agent.Build = func(_ context.Context, _ *pb.BuildTemplateRequest, say func(string)) error {
		for i := range 3000 {
			say(fmt.Sprintf("line %d", i))
		}
		return wrenn.Errorf(wrenn.FailedPrecondition, "the start command ended: exit status 1")
	}
	bad := built(t, s, w.caller, service.BuildTemplate{Name: "x"})
	if bad.State != wrenn.BuildFailed || bad.Reason != "the start command ended: exit status 1" {
		t.Errorf("failed: %+v", bad)
	}
	_, log, err := s.Build(t.Context(), w.caller, "x", bad.ID, 0)
	if err != nil || log.First != 1000 || len(log.Lines) != 1000 || log.Lines[0] != "line 1000" || log.Next != 2000 {
		t.Errorf("log from %d, %d lines, next %d, %v", log.First, len(log.Lines), log.Next, err)
	}
	if sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: "x"}}); err != nil || sb.Build != good.ID {
		t.Errorf("created %+v, %v", sb, err)
	}
	never := built(t, s, w.caller, service.BuildTemplate{Name: "y"})
	_, err = s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: "y"}})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, never.Reason)
}

// TestBuildFailsWithAnyWords: a build ends with any message of its host, which may come
// from a guest and have bytes that a database cannot hold.
func TestBuildFailsWithAnyWords(t *testing.T) {
	t.Parallel()
	const most = 4 << 10
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	for name, tt := range map[string]struct {
		code       wrenn.Code
		text, want string
		log        []string
	}{
		"cut in a character": {wrenn.FailedPrecondition, strings.Repeat("x", most-1) + "é", strings.Repeat("x", most-1), nil},
		"zeros":              {wrenn.FailedPrecondition, "a\x00b", "a?b", nil},
		"zeros in the log":   {wrenn.Exhausted, "a\x00b", "a?b", []string{"host " + string(hostID(0)) + ": a?b"}}, // of a host that could not
	} {
		t.Run(name, func(t *testing.T) {
			agent.Build = func(context.Context, *pb.BuildTemplateRequest, func(string)) error {
				return &wrenn.Error{Code: tt.code, Message: tt.text}
			}
			g := built(t, s, w.caller, service.BuildTemplate{Name: "x"})
			if g.State != wrenn.BuildFailed || g.Reason != tt.want {
				t.Errorf("failed: %s, %q", g.State, g.Reason)
			}
			_, log, err := s.Build(t.Context(), w.caller, "x", g.ID, 0)
			if diff := cmp.Diff(tt.log, log.Lines); diff != "" || err != nil {
				t.Errorf("log: %v\n%s", err, diff)
			}
		})
	}
}

// TestBuildWhoseResultIsRefused: a result that the database refuses is not retried forever.
func TestBuildWhoseResultIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	w.sql(t, "ALTER TABLE template_generations ADD CHECK (state <> 'ready')")
	if g := built(t, s, w.caller, service.BuildTemplate{Name: "x"}); g.State != wrenn.BuildFailed || !strings.Contains(g.Reason, "cannot be stored") {
		t.Errorf("ended: %s, %q", g.State, g.Reason)
	}
}

// hanging is a host whose builds run until they are canceled; over gets their ids.
func hanging(begun, over chan string) *hosttest.Agent {
	return &hosttest.Agent{Build: func(ctx context.Context, req *pb.BuildTemplateRequest, say func(string)) error {
		say("booting")
		begun <- req.GetGeneration()
		<-ctx.Done()
		over <- req.GetGeneration()
		return ctx.Err()
	}}
}

func TestBuildsAreBoundedAndCanBeDeleted(t *testing.T) {
	t.Parallel()
	begun, over := make(chan string, 8), make(chan string, 8)
	w := newWorld(t, hanging(begun, over))
	s, _ := w.replica(t, func(c *service.Config) { c.Limits.Builds, c.Limits.Templates = 2, 3 })
	first, err := s.BuildTemplate(t.Context(), w.caller, service.BuildTemplate{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	_, err = s.BuildTemplate(t.Context(), w.caller, service.BuildTemplate{Name: "a:latest"})
	testkit.WantCode(t, err, wrenn.AlreadyExists, "being built already")
	_, err = s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: "a"}})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "still being built")
	if _, err = s.BuildTemplate(t.Context(), w.caller, service.BuildTemplate{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	<-begun
	_, err = s.BuildTemplate(t.Context(), w.caller, service.BuildTemplate{Name: "c"})
	testkit.WantCode(t, err, wrenn.Exhausted, "limit of 2 builds")

	if err := s.DeleteTemplate(t.Context(), w.caller, "a"); err != nil {
		t.Fatal(err)
	}
	if id := <-over; id != string(first.ID) {
		t.Errorf("build %s was given up, want %s", id, first.ID)
	}
	g, _, err := s.Build(t.Context(), w.caller, "a", first.ID, 0)
	if err != nil || g.State != wrenn.BuildDeleted {
		t.Errorf("deleted while it was built: %+v, %v", g, err)
	}
}

func TestBuildOfAServerThatStops(t *testing.T) {
	t.Parallel()
	begun, over := make(chan string, 8), make(chan string, 8)
	w := newWorld(t, hanging(begun, over))
	s, stop := w.replica(t, nil)
	g, err := s.BuildTemplate(t.Context(), w.caller, service.BuildTemplate{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	stop()
	<-over
	other, _ := w.replica(t, nil)
	if g := settled(t, other, w.caller, g); g.State != wrenn.BuildFailed || !strings.Contains(g.Reason, "stopped") {
		t.Errorf("after a stop: %+v", g)
	}
}

func TestTemplatesOfHostsAreCompared(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, func(c *service.Config) { c.ReconcileEvery = secondly })
	kept := built(t, s, w.caller, service.BuildTemplate{Name: "kept"})
	lost := built(t, s, w.caller, service.BuildTemplate{Name: "lost"})
	dead := wrenn.NewBuildID()
	unknown, stale := wrenn.NewBuildID(), wrenn.NewBuildID()
	w.sql(t, `INSERT INTO template_generations (id, team_id, name, tag, state, host_id, vcpus, memory_mb, updated_at)
		VALUES ($1, $2, 'stale', 'latest', 'failed', 'h1', 1, 512, now() - interval '1 hour')`, string(stale), string(w.caller.Team))
	w.sql(t, `INSERT INTO template_generations (id, team_id, name, tag, state, host_id, vcpus, memory_mb, worker, updated_at)
		VALUES ($1, $2, 'dead', 'latest', 'building', 'h1', 1, 512, 1, now() - interval '1 hour')`, string(dead), string(w.caller.Team))
	agent.Keep(unknown)
	agent.Keep(stale)
	agent.Forget(lost.ID)
	testkit.WaitUntil(t, "lost, dead and canceled builds have ended", func() bool {
		g, _, err := s.Build(t.Context(), w.caller, "lost", lost.ID, 0)
		d, _, deadErr := s.Build(t.Context(), w.caller, "dead", dead, 0)
		return err == nil && deadErr == nil && g.State == wrenn.BuildFailed && d.State == wrenn.BuildFailed && len(agent.Builds()) == 2
	})
	have := strings.Join(agent.Builds(), " ")
	if !strings.Contains(have, string(unknown)) || !strings.Contains(have, string(kept.ID)) {
		t.Errorf("the host has %s, want what is unknown and what is kept", have)
	}
	_, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Template: "lost"}})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "does not have it")
}

// The files of a team are where its builds run, and nowhere else.
func TestBuildWithSteps(t *testing.T) {
	t.Parallel()
	agents := []*hosttest.Agent{{}, {}}
	var got *pb.BuildTemplateRequest
	for _, a := range agents {
		a.Build = func(_ context.Context, req *pb.BuildTemplateRequest, log func(string)) error {
			got = req
			if req.GetStartCmd() == "fail" {
				return wrenn.Errorf(wrenn.GuestFailed, "failed to run command 'exit 1': exit status 1")
			}
			log("#1 [1/1] COPY a /b")
			return nil
		}
	}
	w := newWorld(t, agents...)
	s, _ := w.replica(t, nil)
	hash := strings.Repeat("a", 64)
	for _, want := range []bool{false, true} {
		if there, err := s.HasBuildFiles(t.Context(), w.caller, hash); err != nil || there != want {
			t.Fatalf("HasBuildFiles() = %v, %v; want %v", there, err, want)
		}
		testkit.Must(t, s.PutBuildFiles(t.Context(), w.caller, hash, strings.NewReader("archive")))
	}
	if there, err := s.HasBuildFiles(t.Context(), w.team(t, "strangers"), hash); err != nil || there {
		t.Errorf("another team's files: %v, %v", there, err)
	}
	_, err := s.HasBuildFiles(t.Context(), w.caller, "../x")
	testkit.WantCode(t, err, wrenn.Invalid, "not a hash")
	req := service.BuildTemplate{Name: "app", Spec: wrenn.TemplateSpec{Steps: []wrenn.BuildStep{{Kind: wrenn.StepCopy, Args: []string{"a", "/b"}, Files: hash}}}}
	first := built(t, s, w.caller, req)
	if first.State != wrenn.BuildReady || got.GetTeam() != string(w.caller.Team) || got.GetSteps()[0].GetFiles() != hash {
		t.Errorf("built %+v by %v", first, got)
	}
	for i, a := range agents {
		if (a.BuildFiles(w.caller.Team, hash) != nil) != (len(a.Builds()) > 0) {
			t.Errorf("host %d has the build or the files, and not both", i)
		}
	}
	derived := built(t, s, w.caller, service.BuildTemplate{Name: "derived", FromTemplate: "app"})
	if derived.Spec.From.Template != first.ID || derived.Host != first.Host || got.GetBaseGeneration() != string(first.ID) {
		t.Errorf("built %+v by %v", derived, got)
	}
	_, err = s.BuildTemplate(t.Context(), w.team(t, "others"), service.BuildTemplate{Name: "x", FromTemplate: "app"})
	testkit.WantCode(t, err, wrenn.NotFound, "no template app")
	_, err = s.BuildTemplate(t.Context(), w.caller, service.BuildTemplate{Name: "x", FromTemplate: "app", Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{OCI: "a"}}})
	testkit.WantCode(t, err, wrenn.Invalid, "one of them")
	req.Spec.StartCmd = "fail"
	if failed := built(t, s, w.caller, req); failed.State != wrenn.BuildFailed || failed.FailedStep != "finalize" {
		t.Errorf("a build that fails: %+v", failed)
	}
}
