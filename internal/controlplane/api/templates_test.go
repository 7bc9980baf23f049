package api

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
)

const (
	testBuild  = wrenn.BuildID("tgggggggggggggggggggg")
	otherBuild = "toooooooooooooooooooo"
)

func testTemplate() *wrenn.Build {
	return &wrenn.Build{
		ID: testBuild, Team: testTeam, Template: wrenn.TemplateName{Name: "py", Tag: "latest"}, State: wrenn.BuildFailed, Reason: "no way", Host: "h1",
		Spec: wrenn.TemplateSpec{
			From: wrenn.TemplateSource{OCI: "debian:12"}, Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}, Env: map[string]string{"SECRET": "s3cr3t"}, StartCmd: "serve", ReadyCmd: "look",
		},
		SizeBytes: 4096, Digest: "sha256:1", CreatedAt: testTime, UpdatedAt: testTime,
	}
}

const buildJSON = `{"id":"` + string(testBuild) + `","template":"py","state":"failed","reason":"no way","from_oci":"debian:12","vcpus":1,"memory_mb":512,"disk_mb":10240,` +
	`"start_cmd":"serve","ready_cmd":"look","size_bytes":4096,"digest":"sha256:1","created_at":"2026-01-02T15:04:05Z","last_updated":"2026-01-02T15:04:05Z"}`

// findTemplate is find for a template's name.
func (s *stub) findTemplate(c service.Caller, name string) error {
	if _, err := s.find(c, testID); err != nil {
		return err
	}
	if name != "py" {
		return wrenn.Errorf(wrenn.NotFound, "there is no template %s", name)
	}
	return nil
}

func (s *stub) BuildTemplate(_ context.Context, c service.Caller, req service.BuildTemplate) (*wrenn.Build, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.built = req
	return testTemplate(), s.findTemplate(c, req.Name)
}

func (s *stub) ListTemplates(_ context.Context, c service.Caller) ([]wrenn.Template, error) {
	g := testTemplate()
	base := wrenn.Template{Name: wrenn.TemplateName{Name: "base", Tag: "latest"}}
	return []wrenn.Template{base, {Name: g.Template, Latest: g}}, s.findTemplate(c, "py")
}

func (s *stub) Template(_ context.Context, c service.Caller, name string) (*wrenn.Template, error) {
	g := testTemplate()
	return &wrenn.Template{Name: g.Template, Current: g, Latest: g}, s.findTemplate(c, name)
}

func (s *stub) Build(_ context.Context, c service.Caller, name string, id wrenn.BuildID, from int64) (*wrenn.Build, service.BuildLog, error) {
	err := s.findTemplate(c, name)
	if err == nil && id != testBuild {
		err = wrenn.Errorf(wrenn.NotFound, "no such build")
	}
	log := service.BuildLog{First: from, Next: from}
	if from == 0 {
		log = service.BuildLog{Lines: []string{"booting"}, Next: 1}
	}
	return testTemplate(), log, err
}

func (s *stub) DeleteTemplate(_ context.Context, c service.Caller, name string) error {
	return s.findTemplate(c, name)
}

// templateFailures are calls with an invalid template.
func templateFailures(method, path string) []call {
	return []call{
		{name: "missing", method: method, path: strings.Replace(path, "/py", "/other:1", 1), status: 404, code: "not_found"},
		{name: "no name", method: method, path: strings.Replace(path, "/py", "/a%20b", 1), status: 404, code: "not_found"},
		{name: "traversal", method: method, path: strings.Replace(path, "/py", "/..%2Fx", 1), status: 404, code: "not_found"},
		{name: "no key", method: method, path: path, key: "-", status: 401, code: "unauthorized"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: method, path: path, status: 503, code: "unavailable"},
		{name: "panic", service: &stub{panics: true}, method: method, path: path, status: 500, code: "internal"},
	}
}

// testHash names files that were uploaded; those of any other hash are missing.
var testHash = strings.Repeat("a", 64)

func (s *stub) HasBuildFiles(_ context.Context, c service.Caller, hash string) (bool, error) {
	return hash == testHash, s.findTemplate(c, "py")
}

