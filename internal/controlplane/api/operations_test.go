package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/api"
	"wrenn.dev/internal/buildinfo"
	"wrenn.dev/internal/controlplane/service"
)

// spec is the contract as read by a library that the server does not use.
func spec(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.V1)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// call is a request and its expected answer.
type call struct {
	name    string
	service *stub // nil is one without faults
	path    string
	method  string
	key     string // "" is the right one, "-" none
	header  http.Header
	body    string
	media   string // of the body; "" is JSON when there is one

	status int
	code   string // of an error
	want   string // JSON of the answer, or its text
	check  func(*testing.T, *stub, *http.Response)
}

const runningJSON = `{"id":"iabcdefghijklmnopqrst","status":"running","template":"base","vcpus":1,"memory_mb":512,"disk_mb":10240,"timeout_sec":300,"on_timeout":"pause","auto_resume":true,
	"metadata":{"user":"alice"},"created_at":"2026-01-02T15:04:05Z","started_at":"2026-01-02T15:04:05Z",
	"last_active_at":"2026-01-02T15:04:05Z","last_updated":"2026-01-02T15:04:05Z"}`

// oneJSON is runningJSON where it is shown alone.
var oneJSON = strings.Replace(runningJSON, "{", `{"ports":{"url":"/p/`+testID+`/{port}/","private":false},`, 1)

const at = "/v1/sandboxes/" + testID

func versionJSON() string {
	built := buildinfo.Read()
	return fmt.Sprintf(`{"version":%q,"commit":%q,"date":%q}`, built.Version, built.Commit, built.Date)
}

// sandboxCalls are errors that every operation on a sandbox answers in the same way.
func sandboxCalls(method, path, body, media string) []call {
	to := func(id string) string { return strings.Replace(path, testID, id, 1) }
	calls := []call{
		{name: "missing", method: method, path: to(missingID), body: body, media: media, status: 404, code: "not_found"},
		{name: "no id", method: method, path: to("zzz"), body: body, media: media, status: 404, code: "not_found"},
		{name: "unknown parameter", method: method, path: path + map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + "no_such=1", body: body, media: media, status: 400, code: "invalid_request"},
		{name: "traversal", method: method, path: to("..%2F..%2Fetc"), body: body, media: media, status: 404, code: "not_found"},
		{name: "no key", method: method, path: path, body: body, media: media, key: "-", status: 401, code: "unauthorized"},
		{name: "wrong key", method: method, path: path, body: body, media: media, key: "e2b_no", status: 401, code: "unauthorized"},
		{name: "limit", service: &stub{fail: wrenn.Errorf(wrenn.Exhausted, "no more")}, method: method, path: path, body: body, media: media, status: 429, code: "limit_exceeded"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: method, path: path, body: body, media: media, status: 503, code: "unavailable"},
		{name: "late", service: &stub{fail: wrenn.Errorf(wrenn.DeadlineExceeded, "late")}, method: method, path: path, body: body, media: media, status: 504, code: "timeout"},
		{name: "fault", service: &stub{fail: errors.New("dial /run/secret: refused")}, method: method, path: path, body: body, media: media, status: 500, code: "internal"},
		{name: "panic", service: &stub{panics: true}, method: method, path: path, body: body, media: media, status: 500, code: "internal"},
	}
	if method == "GET" { // looking needs no state
		return calls
	}
	return append(calls, call{
		name: "state", service: &stub{fail: wrenn.Errorf(wrenn.FailedPrecondition, "it stops")},
		method: method, path: path, body: body, media: media, status: 409, code: "invalid_state",
	})
}

// jsonCalls are errors of bodies that every operation with a JSON body answers in the same way.
func jsonCalls(path string) []call { return jsonCallsBy("POST", path) }

func jsonCallsBy(method, path string) []call {
	return []call{
		{name: "no JSON", method: method, path: path, body: `{"cmd":`, status: 400, code: "invalid_request"},
		{name: "not UTF-8", method: method, path: path, body: "{\"cmd\":\"\xff\"}", status: 400, code: "invalid_request"},
		{name: "two values", method: method, path: path, body: `{} {}`, status: 400, code: "invalid_request"},
		{name: "null", method: method, path: path, body: `null`, status: 400, code: "invalid_request"},
		{name: "unknown field", method: method, path: path, body: `{"no_such":1}`, status: 400, code: "invalid_request"},
		{name: "other type", method: method, path: path, body: `<a/>`, media: "text/xml", status: 415, code: "unsupported_media_type"},
		{name: "too large", method: method, path: path, body: `"` + strings.Repeat("x", maxJSON) + `"`, status: 413, code: "too_large"},
	}
}

// fields makes the body of a form, in the order given: name, value, name, value.
func fields(pairs ...string) (body, media string) {
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for pair := range slices.Chunk(pairs, 2) {
		if pair[0] == "file" {
			part, _ := w.CreateFormFile("file", "x")
			_, _ = io.WriteString(part, pair[1])
			continue
		}
		_ = w.WriteField(pair[0], pair[1])
	}
	_ = w.Close()
	return buf.String(), w.FormDataContentType()
}

