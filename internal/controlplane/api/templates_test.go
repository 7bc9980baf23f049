package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn"
	"wrenn/internal/controlplane/service"
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

const buildJSON = `{"id":"` + string(testBuild) + `","template":"py","state":"failed","reason":"no way","from_oci":"debian:12","vcpus":1,"memory_mb":512,` +
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
		{name: "no name", method: method, path: strings.Replace(path, "/py", "/a%20b", 1), status: 400, code: "invalid_request"},
		{name: "traversal", method: method, path: strings.Replace(path, "/py", "/..%2Fx", 1), status: 400, code: "invalid_request"},
		{name: "no key", method: method, path: path, key: "-", status: 401, code: "unauthorized"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: method, path: path, status: 503, code: "unavailable"},
		{name: "panic", service: &stub{panics: true}, method: method, path: path, status: 500, code: "internal"},
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
					if diff := cmp.Diff(want, s.built); diff != "" {
						t.Errorf("asked for (-want +got):\n%s", diff)
					}
					if at := resp.Header.Get("Location"); at != build {
						t.Errorf("Location = %q, want %q", at, build)
					}
				}},
			{name: "no name", method: "POST", path: all, body: `{}`, status: 400, code: "invalid_request"},
			{name: "wrong name", method: "POST", path: all, body: `{"name":"a b"}`, status: 400, code: "invalid_request"},
			{name: "an image's path", method: "POST", path: all, body: `{"name":"py","from_image":"../x"}`, status: 400, code: "invalid_request"},
			{name: "no sandbox", method: "POST", path: all, body: `{"name":"py","from_sandbox":"x"}`, status: 400, code: "invalid_request"},
			{name: "taken", service: &stub{fail: wrenn.Errorf(wrenn.AlreadyExists, "being built")}, method: "POST", path: all, body: `{"name":"py"}`, status: 409, code: "conflict"},
			{name: "limit", service: &stub{fail: wrenn.Errorf(wrenn.Exhausted, "no more")}, method: "POST", path: all, body: `{"name":"py"}`, status: 429, code: "limit_exceeded"},
			{name: "no key", method: "POST", path: all, body: `{"name":"py"}`, key: "-", status: 401, code: "unauthorized"},
		}),
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
			call{name: "no id of one", method: "GET", path: one + "/generations/x", status: 400, code: "invalid_request"}),
	}
}