func (s *stub) PutBuildFiles(_ context.Context, c service.Caller, hash string, content io.Reader) error {
	text, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string]string{}
	}
	s.files[hash] = string(text)
	return s.findTemplate(c, "py")
}

func putFilesCalls(path string) []call {
	good, media := fields("file", "archive")
	other, otherMedia := fields("path", "/tmp/x", "file", "archive")
	after, afterMedia := fields("file", "archive", "path", "/tmp/x")
	none := func(t *testing.T, s *stub, _ *http.Response) {
		t.Helper()
		if len(s.files) != 0 {
			t.Errorf("stored: %q", s.files)
		}
	}
	return []call{
		{name: "ok", method: "PUT", path: path, body: good, media: media, status: 204, check: func(t *testing.T, s *stub, _ *http.Response) {
			t.Helper()
			if diff := cmp.Diff(map[string]string{testHash: "archive"}, s.files); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
		}},
		{name: "another field", method: "PUT", path: path, body: other, media: otherMedia, status: 400, code: "invalid_request", check: none},
		{name: "a field after the file", method: "PUT", path: path, body: after, media: afterMedia, status: 400, code: "invalid_request", check: none},
		{name: "cut", method: "PUT", path: path, body: good[:len(good)-10], media: media, status: 400, code: "invalid_request", check: none},
		{name: "no form", method: "PUT", path: path, body: "{}", status: 415, code: "unsupported_media_type", check: none},
		{name: "no hash", method: "PUT", path: "/v1/build-files/x", body: good, media: media, status: 400, code: "invalid_request", check: none},
		{name: "no key", method: "PUT", path: path, body: good, media: media, key: "-", status: 401, code: "unauthorized", check: none},
	}
}