func formCalls(path string) []call {
	good, media := fields("path", "/tmp/x", "user", "bob", "file", "hi\x00\xff")
	late, lateMedia := fields("file", "hi", "path", "/tmp/x")
	after, afterMedia := fields("path", "/tmp/x", "file", "hi", "user", "bob")
	twice, twiceMedia := fields("path", "/tmp/x", "path", "/tmp/y", "file", "hi")
	stranger, strangerMedia := fields("path", "/tmp/x", "mode", "0644", "file", "hi")
	empty, emptyMedia := fields("path", "", "file", "hi")
	long, longMedia := fields("path", strings.Repeat("x", 5000), "file", "hi")
	nothing, nothingMedia := fields("path", "/tmp/x")
	anyone, anyoneMedia := fields("path", "/tmp/x", "file", "hi")
	none := func(t *testing.T, s *stub, _ *http.Response) {
		t.Helper()
		if len(s.files) != 0 {
			t.Errorf("written: %q", s.files)
		}
	}
	calls := []call{
		{name: "ok", method: "POST", path: path, body: good, media: media, status: 204, check: func(t *testing.T, s *stub, _ *http.Response) {
			t.Helper()
			if diff := cmp.Diff(map[string]string{"/tmp/x": "hi\x00\xff"}, s.files); diff != "" || s.user != "bob" {
				t.Errorf("user %q wrote (-want +got):\n%s", s.user, diff)
			}
		}},
		{name: "user in the query", method: "POST", path: path + "?user=bob", body: anyone, media: anyoneMedia, status: 204, check: func(t *testing.T, s *stub, _ *http.Response) {
			t.Helper()
			if s.user != "bob" || s.files["/tmp/x"] != "hi" {
				t.Errorf("user %q wrote %q", s.user, s.files)
			}
		}},
		{name: "two users", method: "POST", path: path + "?user=bob", body: good, media: media, status: 400, code: "invalid_request", check: none},
		{name: "no user", method: "POST", path: path + "?user=1", body: anyone, media: anyoneMedia, status: 400, code: "invalid_request", check: none},
		{name: "file before path", method: "POST", path: path, body: late, media: lateMedia, status: 400, code: "invalid_request", check: none},
		{name: "field after file", method: "POST", path: path, body: after, media: afterMedia, status: 400, code: "invalid_request", check: none},
		{name: "path twice", method: "POST", path: path, body: twice, media: twiceMedia, status: 400, code: "invalid_request", check: none},
		{name: "unknown field", method: "POST", path: path, body: stranger, media: strangerMedia, status: 400, code: "invalid_request", check: none},
		{name: "empty path", method: "POST", path: path, body: empty, media: emptyMedia, status: 400, code: "invalid_request", check: none},
		{name: "long path", method: "POST", path: path, body: long, media: longMedia, status: 400, code: "invalid_request", check: none},
		{name: "no file", method: "POST", path: path, body: nothing, media: nothingMedia, status: 400, code: "invalid_request", check: none},
		{name: "cut", method: "POST", path: path, body: good[:len(good)-10], media: media, status: 400, code: "invalid_request", check: none},
		{name: "no boundary", method: "POST", path: path, body: good, media: "multipart/form-data", status: 400, code: "invalid_request", check: none},
		{name: "no form", method: "POST", path: path, body: "{}", status: 415, code: "unsupported_media_type", check: none},
	}
	return append(calls, sandboxCalls("POST", path, good, media)...)
}

