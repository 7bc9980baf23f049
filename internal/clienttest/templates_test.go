package clienttest

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/service"
)

const buildID = wrenn.BuildID("t00000000000000000001")

func (f *fake) template(state wrenn.BuildState) *wrenn.Build {
	return &wrenn.Build{
		ID: buildID, Template: wrenn.TemplateName{Name: "py", Tag: "v1"}, State: state, CreatedAt: made, UpdatedAt: made,
		Spec: wrenn.TemplateSpec{Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}, From: wrenn.TemplateSource{OCI: "debian:12"}},
	}
}

func (f *fake) BuildTemplate(_ context.Context, _ service.Caller, req service.BuildTemplate) (*wrenn.Build, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.built = req
	return f.template(wrenn.BuildBuilding), nil
}

func (f *fake) ListTemplates(context.Context, service.Caller) ([]wrenn.Template, error) {
	return []wrenn.Template{{Name: wrenn.TemplateName{Name: "base", Tag: "latest"}}, {Name: wrenn.TemplateName{Name: "py", Tag: "v1"}, Latest: f.template(wrenn.BuildReady)}}, nil
}

func (f *fake) Template(_ context.Context, _ service.Caller, name string) (*wrenn.Template, error) {
	if name != "py:v1" {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no template %s", name)
	}
	return &wrenn.Template{Name: wrenn.TemplateName{Name: "py", Tag: "v1"}, Current: f.template(wrenn.BuildReady)}, nil
}

// Build returns one log line at each call, and is ready after the third.
func (f *fake) Build(_ context.Context, _ service.Caller, _ string, _ wrenn.BuildID, from int64) (*wrenn.Build, service.BuildLog, error) {
	said := []string{"one", "two", "three"}
	if from >= int64(len(said)) {
		return f.template(wrenn.BuildReady), service.BuildLog{First: from, Next: from}, nil
	}
	return f.template(wrenn.BuildBuilding), service.BuildLog{First: from, Lines: said[from : from+1], Next: from + 1}, nil
}

func (f *fake) DeleteTemplate(ctx context.Context, c service.Caller, name string) error {
	_, err := f.Template(ctx, c, name)
	return err
}

func (f *fake) HasBuildFiles(_ context.Context, _ service.Caller, hash string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.uploaded[hash] != "", nil
}

func (f *fake) PutBuildFiles(_ context.Context, _ service.Caller, hash string, content io.Reader) error {
	text, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uploaded = map[string]string{hash: string(text)}
	return nil
}

func TestBuildFiles(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	hash := strings.Repeat("a", 64)
	broken := errors.New("unreadable")
	err := c.PutBuildFiles(t.Context(), hash, io.MultiReader(strings.NewReader("half"), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("PutBuildFiles() = %v", err)
	}
	for _, want := range []bool{false, true} {
		if got, err := c.HasBuildFiles(t.Context(), hash); err != nil || got != want {
			t.Errorf("HasBuildFiles() = %v, %v; want %v", got, err, want)
		}
		if err := c.PutBuildFiles(t.Context(), hash, strings.NewReader("archive")); err != nil {
			t.Error(err)
		}
	}
	if f.uploaded[hash] != "archive" {
		t.Errorf("uploaded %q", f.uploaded)
	}
	steps := []client.BuildStep{{Kind: "COPY", Args: []string{"a", "b"}, Files: hash}, {Kind: "RUN", Args: []string{"make"}, Shell: []string{"sh", "-c"}, Force: true}}
	if _, err := c.BuildTemplate(t.Context(), client.BuildTemplate{Name: "py:v1", FromTemplate: "web", Steps: steps, NoCache: true, User: "u", Workdir: "/w"}); err != nil {
		t.Fatal(err)
	}
	want := service.BuildTemplate{Name: "py:v1", FromTemplate: "web", Spec: wrenn.TemplateSpec{NoCache: true, User: "u", Workdir: "/w", Steps: []wrenn.BuildStep{
		{Kind: wrenn.StepCopy, Args: []string{"a", "b"}, Files: hash}, {Kind: wrenn.StepRun, Args: []string{"make"}, Shell: []string{"sh", "-c"}, Force: true},
	}}}
	if diff := cmp.Diff(want, f.built, cmpopts.IgnoreUnexported(service.BuildTemplate{})); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
}

func TestTemplates(t *testing.T) {
	f := &fake{}
	c := serve(t, f)
	g, err := c.BuildTemplate(t.Context(), client.BuildTemplate{
		Name: "py:v1", FromOCI: "debian:12", RegistryUsername: "u", RegistryPassword: "p", MemoryMB: 1024, Env: map[string]string{"A": "b"},
		StartCmd: "serve", ReadyCmd: "look", ReadyTimeout: 1500 * time.Millisecond,
	})
	if err != nil || g.State != client.BuildBuilding || g.Template != "py:v1" {
		t.Fatalf("BuildTemplate() = %+v, %v", g, err)
	}
	want := service.BuildTemplate{Name: "py:v1", Login: wrenn.RegistryLogin{Username: "u", Password: "p"}, Spec: wrenn.TemplateSpec{
		From: wrenn.TemplateSource{OCI: "debian:12"}, Size: wrenn.Size{MemoryMiB: 1024}, Env: map[string]string{"A": "b"}, StartCmd: "serve", ReadyCmd: "look", ReadyTimeout: 2 * time.Second,
	}}
	if diff := cmp.Diff(want, f.built, cmpopts.IgnoreUnexported(service.BuildTemplate{})); diff != "" {
		t.Errorf("asked for (-want +got):\n%s", diff)
	}
	var said []string
	done, err := c.FollowBuild(t.Context(), g.Template, g.ID, func(line string) { said = append(said, line) })
	if err != nil || done.State != client.BuildReady || !slices.Equal(said, []string{"one", "two", "three"}) {
		t.Errorf("FollowBuild() = %+v, %v, it said %q", done, err, said)
	}
	list, err := c.Templates(t.Context())
	if err != nil || len(list) != 2 || !list[0].Builtin || list[1].Latest.FromOCI != "debian:12" {
		t.Errorf("Templates() = %+v, %v", list, err)
	}
	if one, err := c.Template(t.Context(), "py:v1"); err != nil || one.Current == nil || one.Current.ID != string(buildID) {
		t.Errorf("Template() = %+v, %v", one, err)
	}
	if err := c.DeleteTemplate(t.Context(), "py:v1"); err != nil {
		t.Error(err)
	}
	if err := c.DeleteTemplate(t.Context(), "other"); client.CodeOf(err) != client.NotFound {
		t.Errorf("DeleteTemplate(other) = %v", err)
	}
}