func templateCalls() map[string][]call {
	const all, one = "/v1/templates", "/v1/templates/py"
	build := one + "/generations/" + string(testBuild)
	return map[string][]call{
		"buildTemplate": slices.Concat(jsonCalls(all), []call{
			{name: "name alone", method: "POST", path: all, body: `{"name":"py"}`, status: 202, want: buildJSON},
			{name: "all of it", method: "POST", path: all, status: 202, want: buildJSON,
				body: `{"name":"py","from_oci":"debian:12","registry_username":"u","registry_password":"p","vcpus":2,"memory_mb":1024,"env":{"A":"b"},"start_cmd":"serve","ready_cmd":"look","ready_timeout_sec":60}`,
				check: func(t *testing.T, s *stub, resp *http.Response) {
					t.Helper()
					want := service.BuildTemplate{
						Name: "py", Login: wrenn.RegistryLogin{Username: "u", Password: "p"},
						Spec: wrenn.TemplateSpec{
							From: wrenn.TemplateSource{OCI: "debian:12"}, Size: wrenn.Size{VCPUs: 2, MemoryMiB: 1024}, Env: map[string]string{"A": "b"},
							StartCmd: "serve", ReadyCmd: "look", ReadyTimeout: time.Minute,
						},
					}
					if diff := cmp.Diff(want, s.built, cmpopts.IgnoreUnexported(service.BuildTemplate{})); diff != "" {
						t.Errorf("asked for (-want +got):\n%s", diff)
					}
					if at := resp.Header.Get("Location"); at != build {
						t.Errorf("Location = %q, want %q", at, build)
					}
				}},
			{name: "steps", method: "POST", path: all, status: 202, want: buildJSON,
				body: `{"name":"py","from_template":"web:1","no_cache":true,"user":"user","workdir":"/app","steps":[{"kind":"COPY","args":["a","b"],"files":"` + testHash + `"},{"kind":"RUN","args":["make"],"shell":["/bin/sh","-c"],"force":true}]}`,
				check: func(t *testing.T, s *stub, _ *http.Response) {
					t.Helper()
					want := service.BuildTemplate{Name: "py", FromTemplate: "web:1", Spec: wrenn.TemplateSpec{
						NoCache: true, User: "user", Workdir: "/app", Steps: []wrenn.BuildStep{
							{Kind: wrenn.StepCopy, Args: []string{"a", "b"}, Files: testHash},
							{Kind: wrenn.StepRun, Args: []string{"make"}, Shell: []string{"/bin/sh", "-c"}, Force: true},
						},
					}}
					if diff := cmp.Diff(want, s.built, cmpopts.IgnoreUnexported(service.BuildTemplate{})); diff != "" {
						t.Errorf("asked for (-want +got):\n%s", diff)
					}
				}},
			{name: "an unknown step", method: "POST", path: all, body: `{"name":"py","steps":[{"kind":"LINK","args":["a"]}]}`, status: 400, code: "invalid_request"},
			{name: "no hash", method: "POST", path: all, body: `{"name":"py","steps":[{"kind":"COPY","args":["a","b"],"files":"../x"}]}`, status: 400, code: "invalid_request"},
			{name: "no name", method: "POST", path: all, body: `{}`, status: 400, code: "invalid_request"},
			{name: "wrong name", method: "POST", path: all, body: `{"name":"a b"}`, status: 400, code: "invalid_request"},
			{name: "an image's path", method: "POST", path: all, body: `{"name":"py","from_image":"../x"}`, status: 400, code: "invalid_request"},
			{name: "no sandbox", method: "POST", path: all, body: `{"name":"py","from_sandbox":"x"}`, status: 400, code: "invalid_request"},
			{name: "taken", service: &stub{fail: wrenn.Errorf(wrenn.AlreadyExists, "being built")}, method: "POST", path: all, body: `{"name":"py"}`, status: 409, code: "conflict"},
			{name: "limit", service: &stub{fail: wrenn.Errorf(wrenn.Exhausted, "no more")}, method: "POST", path: all, body: `{"name":"py"}`, status: 429, code: "limit_exceeded"},
			{name: "no key", method: "POST", path: all, body: `{"name":"py"}`, key: "-", status: 401, code: "unauthorized"},
		}),
		"findBuildFiles": {
			{name: "there", method: "GET", path: "/v1/build-files/" + testHash, status: 200, want: `{"present":true}`},
			{name: "missing", method: "GET", path: "/v1/build-files/" + strings.Repeat("b", 64), status: 200, want: `{"present":false}`},
			{name: "no hash", method: "GET", path: "/v1/build-files/x", status: 400, code: "invalid_request"},
			{name: "no key", method: "GET", path: "/v1/build-files/" + testHash, key: "-", status: 401, code: "unauthorized"},
		},
		"putBuildFiles": putFilesCalls("/v1/build-files/" + testHash),
		"listTemplates": {
			{name: "ok", method: "GET", path: all, status: 200, want: `[{"name":"base","builtin":true},{"name":"py","builtin":false,"latest":` + buildJSON + `}]`},
			{name: "no key", method: "GET", path: all, key: "-", status: 401, code: "unauthorized"},
		},
		"getTemplate": append(templateFailures("GET", one),
			call{name: "ok", method: "GET", path: one, status: 200, want: `{"name":"py","builtin":false,"current":` + buildJSON + `,"latest":` + buildJSON + `}`}),
		"deleteTemplate": append(templateFailures("DELETE", one), call{name: "ok", method: "DELETE", path: one, status: 204}),
		"getGeneration": append(templateFailures("GET", build),
			call{name: "ok", method: "GET", path: build, status: 200, want: `{"generation":` + buildJSON + `,"first":0,"lines":["booting"],"next":1}`},
			call{name: "the end", method: "GET", path: build + "?from=7", status: 200, want: `{"generation":` + buildJSON + `,"first":7,"lines":[],"next":7}`},
			call{name: "before the start", method: "GET", path: build + "?from=-1", status: 400, code: "invalid_request"},
			call{name: "no such build", method: "GET", path: one + "/generations/" + otherBuild, status: 404, code: "not_found"},
			call{name: "no id of one", method: "GET", path: one + "/generations/x", status: 404, code: "not_found"}),
	}
}