func content(text string) func(string) (io.ReadCloser, error) {
	return func(path string) (io.ReadCloser, error) {
		if path == "/missing" {
			return nil, wrenn.Errorf(wrenn.NotFound, "no file /missing")
		}
		if path == "/late" {
			return io.NopCloser(io.MultiReader(failing{wrenn.Errorf(wrenn.PermissionDenied, "bob may not read it")})), nil
		}
		return io.NopCloser(strings.NewReader(text)), nil
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func readCalls(path string) []call {
	all := "hi\x00\xff" + strings.Repeat("y", 3*chunk)
	disposition := func(t *testing.T, _ *stub, r *http.Response) {
		t.Helper()
		if got := r.Header.Get("Content-Disposition"); got != `attachment; filename="a b"` {
			t.Errorf("Content-Disposition = %q", got)
		}
	}
	calls := []call{
		{name: "ok", service: &stub{read: content(all)}, method: "POST", path: path, body: `{"path":"/tmp/a b"}`, status: 200, want: all, check: disposition},
		{name: "empty", service: &stub{read: content("")}, method: "POST", path: path, body: `{"path":"/x","user":"bob"}`, status: 200},
		{name: "no file", service: &stub{read: content("")}, method: "POST", path: path, body: `{"path":"/missing"}`, status: 404, code: "not_found"},
		{name: "refused as it is read", service: &stub{read: content("")}, method: "POST", path: path, body: `{"path":"/late"}`, status: 403, code: "forbidden"},
		{name: "NUL", method: "POST", path: path, body: `{"path":"/a\u0000b"}`, status: 400, code: "invalid_request"},
		{name: "no body", method: "POST", path: path, status: 400, media: "application/json", code: "invalid_request"},
	}
	return slices.Concat(calls, jsonCalls(path), sandboxCalls("POST", path, `{"path":"/x"}`, ""))
}

func createCalls() []call {
	calls := []call{
		{name: "defaults", method: "POST", path: "/v1/sandboxes", status: 201, want: oneJSON, check: func(t *testing.T, s *stub, r *http.Response) {
			t.Helper()
			if diff := cmp.Diff(service.CreateSandbox{}, s.created); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
			if got := r.Header.Get("Location"); got != at {
				t.Errorf("Location = %q", got)
			}
		}},
		{name: "all", method: "POST", path: "/v1/sandboxes", status: 201,
			body: `{"template":"base:v2","vcpus":2,"memory_mb":1024,"disk_mb":20480,"timeout_sec":60,"on_timeout":"pause","auto_resume":true,"metadata":{"a":"b"},"env":{"C":"d"}}`,
			check: func(t *testing.T, s *stub, _ *http.Response) {
				t.Helper()
				want := service.CreateSandbox{Metadata: map[string]string{"a": "b"}, SandboxSpec: wrenn.SandboxSpec{Template: "base:v2", AutoResume: true, Env: map[string]string{"C": "d"}, Size: wrenn.Size{VCPUs: 2, MemoryMiB: 1024}, DiskMiB: 20480, EndOfLife: wrenn.EndOfLife{Timeout: time.Minute, OnTimeout: wrenn.PauseOnTimeout}}}
				if diff := cmp.Diff(want, s.created); diff != "" {
					t.Errorf("asked for (-want +got):\n%s", diff)
				}
			}},
		{name: "never", method: "POST", path: "/v1/sandboxes", status: 201, body: `{"timeout_sec":0}`, check: func(t *testing.T, s *stub, _ *http.Response) {
			t.Helper()
			if s.created.Timeout >= 0 {
				t.Errorf("timeout = %v, want never", s.created.Timeout)
			}
		}},
		{name: "bearer", method: "POST", path: "/v1/sandboxes", key: "-", header: http.Header{"Authorization": {"bearer " + testKey}}, status: 201},
		{name: "no key", method: "POST", path: "/v1/sandboxes", key: "-", body: "junk", status: 401, code: "unauthorized"},
		{name: "key as a subprotocol of no WebSocket", method: "POST", path: "/v1/sandboxes", key: "-", header: http.Header{"Sec-Websocket-Protocol": {keyProtocol + testKey}}, status: 401, code: "unauthorized"},
		{name: "no HTTPS port", method: "POST", path: "/v1/sandboxes", body: `{"ports":{"https":[0]}}`, status: 400, code: "invalid_request"},
		{name: "another ending", method: "POST", path: "/v1/sandboxes", body: `{"on_timeout":"sell"}`, status: 400, code: "invalid_request"},
		{name: "no vcpus", method: "POST", path: "/v1/sandboxes", body: `{"vcpus":0}`, status: 400, code: "invalid_request"},
		{name: "a string", method: "POST", path: "/v1/sandboxes", body: `{"vcpus":"1"}`, status: 400, code: "invalid_request"},
		{name: "template is a path", method: "POST", path: "/v1/sandboxes", body: `{"template":"../../etc/passwd"}`, status: 400, code: "invalid_request"},
		{name: "env name", method: "POST", path: "/v1/sandboxes", body: `{"env":{"A=B":"c"}}`, status: 400, code: "invalid_request"},
		{name: "conflict", service: &stub{fail: wrenn.Errorf(wrenn.AlreadyExists, "there")}, method: "POST", path: "/v1/sandboxes", status: 409, code: "conflict"},
		{name: "full", service: &stub{fail: wrenn.Errorf(wrenn.Exhausted, "no more")}, method: "POST", path: "/v1/sandboxes", status: 429, code: "limit_exceeded"},
	}
	return append(calls, jsonCalls("/v1/sandboxes")...)
}

func listCalls() []call {
	return []call{
		{name: "ok", method: "GET", path: "/v1/sandboxes", status: 200, want: "[" + runningJSON + "]", check: func(t *testing.T, _ *stub, r *http.Response) {
			t.Helper()
			if r.Header.Get("X-Next-Page") != "" || r.Header.Get("Link") != "" {
				t.Errorf("the last page names another: %v", r.Header)
			}
		}},
		{name: "filtered", service: &stub{next: "n/1"}, method: "GET", status: 200,
			path: "/v1/sandboxes?limit=2&page=p1&state=running&state=paused&metadata=user%3Dalice&metadata=a=b=c",
			check: func(t *testing.T, s *stub, r *http.Response) {
				t.Helper()
				want := service.ListSandboxes{Limit: 2, Page: "p1", States: []wrenn.State{"running", "paused"}, Metadata: map[string]string{"user": "alice", "a": "b=c"}}
				if diff := cmp.Diff(want, s.listed); diff != "" {
					t.Errorf("asked for (-want +got):\n%s", diff)
				}
				link := `</v1/sandboxes?limit=2&metadata=user%3Dalice&metadata=a%3Db%3Dc&page=n%2F1&state=running&state=paused>; rel="next"`
				if r.Header.Get("X-Next-Page") != "n/1" || r.Header.Get("Link") != link {
					t.Errorf("X-Next-Page = %q, Link = %q", r.Header.Get("X-Next-Page"), r.Header.Get("Link"))
				}
			}},
		{name: "misspelled filter", method: "GET", path: "/v1/sandboxes?metadata[user]=alice", status: 400, code: "invalid_request"},
		{name: "limit", method: "GET", path: "/v1/sandboxes?limit=0", status: 400, code: "invalid_request"},
		{name: "limit is no number", method: "GET", path: "/v1/sandboxes?limit=ten", status: 400, code: "invalid_request"},
		{name: "limit twice", method: "GET", path: "/v1/sandboxes?limit=1&limit=2", status: 400, code: "invalid_request"},
		{name: "state", method: "GET", path: "/v1/sandboxes?state=happy", status: 400, code: "invalid_request"},
		{name: "metadata", method: "GET", path: "/v1/sandboxes?metadata=alice", status: 400, code: "invalid_request"},
		{name: "metadata cannot be both", method: "GET", path: "/v1/sandboxes?metadata=a=1&metadata=a=2", status: 400, code: "invalid_request"},
		{name: "query", method: "GET", path: "/v1/sandboxes?state=%zz", status: 400, code: "invalid_request"},
		{name: "no key", method: "GET", path: "/v1/sandboxes?limit=0", key: "-", status: 401, code: "unauthorized"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: "GET", path: "/v1/sandboxes", status: 503, code: "unavailable"},
	}
}

func execCalls() []call {
	path := at + "/exec"
	calls := []call{
		{name: "ok", service: &stub{result: wrenn.ExecResult{Stdout: []byte("hällo\n"), ExitCode: 3, Status: "exit status 3", Duration: 1500 * time.Microsecond}},
			method: "POST", path: path, body: `{"cmd":"echo","args":["hällo"],"env":{"A":"b"},"cwd":"/tmp","user":"bob","timeout_sec":5,"stdin":"x"}`, status: 200,
			want: `{"sandbox_id":"` + testID + `","cmd":"echo","stdout":"hällo\n","stderr":"","exit_code":3,"status":"exit status 3","duration_ms":1,"encoding":"utf-8","truncated":false}`,
			check: func(t *testing.T, s *stub, _ *http.Response) {
				t.Helper()
				want := wrenn.ExecCommand{Cmd: "echo", Args: []string{"hällo"}, Env: map[string]string{"A": "b"}, Cwd: "/tmp", User: "bob", Timeout: 5 * time.Second, Stdin: []byte("x")}
				if diff := cmp.Diff(want, s.ran); diff != "" {
					t.Errorf("ran (-want +got):\n%s", diff)
				}
			}},
		{name: "bytes", service: &stub{result: wrenn.ExecResult{Stdout: []byte("text"), Stderr: []byte{0xff}, Status: "exit status 0", Truncated: true}},
			method: "POST", path: path, body: `{"cmd":"x","stdin":"/wA=","stdin_encoding":"base64"}`, status: 200,
			want: `{"sandbox_id":"` + testID + `","cmd":"x","stdout":"dGV4dA==","stderr":"/w==","exit_code":0,"status":"exit status 0","duration_ms":0,"encoding":"base64","truncated":true}`,
			check: func(t *testing.T, s *stub, _ *http.Response) {
				t.Helper()
				if diff := cmp.Diff(wrenn.ExecCommand{Cmd: "x", Stdin: []byte{0xff, 0}, Timeout: 30 * time.Second}, s.ran); diff != "" {
					t.Errorf("ran (-want +got):\n%s", diff)
				}
			}},
		{name: "broken base64", method: "POST", path: path, body: `{"cmd":"x","stdin":"!","stdin_encoding":"base64"}`, status: 400, code: "invalid_request"},
		{name: "no command", method: "POST", path: path, body: `{}`, status: 400, code: "invalid_request"},
		{name: "argument with NUL", method: "POST", path: path, body: `{"cmd":"x","args":["a\u0000"]}`, status: 400, code: "invalid_request"},
		{name: "whole numbers as others write them", method: "POST", path: path, body: `{"cmd":"x","timeout_sec":12e1}`, status: 200, check: func(t *testing.T, s *stub, _ *http.Response) {
			t.Helper()
			if s.ran.Timeout != 2*time.Minute {
				t.Errorf("timeout = %v", s.ran.Timeout)
			}
		}},
		{name: "no whole number", method: "POST", path: path, body: `{"cmd":"x","timeout_sec":1.5}`, status: 400, code: "invalid_request"},
		{name: "a number of a million digits", method: "POST", path: path, body: `{"cmd":"x","timeout_sec":1e999999}`, status: 400, code: "invalid_request"},
		{name: "a million values", method: "POST", path: path, body: `{"cmd":"x","args":[1` + strings.Repeat(",1", 900_000) + `]}`, status: 400, code: "invalid_request"},
	}
	return slices.Concat(calls, jsonCalls(path), sandboxCalls("POST", path, `{"cmd":"x"}`, ""))
}

func keyCalls() map[string][]call {
	return map[string][]call{
		"createKey": append(jsonCalls("/v1/keys"),
			call{name: "ok", method: "POST", path: "/v1/keys", body: `{"name":"laptop"}`, status: 201,
				want: `{"id":"` + testKeyID + `","name":"laptop","hint":"e2b_0123","scopes":["admin"],"role":"admin","created_at":"2026-01-02T15:04:05Z","key":"` + testKey + `"}`},
			call{name: "role", method: "POST", path: "/v1/keys", body: `{"name":"laptop","role":"developer"}`, status: 201,
				want: `{"id":"` + testKeyID + `","name":"laptop","hint":"e2b_0123","scopes":["sandboxes","templates"],"role":"developer","created_at":"2026-01-02T15:04:05Z","key":"` + testKey + `"}`},
			call{name: "no role", method: "POST", path: "/v1/keys", body: `{"name":"laptop","role":"owner"}`, status: 400, code: "invalid_request"},
			call{name: "role and scopes", method: "POST", path: "/v1/keys", body: `{"name":"laptop","role":"viewer","scopes":["read"]}`, status: 400, code: "invalid_request"},
			call{name: "name", method: "POST", path: "/v1/keys", body: `{"name":""}`, status: 400, code: "invalid_request"},
			call{name: "no key", method: "POST", path: "/v1/keys", body: `{"name":"x"}`, key: "-", status: 401, code: "unauthorized"}),
		"listKeys": {
			{name: "ok", method: "GET", path: "/v1/keys", status: 200,
				want: `[{"id":"` + testKeyID + `","name":"laptop","hint":"e2b_0123","scopes":["admin"],"role":"admin","expires_at":"2026-01-02T15:04:05Z","created_at":"2026-01-02T15:04:05Z","last_used_at":"2026-01-02T15:04:05Z"}]`},
			{name: "no key", method: "GET", path: "/v1/keys", key: "-", status: 401, code: "unauthorized"},
		},
		"listAuditEntries": {
			{name: "ok", method: "GET", path: "/v1/audit?since=2026-01-02T15:04:05Z&limit=1", status: 200,
				want: `[{"at":"2026-01-02T15:04:05Z","key_id":"` + testKeyID + `","key_name":"laptop","address":"192.0.2.7","request_id":"r","operation":"deleteSandbox","path":"/v1/sandboxes/` + string(testID) + `","status":204}]`},
			{name: "the last page", method: "GET", path: "/v1/audit?page=1", status: 200, want: `[]`},
			{name: "no time", method: "GET", path: "/v1/audit?since=noon", status: 400, code: "invalid_request"},
			{name: "too many", method: "GET", path: "/v1/audit?limit=1001", status: 400, code: "invalid_request"},
			{name: "no key", method: "GET", path: "/v1/audit", key: "-", status: 401, code: "unauthorized"},
		},
		"getUsage": {
			{name: "ok", method: "GET", path: "/v1/usage?from=2026-01-02T15:04:05Z&step=day&team=other", status: 200,
				want: `{"from":"2026-01-02T15:04:05Z","to":"2026-01-02T15:04:05Z","step":"day","counted_from":"2026-01-02T15:04:05Z","counted_until":"2026-01-02T15:04:05Z","total":{"creates":1,"disk_mib_seconds":5,"memory_mib_seconds":4,"paused_seconds":2,"sandbox_seconds":1.5,"template_mib_seconds":7,"vcpu_seconds":3,"volume_mib_seconds":6},"steps":[{"from":"2026-01-02T15:04:05Z","creates":1,"disk_mib_seconds":5,"memory_mib_seconds":4,"paused_seconds":2,"sandbox_seconds":1.5,"template_mib_seconds":7,"vcpu_seconds":3,"volume_mib_seconds":6}]}`},
			{name: "no step", method: "GET", path: "/v1/usage?step=week", status: 400, code: "invalid_request"},
			{name: "no time", method: "GET", path: "/v1/usage?to=noon", status: 400, code: "invalid_request"},
			{name: "no team", method: "GET", path: "/v1/usage?team=missing", status: 404, code: "not_found"},
			{name: "no key", method: "GET", path: "/v1/usage", key: "-", status: 401, code: "unauthorized"},
		},
		"listLimits": {
			{name: "ok", method: "GET", path: "/v1/limits", status: 200,
				want: `[{"name":"sandboxes","of":"team","allowed":100,"used":3,"unit":"","changed_by":"team","setting":"max_sandboxes"},{"name":"timeout","of":"sandbox","allowed":60,"unit":"s","changed_by":"fixed","setting":""}]`},
			{name: "no key", method: "GET", path: "/v1/limits", key: "-", status: 401, code: "unauthorized"},
		},
		"revokeKey": {
			{name: "ok", method: "DELETE", path: "/v1/keys/" + testKeyID, status: 204},
			{name: "missing", method: "DELETE", path: "/v1/keys/other", status: 404, code: "not_found"},
			{name: "no id", method: "DELETE", path: "/v1/keys/a%20b", status: 404, code: "not_found"},
			{name: "no key", method: "DELETE", path: "/v1/keys/" + testKeyID, key: "-", status: 401, code: "unauthorized"},
		},
	}
}

func snapshotCalls() map[string][]call {
	fork, checkpoints := at+"/fork", at+"/checkpoints"
	one := checkpoints + "/" + testCheckpoint
	return map[string][]call{
		"forkSandbox": slices.Concat(jsonCalls(fork), sandboxCalls("POST", fork, "", ""), []call{
			{name: "defaults", method: "POST", path: fork, status: 201,
				want: `{"sandboxes":[` + strings.Replace(runningJSON, "{", `{"parent_id":"`+testID+`",`, 1) + `],"errors":[]}`,
				check: func(t *testing.T, s *stub, _ *http.Response) {
					t.Helper()
					if diff := cmp.Diff(service.ForkSandbox{Count: 1}, s.forked); diff != "" {
						t.Errorf("asked for (-want +got):\n%s", diff)
					}
				}},
			{name: "some fail", service: &stub{copyErr: wrenn.Errorf(wrenn.Exhausted, "no room")}, method: "POST", path: fork, body: `{"count":2,"metadata":{}}`, status: 201,
				want: `{"sandboxes":[` + strings.Replace(runningJSON, "{", `{"parent_id":"`+testID+`",`, 1) + `],"errors":[{"id":"` + missingID + `","code":"limit_exceeded","message":"no room"}]}`,
				check: func(t *testing.T, s *stub, _ *http.Response) {
					t.Helper()
					if diff := cmp.Diff(service.ForkSandbox{Count: 2, Metadata: map[string]string{}}, s.forked); diff != "" {
						t.Errorf("asked for (-want +got):\n%s", diff)
					}
				}},
			{name: "of no checkpoint", method: "POST", path: fork, body: `{"checkpoint":"x"}`, status: 400, code: "invalid_request"},
			{name: "none", method: "POST", path: fork, body: `{"count":0}`, status: 400, code: "invalid_request"},
			{name: "too many", method: "POST", path: fork, body: `{"count":101}`, status: 400, code: "invalid_request"},
		}),
		"createCheckpoint": slices.Concat(jsonCalls(checkpoints), sandboxCalls("POST", checkpoints, "", ""), []call{
			{name: "ok", method: "POST", path: checkpoints, body: `{"name":"a b"}`, status: 201,
				want: `{"id":"` + testCheckpoint + `","name":"a b","created_at":"2026-01-02T15:04:05Z","size_bytes":4096}`},
			{name: "long", method: "POST", path: checkpoints, body: `{"name":"` + strings.Repeat("x", 201) + `"}`, status: 400, code: "invalid_request"},
			{name: "two lines", method: "POST", path: checkpoints, body: `{"name":"a\nb"}`, status: 400, code: "invalid_request"},
		}),
		"listCheckpoints": append(sandboxCalls("GET", checkpoints, "", ""),
			call{name: "ok", method: "GET", path: checkpoints, status: 200, want: `{"disk_bytes":5120,"head":"` + testCheckpoint + `","checkpoints":[
				{"id":"` + otherCheckpoint + `","name":"a","created_at":"2026-01-02T15:04:05Z","size_bytes":4096,"own_bytes":1024},
				{"id":"` + testCheckpoint + `","parent_id":"` + otherCheckpoint + `","name":"","created_at":"2026-01-02T15:04:05Z","size_bytes":0}]}`},
			call{name: "none", service: &stub{bare: true}, method: "GET", path: checkpoints, status: 200, want: `{"checkpoints":[]}`}),
		"restoreCheckpoint": append(sandboxCalls("POST", one+"/restore", "", ""),
			call{name: "ok", method: "POST", path: one + "/restore", status: 200, want: oneJSON},
			call{name: "no such", method: "POST", path: checkpoints + "/" + otherCheckpoint + "/restore", status: 404, code: "not_found"},
			call{name: "no id of one", method: "POST", path: checkpoints + "/x/restore", status: 404, code: "not_found"}),
		"deleteCheckpoint": append(sandboxCalls("DELETE", one, "", ""),
			call{name: "ok", method: "DELETE", path: one, status: 204},
			call{name: "traversal of checkpoints", method: "DELETE", path: checkpoints + "/..%2Fx", status: 404, code: "not_found"}),
	}
}

// operationCalls are the tests, by operation of the contract. Those of the stream
// here have no upgrade; the others are in stream_test.go.
func operationCalls() map[string][]call {
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}}
	calls := map[string][]call{
		"createSandbox": createCalls(),
		"listSandboxes": listCalls(),
		"getSandbox":    append(sandboxCalls("GET", at, "", ""), call{name: "ok", method: "GET", path: at, status: 200, want: oneJSON}),
		"deleteSandbox": append(sandboxCalls("DELETE", at, "", ""), call{name: "ok", method: "DELETE", path: at, status: 204}),
		"pauseSandbox": append(sandboxCalls("POST", at+"/pause", "", ""), call{name: "ok", method: "POST", path: at + "/pause", status: 200, want: oneJSON},
			call{name: "without force", method: "POST", path: at + "/pause?force=false", status: 200, want: oneJSON},
			call{name: "force", method: "POST", path: at + "/pause?force=true", status: 200, want: strings.Replace(oneJSON, "{",
				`{"end_cause":"user","unresponsive":{"since":"2026-01-02T15:04:05Z","reason":"nothing answers"},`, 1)},
			call{name: "a force that is none", method: "POST", path: at + "/pause?force=perhaps", status: 400, code: "invalid_request"}),
		"resumeSandbox": append(sandboxCalls("POST", at+"/resume", "", ""), call{name: "ok", method: "POST", path: at + "/resume", status: 200, want: oneJSON}),
		"getSandboxMetrics": append(sandboxCalls("GET", at+"/metrics", "", ""),
			call{name: "ok", method: "GET", path: at + "/metrics?start=5&end=9", status: 200, want: `{"samples":[{"time":"1970-01-01T00:00:05Z","cpus":2,"cpu_percent":12.5,
				"memory_used_bytes":1,"memory_total_bytes":2,"memory_cache_bytes":3,"disk_used_bytes":4,"disk_total_bytes":5},{"time":"1970-01-01T00:00:09Z","cpus":2,"cpu_percent":12.5,
				"memory_used_bytes":1,"memory_total_bytes":2,"memory_cache_bytes":3,"disk_used_bytes":4,"disk_total_bytes":5}]}`},
			call{name: "none", method: "GET", path: at + "/metrics", status: 200, want: `{"samples":[]}`},
			call{name: "below zero", method: "GET", path: at + "/metrics?start=-1", status: 400, code: "invalid_request"},
			call{name: "no number", method: "GET", path: at + "/metrics?end=now", status: 400, code: "invalid_request"},
		),
		"getSandboxNetworkLog": append(sandboxCalls("GET", at+"/network/log", "", ""),
			call{name: "ok", method: "GET", path: at + "/network/log?after=5&wait_sec=3", status: 200, want: `{"dropped":3,"events":[
				{"seq":6,"time":"1970-01-01T00:00:05Z","protocol":"tls","verdict":"ended","name":"example.com","address":"192.0.2.1","port":443,"sent_bytes":1,"received_bytes":2,"duration_ms":3},
				{"seq":7,"time":"1970-01-01T00:00:06Z","protocol":"icmp","verdict":"denied","reason":"no"}]}`},
			call{name: "none", method: "GET", path: at + "/network/log", status: 200, want: `{"dropped":0,"events":[]}`},
			call{name: "below zero", method: "GET", path: at + "/network/log?after=-1", status: 400, code: "invalid_request"},
			call{name: "too long", method: "GET", path: at + "/network/log?wait_sec=26", status: 400, code: "invalid_request"},
		),
		"explainSandboxNetwork": append(sandboxCalls("GET", at+"/network/explain?host=example.com", "", ""),
			call{name: "ok", method: "GET", path: at + "/network/explain?host=example.com&port=443", status: 200,
				want: `{"allowed":true,"rule":"allow example.com","reason":"why","addresses":[{"address":"192.0.2.1","allowed":true,"rule":"r"}]}`},
			call{name: "no host", method: "GET", path: at + "/network/explain", status: 400, code: "invalid_request"},
			call{name: "no name", method: "GET", path: at + "/network/explain?host=*.example.com", status: 400, code: "invalid_request"},
			call{name: "no port", method: "GET", path: at + "/network/explain?host=example.com&port=0", status: 400, code: "invalid_request"},
		),
		"getSandboxNetwork": append(sandboxCalls("GET", at+"/network", "", ""), call{
			name: "ok", method: "GET", path: at + "/network", status: 200, want: `{"default":"allow","allow":[],"deny":[]}`,
		}),
		"setSandboxNetwork": slices.Concat(jsonCallsBy("PUT", at+"/network"), sandboxCalls("PUT", at+"/network", `{}`, ""), []call{
			{name: "ok", method: "PUT", path: at + "/network", body: `{"default":"deny","allow":["1.1.1.1","8.8.8.8/24"],"deny":["9.9.9.9"]}`, status: 200,
				want: `{"default":"deny","allow":["1.1.1.1","8.8.8.0/24"],"deny":["9.9.9.9"]}`},
			{name: "denied by a rule", method: "PUT", path: at + "/network", body: `{"deny":["0.0.0.0/0"]}`, status: 200, want: `{"default":"deny","allow":[],"deny":[]}`},
			{name: "another default", method: "PUT", path: at + "/network", body: `{"default":"drop"}`, status: 400, code: "invalid_request"},
			{name: "name", method: "PUT", path: at + "/network", body: `{"allow":["example.com"]}`, status: 400, code: "invalid_request"},
			{name: "denied names and DNS", method: "PUT", path: at + "/network", body: `{"deny":["*.example.com"],"dns_servers":["1.1.1.1"]}`, status: 200,
				want: `{"default":"allow","allow":[],"deny":["*.example.com"],"dns_servers":["1.1.1.1"]}`},
			{name: "no DNS server", method: "PUT", path: at + "/network", body: `{"dns_servers":["::1"]}`, status: 400, code: "invalid_request"},
			{name: "IPv6", method: "PUT", path: at + "/network", body: `{"allow":["::1"]}`, status: 400, code: "invalid_request"},
		}),
		"getTeamNetwork": {
			{name: "none", method: "GET", path: "/v1/team/network", status: 200, want: `{"default":"allow","allow":[],"deny":[]}`},
		},
		"setTeamNetwork": append(jsonCallsBy("PUT", "/v1/team/network"),
			call{name: "ok", method: "PUT", path: "/v1/team/network", body: `{"deny":["*.example.com","example.org:22","192.0.2.1"]}`, status: 200,
				want: `{"default":"allow","allow":[],"deny":["192.0.2.1","*.example.com","example.org:22"]}`},
			call{name: "headers", method: "PUT", path: "/v1/team/network", body: `{"headers":[]}`, status: 400, code: "invalid_request"},
			call{name: "no rule", method: "PUT", path: "/v1/team/network", body: `{"deny":["localhost"]}`, status: 400, code: "invalid_request"},
		),
		"getTemplateNetwork": {
			{name: "none", method: "GET", path: "/v1/templates/base/network", status: 200, want: `{"default":"allow","allow":[],"deny":[]}`},
			{name: "unknown", method: "GET", path: "/v1/templates/none/network", status: 404, code: "not_found"},
		},
		"setTemplateNetwork": append(jsonCallsBy("PUT", "/v1/templates/base/network"),
			call{name: "ok", method: "PUT", path: "/v1/templates/base/network", body: `{"default":"deny","allow":["example.com"]}`, status: 200,
				want: `{"default":"deny","allow":["example.com"],"deny":[]}`},
			call{name: "unknown", method: "PUT", path: "/v1/templates/none/network", body: `{}`, status: 404, code: "not_found"},
			call{name: "a name that needs deny", method: "PUT", path: "/v1/templates/base/network", body: `{"allow":["example.com"]}`, status: 400, code: "invalid_request"},
		),
		"changeSandbox": slices.Concat(jsonCallsBy("PATCH", at+"/settings"), sandboxCalls("PATCH", at+"/settings", `{"auto_resume":true}`, ""), []call{
			{name: "one", method: "PATCH", path: at + "/settings", body: `{"on_timeout":"destroy"}`, status: 200, want: strings.Replace(oneJSON, `"pause"`, `"destroy"`, 1)},
			{name: "all", method: "PATCH", path: at + "/settings", body: `{"on_timeout":"pause_disk","auto_resume":false,"on_host_loss":"restore","checkpoint_every_sec":60}`, status: 200,
				want: strings.Replace(oneJSON, `"on_timeout":"pause","auto_resume":true`, `"on_timeout":"pause_disk","auto_resume":false,"on_host_loss":"restore","checkpoint_every_sec":60`, 1)},
			{name: "no checkpoints", method: "PATCH", path: at + "/settings", body: `{"checkpoint_every_sec":0}`, status: 200, want: oneJSON},
			{name: "nothing", method: "PATCH", path: at + "/settings", body: `{}`, status: 400, code: "invalid_request"},
			{name: "no action", method: "PATCH", path: at + "/settings", body: `{"on_host_loss":"pray"}`, status: 400, code: "invalid_request"},
		}),
		"setSandboxMetadata": slices.Concat(jsonCallsBy("PUT", at+"/metadata"), sandboxCalls("PUT", at+"/metadata", `{"metadata":{}}`, ""), []call{
			{name: "ok", method: "PUT", path: at + "/metadata", body: `{"metadata":{"user":"bob"}}`, status: 200, want: strings.Replace(oneJSON, "alice", "bob", 1)},
			{name: "no text", method: "PUT", path: at + "/metadata", body: `{"metadata":{"user":1}}`, status: 400, code: "invalid_request"},
			{name: "nothing", method: "PUT", path: at + "/metadata", body: `{}`, status: 400, code: "invalid_request"},
		}),
		"setSandboxTimeout": slices.Concat(jsonCalls(at+"/timeout"), sandboxCalls("POST", at+"/timeout", `{"timeout_sec":1}`, ""), []call{
			{name: "ok", method: "POST", path: at + "/timeout", body: `{"timeout_sec":60}`, status: 200, want: oneJSON, check: func(t *testing.T, s *stub, _ *http.Response) {
				t.Helper()
				if s.timeout != time.Minute {
					t.Errorf("timeout = %v", s.timeout)
				}
			}},
			{name: "none", method: "POST", path: at + "/timeout", body: `{}`, status: 400, code: "invalid_request"},
		}),
		"getSandboxLogs": append(sandboxCalls("GET", at+"/logs", "", ""),
			call{name: "ok", method: "GET", path: at + "/logs?follow=false", status: 200, want: "Linux\r\n\xff\x00"},
			call{name: "follow what", method: "GET", path: at + "/logs?follow=perhaps", status: 400, code: "invalid_request"}),
		"exec": execCalls(),
		"execStream": {
			{name: "no upgrade", method: "GET", path: at + "/exec/stream", status: 400, code: "invalid_request"},
			{name: "broken handshake", method: "GET", path: at + "/exec/stream", header: upgrade, status: 400, code: "invalid_request"},
			{name: "paused", method: "GET", path: "/v1/sandboxes/" + pausedID + "/exec/stream", header: upgrade, status: 409, code: "invalid_state"},
			{name: "missing", method: "GET", path: "/v1/sandboxes/" + missingID + "/exec/stream", header: upgrade, status: 404, code: "not_found"},
			{name: "no key", method: "GET", path: at + "/exec/stream", header: upgrade, key: "-", status: 401, code: "unauthorized"},
		},
		"connectPort": {
			{name: "no upgrade", method: "GET", path: at + "/connect/80", status: 400, code: "invalid_request"},
			{name: "closed", method: "GET", path: at + "/connect/80", header: upgrade, status: 409, code: "invalid_state"},
			{name: "no port", method: "GET", path: at + "/connect/0", header: upgrade, status: 400, code: "invalid_request"},
			{name: "missing", method: "GET", path: "/v1/sandboxes/" + missingID + "/connect/80", header: upgrade, status: 404, code: "not_found"},
			{name: "no key", method: "GET", path: at + "/connect/80", header: upgrade, key: "-", status: 401, code: "unauthorized"},
		},
		"writeFile":       formCalls(at + "/files/write"),
		"streamWriteFile": formCalls(at + "/files/stream/write"),
		"readFile":        readCalls(at + "/files/read"),
		"streamReadFile":  readCalls(at + "/files/stream/read"),
		"getVersion":      {{name: "ok", method: "GET", path: "/version?x=1", key: "-", status: 200, want: versionJSON()}},
		"getHealth":       {{name: "ok", service: &stub{fail: errors.New("all is lost")}, method: "GET", path: "/health", key: "-", status: 200, want: `{"status":"ok"}`}},
		"getReady": {
			{name: "ok", method: "GET", path: "/ready", key: "-", status: 200, want: `{"status":"ready"}`},
			{name: "away", service: &stub{fail: errors.New("all is lost")}, method: "GET", path: "/ready", key: "-", status: 503, code: "unavailable"},
		},
		"getContract":    {{name: "ok", method: "GET", path: "/openapi.yaml", key: "-", status: 200, want: string(api.V1)}},
		"getE2BContract": {{name: "ok", method: "GET", path: "/e2b.yaml", key: "-", status: 200, want: string(api.E2B)}},
		"getDocs":        {{name: "ok", method: "GET", path: "/docs", key: "-", status: 200}},
	}
	maps.Copy(calls, keyCalls())
	maps.Copy(calls, sessionCalls())
	maps.Copy(calls, snapshotCalls())
	maps.Copy(calls, templateCalls())
	maps.Copy(calls, volumeCalls())
	maps.Copy(calls, volumeFileCalls())
	maps.Copy(calls, treeCalls())
	maps.Copy(calls, secretCalls())
	maps.Copy(calls, webhookCalls())
	maps.Copy(calls, hostCalls())
	maps.Copy(calls, joinCalls())
	return calls
}

// TestOperations walks the contract: each operation must have tests, and each
// answer must be one that the contract has.
func TestOperations(t *testing.T) {
	doc, calls := spec(t), operationCalls()
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			t.Run(op.OperationID, func(t *testing.T) {
				if len(calls[op.OperationID]) == 0 {
					t.Fatal("the operation has no test")
				}
				route := &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: op}
				for _, c := range calls[op.OperationID] {
					t.Run(c.name, func(t *testing.T) { c.run(t, route) })
				}
				delete(calls, op.OperationID)
			})
		}
	}
	for id := range calls {
		t.Errorf("the contract has no operation %s", id)
	}
}

func (c *call) run(t *testing.T, route *routers.Route) {
	t.Helper()
	if c.service == nil {
		c.service = &stub{}
	}
	server := serve(t, c.service, nil)
	req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+server.address+c.path, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, c.header)
	switch c.key {
	case "":
		req.Header.Set("X-API-Key", testKey)
	case "-":
	default:
		req.Header.Set("X-API-Key", c.key)
	}
	if c.media != "" {
		req.Header.Set("Content-Type", c.media)
	} else if c.body != "" {
		req.Header.Set("Content-Type", mediaJSON)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != c.status {
		t.Fatalf("%s %s = %s %.500s, want %d", c.method, c.path, resp.Status, body, c.status)
	}
	conforms(t, route, req, resp, body)
	c.checkAnswer(t, resp, body)
	if c.check != nil {
		c.check(t, c.service, resp)
	}
}

func (c *call) checkAnswer(t *testing.T, resp *http.Response, body []byte) {
	t.Helper()
	if resp.Header.Get("X-Request-Id") == "" {
		t.Error("the answer has no X-Request-Id")
	}
	if c.code != "" {
		var got struct {
			Error struct{ Code, Message string }
		}
		if err := json.Unmarshal(body, &got); err != nil || got.Error.Code != c.code || got.Error.Message == "" {
			t.Errorf("answer = %s, want the code %s", body, c.code)
		}
		if strings.Contains(got.Error.Message, "secret") {
			t.Errorf("the message tells what is not for users: %s", got.Error.Message)
		}
		after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if retry := c.status == 429 || c.status == 503; retry != (err == nil && after > 0) {
			t.Errorf("Retry-After = %q with %d", resp.Header.Get("Retry-After"), c.status)
		}
		return
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), mediaJSON) && c.want != "" {
		var got, want any
		if err := errors.Join(json.Unmarshal(body, &got), json.Unmarshal([]byte(c.want), &want)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
		return
	}
	if c.want != "" && c.want != string(body) {
		t.Errorf("answer of %d bytes, want %d: %.100q", len(body), len(c.want), body)
	}
}

// conforms compares an answer with the contract, by a library that the server does not use.
func conforms(t *testing.T, route *routers.Route, req *http.Request, resp *http.Response, body []byte) {
	t.Helper()
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, Route: route},
		Status:                 resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	switch resp.Header.Get("Content-Type") {
	case "application/octet-stream", "application/yaml", "text/html; charset=utf-8":
		input.Options.ExcludeResponseBody = true // opaque
	}
	if err := openapi3filter.ValidateResponse(t.Context(), input); err != nil {
		t.Errorf("%s is not in the contract: %v", resp.Status, err)
	}
}
