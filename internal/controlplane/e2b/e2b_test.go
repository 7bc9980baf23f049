package e2b

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/api"
	"wrenn.dev/internal/controlplane/admission"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// surface is the real service over a database and a host in memory.
type surface struct {
	url, key string
	header   map[string]string // of all requests
	document routers.Router
	service  *service.Service
	caller   service.Caller
	fullDisk *atomic.Bool // no template can be built
	agent    *hosttest.Agent
}

// failing is a start command with which a build fails.
const (
	failing  = "exit 1"
	failure1 = "the start command ended: exit status 1"
)

func newSurface(t *testing.T) *surface {
	t.Helper()
	fullDisk := new(atomic.Bool)
	agent := &hosttest.Agent{VolumeDir: t.TempDir(), Before: func(_ context.Context, method, _ string) error {
		if method == "BuildTemplate" && fullDisk.Load() {
			return wrenn.Errorf(wrenn.Exhausted, "this host's disk is full")
		}
		return nil
	}, Build: func(_ context.Context, req *pb.BuildTemplateRequest, log func(string)) error {
		log("booting")
		if req.GetStartCmd() == failing {
			return wrenn.Errorf(wrenn.FailedPrecondition, failure1)
		}
		log("saved as a snapshot")
		return nil
	}}
	host, err := hosttest.Serve(t.Context(), agent)
	testkit.Must(t, err)
	t.Cleanup(host.Stop)
	store := pgtest.Open(t, pgtest.New(t))
	key := filepath.Join(t.TempDir(), "secrets.key")
	testkit.Must(t, vault.Create(key))
	keys, err := vault.Load([]string{key})
	testkit.Must(t, err)
	svc, err := service.New(service.Config{Vault: keys, Hosts: []service.Host{{ID: "h1", URL: host.URL()}}}, store, slog.New(slog.NewTextHandler(t.Output(), nil)))
	testkit.Must(t, err)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		testkit.Must(t, <-done)
	})
	team, err := svc.EnsureTeam(t.Context(), "team")
	testkit.Must(t, err)
	caller := service.Caller{Team: team}
	_, apiKey, err := svc.CreateKey(t.Context(), caller, service.NewKey{Name: "test"})
	testkit.Must(t, err)
	s, err := New(Config{Service: svc, Admission: admission.New(admission.Config{Authenticate: svc.Authenticate}), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	testkit.Must(t, err)
	server := httptest.NewServer(s.InFrontOf(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })))
	t.Cleanup(server.Close)
	testkit.WaitNoError(t, "the host is connected", func() error {
		_, err := svc.CreateSandbox(t.Context(), caller, service.CreateSandbox{Metadata: map[string]string{"first": "1"}, SandboxSpec: wrenn.SandboxSpec{EndOfLife: wrenn.EndOfLife{Timeout: time.Hour}}})
		return err
	})
	document, err := legacy.NewRouter(spec(t))
	testkit.Must(t, err)
	return &surface{url: server.URL, key: apiKey, document: document, service: svc, caller: caller, fullDisk: fullDisk, agent: agent}
}

// call sends a request and checks the status. The answer is the body as JSON; an
// error must have the form that clients need.
func (s *surface) call(t *testing.T, method, path, body string, want int) (out map[string]any, list []any, h http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, io.NopCloser(strings.NewReader(body))) // chunked, as JavaScript sends it
	testkit.Must(t, err)
	req.Header.Set("X-Api-Key", s.key)
	for name, value := range s.header {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	if resp.StatusCode != want {
		t.Fatalf("%s %s %s: %d %s, want %d", method, path, body, resp.StatusCode, text, want)
	}
	switch {
	case want == http.StatusNoContent:
		if len(text) > 0 {
			t.Errorf("%s %s: 204 with %q", method, path, text)
		}
	case want == http.StatusAccepted && len(text) == 0:
	case bytes.HasPrefix(text, []byte("[")):
		testkit.Must(t, json.Unmarshal(text, &list))
	case resp.Header.Get("Content-Type") == "application/octet-stream":
		out = map[string]any{"content": string(text)}
		return out, nil, resp.Header
	default:
		testkit.Must(t, json.Unmarshal(text, &out))
	}
	s.conforms(t, req, resp, text)
	if code, ok := out["code"].(float64); want >= 400 && (!ok || int(code) != want || out["message"] == "") {
		t.Errorf("%s %s: an error of the form %s", method, path, text)
	}
	return out, list, resp.Header
}

// spec is the document as read by a library that the server does not use.
func spec(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.E2B)
	testkit.Must(t, err)
	return doc
}

// conforms compares an answer with the document; those for no route of it need their form alone.
func (s *surface) conforms(t *testing.T, req *http.Request, resp *http.Response, body []byte) {
	t.Helper()
	local := req.Clone(t.Context())
	local.URL.Scheme, local.URL.Host, local.Host = "", "", ""
	route, params, err := s.document.FindRoute(local)
	if err != nil {
		return
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, Route: route, PathParams: params},
		Status:                 resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	}
	if err := openapi3filter.ValidateResponse(t.Context(), input); err != nil {
		t.Errorf("%s %s: %s is not in the document: %v", req.Method, req.URL, resp.Status, err)
	}
}

// The SDKs do not repeat what a sandbox that does not answer cannot do.
func TestUnresponsiveSandbox(t *testing.T) {
	t.Parallel()
	s := newSurface(t)
	sb, _, _ := s.call(t, "POST", "/sandboxes", `{"templateID":"base"}`, 201)
	id, _ := sb["sandboxID"].(string)
	s.agent.Silence(wrenn.SandboxID(id), time.Now(), "nothing in it answers")
	failed, _, h := s.call(t, "POST", "/sandboxes/"+id+"/pause", `{"requireHealthyGuest":true}`, 503)
	if text, _ := failed["message"].(string); !strings.Contains(text, "nothing in it answers") {
		t.Errorf("the answer is %v", failed)
	}
	if h.Get("Should-Retry") != "false" || h.Get("Retry-After") != "" {
		t.Errorf("Should-Retry is %q, Retry-After %q", h.Get("Should-Retry"), h.Get("Retry-After"))
	}
	s.call(t, "POST", "/sandboxes/"+id+"/pause", `{"memory":false}`, 503)
	s.call(t, "POST", "/sandboxes/"+id+"/pause", `{}`, 204)
	s.call(t, "DELETE", "/sandboxes/"+id, ``, 204)
}

// TestDocument: the router and the document have the same routes, and the document
// says of each operation whether it is built.
func TestDocument(t *testing.T) {
	s, err := New(Config{Log: slog.New(slog.DiscardHandler)})
	testkit.Must(t, err)
	doc := spec(t)
	testkit.Must(t, doc.Validate(t.Context()))
	routed := map[string]bool{}
	testkit.Must(t, chi.Walk(s.routes, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routed[method+" "+route] = true
		return nil
	}))
	operations := s.operations()
	maps.Copy(operations, s.contentOperations())
	for path, item := range doc.Paths.Map() {
		if !serves(path) {
			t.Errorf("%s is not among the paths that are E2B's", path)
		}
		for method, op := range item.Operations() {
			name := method + " " + path
			if !routed[name] {
				t.Errorf("%s is not routed", name)
			}
			delete(routed, name)
			if op.OperationID == "" || op.Summary == "" || len(op.Tags) == 0 || op.Responses.Default() != nil {
				t.Errorf("%s needs an id, a summary, a tag, and no default answer", name)
			}
			_, built := operations[op.OperationID]
			if op.Security == nil {
				t.Errorf("%s needs the scope that its key has to have", name)
				continue
			}
			built = built || len(*op.Security) == 0 // that without a key is not among the functions for callers
			if built == (op.Responses.Value("501") != nil) {
				t.Errorf("%s is built (%v), or answers 501; the document says the opposite", name, built)
			}
			if op.Responses.Value("401") == nil || op.Responses.Value("429") == nil || op.Responses.Value("500") == nil {
				t.Errorf("%s lacks answers that every operation has", name)
			}
		}
	}
	for name := range routed {
		t.Errorf("%s is not in the document", name)
	}
}

// TestPanic: an operation that panics is answered as every error is.
func TestPanic(t *testing.T) {
	s, err := New(Config{Log: slog.New(slog.DiscardHandler)}) // without a service
	testkit.Must(t, err)
	w := httptest.NewRecorder()
	s.InFrontOf(nil).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/snapshots", nil))
	var failed struct{ Code int }
	testkit.Must(t, json.Unmarshal(w.Body.Bytes(), &failed))
	if w.Code != 500 || failed.Code != 500 {
		t.Errorf("a panic is answered with %d %s", w.Code, w.Body)
	}
}

func TestLife(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"a":"b c","k":"x&y"},"envVars":{},"unknown":[1]}`, 201)
	id, _ := made["sandboxID"].(string)
	if _, err := wrenn.ParseSandboxID(id); err != nil {
		t.Fatalf("made %v", made)
	}
	for _, name := range []string{"templateID", "clientID", "envdVersion", "envdAccessToken"} {
		if text, _ := made[name].(string); text == "" {
			t.Errorf("%s is missing in %v", name, made)
		}
	}
	at := "/sandboxes/" + id
	info, _, _ := s.call(t, "GET", at+"-0000", "", 200) // with a client's id
	if info["state"] != "running" || info["envdAccessToken"] != made["envdAccessToken"] || info["metadata"].(map[string]any)["a"] != "b c" {
		t.Errorf("got %v", info)
	}
	started, ended := timeOf(t, info["startedAt"]), timeOf(t, info["endAt"])
	if life := ended.Sub(started); life < 5*time.Minute || life > 6*time.Minute {
		t.Errorf("it lives for %s, want the 5 minutes of this dialect", life)
	}
	s.call(t, "POST", at+"/timeout", `{"timeout":3600}`, 204)
	info, _, _ = s.call(t, "GET", at, "", 200)
	if left := time.Until(timeOf(t, info["endAt"])); left < 50*time.Minute {
		t.Errorf("after a timeout of an hour it ends in %s", left)
	}
	s.call(t, "POST", "/v2"+at+"/connect", `{}`, 200)
	again, _, _ := s.call(t, "GET", at, "", 200)
	if again["endAt"] != info["endAt"] {
		t.Errorf("a connect moved the end from %v to %v: it may only extend", info["endAt"], again["endAt"])
	}
	s.call(t, "POST", at+"/timeout", `{}`, 400)

	_, copies, _ := s.call(t, "POST", at+"/fork", `{"count":2}`, 201)
	if len(copies) != 2 || copies[0].(map[string]any)["sandbox"].(map[string]any)["sandboxID"] == id {
		t.Errorf("forked %v", copies)
	}
	s.call(t, "POST", at+"/pause", `{}`, 204)
	s.call(t, "POST", at+"/pause", ``, 409)
	s.call(t, "POST", at+"/fork", `{}`, 409)
	info, _, _ = s.call(t, "GET", at, "", 200)
	if info["state"] != "paused" {
		t.Errorf("paused: %v", info)
	}
	back, _, _ := s.call(t, "POST", at+"/connect", `{"timeout":300}`, 201)
	if back["envdAccessToken"] != made["envdAccessToken"] {
		t.Error("a pause changed the token")
	}
	s.call(t, "DELETE", at, "", 204)
	for method, path := range map[string]string{"DELETE": at, "GET": at, "POST": at + "/connect"} {
		s.call(t, method, path, "", 404)
	}
}

func timeOf(t *testing.T, value any) time.Time {
	t.Helper()
	text, _ := value.(string)
	out, err := time.Parse(time.RFC3339Nano, text)
	testkit.Must(t, err)
	return out
}

func TestLists(t *testing.T) {
	s := newSurface(t)
	for range 3 {
		s.call(t, "POST", "/sandboxes", `{"templateID":"base","timeout":300,"secure":true,"allow_internet_access":true,"metadata":{"a":"b c","k":"x&y"}}`, 201)
	}
	const filter = "metadata=a%3Db%252520c%26k%3Dx%252526y" // as the SDKs send it
	_, all, _ := s.call(t, "GET", "/v2/sandboxes?state=running%2Cpaused&"+filter, "", 200)
	if len(all) != 3 {
		t.Errorf("%d sandboxes match, want 3", len(all))
	}
	_, page, h := s.call(t, "GET", "/v2/sandboxes?limit=2&"+filter, "", 200)
	next := h.Get("X-Next-Token")
	if len(page) != 2 || next == "" {
		t.Errorf("a page has %d, next %q", len(page), next)
	}
	_, page, h = s.call(t, "GET", "/v2/sandboxes?limit=2&"+filter+"&nextToken="+url.QueryEscape(next), "", 200)
	if len(page) != 1 || h.Get("X-Next-Token") != "" {
		t.Errorf("the last page has %d, next %q", len(page), h.Get("X-Next-Token"))
	}
	_, none, _ := s.call(t, "GET", "/v2/sandboxes?metadata=a%3Db", "", 200)
	if none == nil || len(none) != 0 {
		t.Errorf("no match is %v, want []", none)
	}
	_, old, _ := s.call(t, "GET", "/sandboxes", "", 200)
	if len(old) != 4 {
		t.Errorf("the old list has %d, want 4", len(old))
	}
	oldest := all[2].(map[string]any)
	_, page, h = s.call(t, "GET", "/v2/sandboxes?limit=1&order=asc&template=base&"+filter, "", 200)
	if len(page) != 1 || page[0].(map[string]any)["sandboxID"] != oldest["sandboxID"] || h.Get("X-Total-Running") != "3" {
		t.Errorf("the oldest is %v, want %v; %s run", page, oldest, h.Get("X-Total-Running"))
	}
	_, page, _ = s.call(t, "GET", "/v2/sandboxes?order=asc&"+filter+"&nextToken="+url.QueryEscape(h.Get("X-Next-Token")), "", 200)
	if len(page) != 2 || page[0].(map[string]any)["sandboxID"] == oldest["sandboxID"] {
		t.Errorf("after the oldest come %v", page)
	}
	newest := url.QueryEscape(all[0].(map[string]any)["startedAt"].(string))
	if _, page, _ = s.call(t, "GET", "/v2/sandboxes?startedAfter="+newest+"&"+filter, "", 200); len(page) != 1 {
		t.Errorf("since the start of the newest %d started, want 1", len(page))
	}
	if _, page, h = s.call(t, "GET", "/v2/sandboxes?template=other", "", 200); len(page) != 0 || h.Get("X-Total-Running") != "0" {
		t.Errorf("of another template there are %v, %s run", page, h.Get("X-Total-Running"))
	}
	if _, _, h = s.call(t, "GET", "/v2/sandboxes?state=paused", "", 200); h.Get("X-Total-Running") != "" {
		t.Error("those that run are counted although paused ones are wanted")
	}
	for _, bad := range []string{"order=up", "startedAfter=yesterday", "state=gone", "limit=0", "limit=101", "metadata=%25zz", "nextToken=x"} {
		s.call(t, "GET", "/v2/sandboxes?"+bad, "", 400)
	}
}

// TestEnd: the timeout counts from the start, the last time that it was set, or the
// resume, and a use does not extend it.
func TestEnd(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","timeout":600,"autoPause":true}`, 201)
	at := "/sandboxes/" + made["sandboxID"].(string)
	end := func() time.Time {
		info, _, _ := s.call(t, "GET", at, "", 200)
		return timeOf(t, info["endAt"])
	}
	first := end()
	_, err := s.service.Exec(t.Context(), s.caller, wrenn.SandboxID(made["sandboxID"].(string)), wrenn.ExecCommand{Cmd: "echo"})
	testkit.Must(t, err)
	s.call(t, "POST", at+"/connect", `{"timeout":300}`, 200)
	s.call(t, "POST", at+"/connect", `{"timeout":600}`, 200)
	if got := end(); !got.Equal(first) {
		t.Errorf("a use and connects moved the end from %v to %v", first, got)
	}
	s.call(t, "POST", at+"/timeout", `{"timeout":60}`, 204)
	if left := time.Until(end()); left > time.Minute {
		t.Errorf("with a shorter timeout %v are left", left)
	}
	s.call(t, "POST", at+"/pause", `{}`, 204)
	s.call(t, "POST", "/v2"+at+"/connect", `{"timeout":30}`, 201)
	if left := time.Until(end()); left > 30*time.Second {
		t.Errorf("resumed for 30 s, it has %v", left)
	}
	for path, body := range map[string]string{
		"/v2/sandboxes": `{"templateID":"base","timeout":99999999}`, at + "/timeout": `{"timeout":99999999}`, at + "/connect": `{"timeout":99999999}`,
	} {
		if failed, _, _ := s.call(t, "POST", path, body, 400); failed["message"] != "Timeout cannot be greater than 720 hours" {
			t.Errorf("%s: %v", path, failed)
		}
	}
}

// TestIdempotencyKey: requests with one key make one sandbox.
func TestIdempotencyKey(t *testing.T) {
	s := newSurface(t)
	const body = `{"templateID":"base","metadata":{"a":"1","b":"2"},"envVars":{}}`
	s.header = map[string]string{"Idempotency-Key": "ab-1"}
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", body, 201)
	again, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"metadata":{"b":"2","a":"1"},"later":{"x":1},"envVars":{},"templateID":"base"}`, 201)
	if diff := cmp.Diff(made, again); diff != "" {
		t.Errorf("the same request again (-first +second):\n%s", diff)
	}
	failed, _, h := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 409)
	if failed["error_code"] != "idempotency_request_mismatch" || h.Get("Should-Retry") != "" {
		t.Errorf("another request: %v", failed)
	}
	s.call(t, "DELETE", "/sandboxes/"+made["sandboxID"].(string), "", 204)
	if again, _, _ = s.call(t, "POST", "/v2/sandboxes", body, 201); again["sandboxID"] != made["sandboxID"] {
		t.Errorf("after the end of %v the key makes %v", made["sandboxID"], again["sandboxID"])
	}
	other, _, _ := s.call(t, "POST", "/sandboxes", body, 201)
	if other["sandboxID"] == made["sandboxID"] {
		t.Error("another route is another request")
	}
	s.header["Idempotency-Key"] = "ab-2"
	s.call(t, "POST", "/v2/sandboxes", `{"templateID":"nothing"}`, 404)
	s.call(t, "POST", "/v2/sandboxes", body, 201) // the failed one made nothing
	for _, bad := range []string{"a b", "é", strings.Repeat("x", 256)} {
		s.header["Idempotency-Key"] = bad
		s.call(t, "POST", "/v2/sandboxes", body, 400)
	}
}

// TestOneKeyAtOnce: of requests with one key at the same time one creates, and the
// others get its sandbox or are told to try again.
func TestOneKeyAtOnce(t *testing.T) {
	s := newSurface(t)
	const body = `{"templateID":"base","metadata":{"at":"once"}}`
	statuses := make(chan int)
	for range 8 {
		go func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/v2/sandboxes", strings.NewReader(body))
			if err != nil {
				t.Error(err)
			}
			req.Header.Set("X-Api-Key", s.key)
			req.Header.Set("Idempotency-Key", "once")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Error(err)
				statuses <- 0
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode == 409 && (resp.Header.Get("Should-Retry") != "true" || resp.Header.Get("Retry-After") != "1") {
				t.Errorf("409 with the header %v", resp.Header)
			}
			statuses <- resp.StatusCode
		}()
	}
	seen := map[int]int{}
	for range 8 {
		seen[<-statuses]++
	}
	if seen[201] == 0 || seen[201]+seen[409] != 8 {
		t.Errorf("the statuses are %v", seen)
	}
	if _, all, _ := s.call(t, "GET", "/v2/sandboxes?metadata=at%3Donce", "", 200); len(all) != 1 {
		t.Errorf("%d sandboxes were made", len(all))
	}
}

// TestPrivatePorts: a sandbox without public traffic has a token for its ports, and
// so have its copies; others have none.
func TestPrivatePorts(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","network":{"allowPublicTraffic":false,"maskRequestHost":"localhost:${PORT}","httpsPorts":[8443]}}`, 201)
	token, _ := made["trafficAccessToken"].(string)
	if len(token) != 64 || token == made["envdAccessToken"] {
		t.Errorf("created: %v", made)
	}
	at := "/sandboxes/" + made["sandboxID"].(string)
	if again, _, _ := s.call(t, "POST", at+"/connect", `{"timeout":60}`, 200); again["trafficAccessToken"] != token {
		t.Errorf("connected: %v", again)
	}
	_, copies, _ := s.call(t, "POST", at+"/fork", `{}`, 201)
	copied, _ := copies[0].(map[string]any)["sandbox"].(map[string]any)
	if other, _ := copied["trafficAccessToken"].(string); len(other) != 64 || other == token {
		t.Errorf("forked: %v", copied)
	}
	for _, network := range []string{`{}`, `{"allowPublicTraffic":null}`, `{"allowPublicTraffic":true,"httpsPorts":[443]}`} {
		public, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","network":`+network+`}`, 201)
		if _, has := public["trafficAccessToken"]; has {
			t.Errorf("%s: %v", network, public)
		}
	}
	for _, network := range []string{`{"httpsPorts":[49983]}`, `{"httpsPorts":[0]}`, `{"httpsPorts":[65536]}`, `{"maskRequestHost":"a/b"}`, `{"allowPublicTraffic":"no"}`} {
		s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","network":`+network+`}`, 400)
	}
}

func TestRefusals(t *testing.T) {
	s := newSurface(t)
	for body, want := range map[string]int{
		`{}`: 400, `{"templateID":1}`: 400, `{"templateID":"base","timeout":-1}`: 400, `{"templateID":"../x"}`: 400, `{"templateID":"nothing"}`: 404,
		`{"templateID":"base","network":{"allowOut":["example.com"]}}`:            400, // all else is allowed, too
		`{"templateID":"base","network":{"denyOut":["0.0.0.0/0","example.com"]}}`: 400, `{"templateID":"base","network":{"allowOut":["*"],"denyOut":["0.0.0.0/0"]}}`: 400,
		`{"templateID":"base","network":{"rules":{"a.test":[{"transform":{"headers":{"Host":"x"}}}]}}}`: 400, `{"templateID":"base","network":{"egressProxy":{"address":"a:1"}}}`: 400,
		`{"templateID":"base","network":{"dnsServers":["a"]}}`: 400, `{"templateID":"base","network":{"denyOut":["example.com"]}}`: 400, `{"templateID":"base","network":{"denyOut":["::/0"]}}`: 400,
		`{"templateID":"base","network":{}}`: 201, `{`: 400, `{"templateID":"base","metadata":"` + strings.Repeat("x", 1<<20) + `"}`: 400,
	} {
		s.call(t, "POST", "/v2/sandboxes", body, want)
	}
	if _, _, h := s.call(t, "PATCH", "/sandboxes", "", 405); h.Get("Allow") != "GET, POST" {
		t.Errorf("allowed: %q", h.Get("Allow"))
	}
	s.call(t, "GET", "/sandboxes/x/y", "", 404)
	s.call(t, "GET", "/v2/nothing", "", 404)
	s.call(t, "GET", "/sandboxes/nothing", "", 404)
	s.call(t, "GET", "/templates/aliases/base", "", 200)
	s.call(t, "GET", "/templates/aliases/ns%2Fn", "", 404)
	if _, all, _ := s.call(t, "GET", "/templates", "", 200); len(all) == 0 {
		t.Error("there is no template")
	}
	s.key = "e2b_0000"
	s.call(t, "GET", "/v2/sandboxes", "", 401)
	for path, want := range map[string]int{"/v1/sandboxes": 418, "/health": 418, "/sandboxesx": 418, "/docs": 418} { // the API's
		resp, err := http.Get(s.url + path)
		testkit.Must(t, err)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// TestTemplateDetails: what the command line asks of templates and teams.
func TestTemplateDetails(t *testing.T) {
	s := newSurface(t)
	if _, all, h := s.call(t, "GET", "/v2/templates?limit=1", "", 200); len(all) != 1 || h.Get("X-Next-Token") != "" {
		t.Errorf("a page of templates: %v", all)
	}
	if _, all, _ := s.call(t, "GET", "/v2/templates?nextToken=base", "", 200); len(all) != 0 {
		t.Errorf("after the last: %v", all)
	}
	if _, all, _ := s.call(t, "GET", "/default-templates", "", 200); len(all) != 1 || all[0].(map[string]any)["templateID"] != "base" {
		t.Errorf("the templates of every team: %v", all)
	}
	s.call(t, "GET", "/templates/base", "", 200)
	s.call(t, "PATCH", "/v2/templates/base", `{"public":true}`, 200)
	s.call(t, "GET", "/templates/base/tags", "", 200)
	s.call(t, "GET", "/templates/base/tags/count", "", 200)
	s.call(t, "GET", "/templates/base/tags/exists?tag=v1", "", 200)
	s.call(t, "GET", "/templates/base/tags/exists", "", 400)
	for _, path := range []string{"/templates/nothing", "/templates/nothing/tags"} {
		s.call(t, "GET", path, "", 404)
	}
	s.call(t, "PATCH", "/v2/templates/nothing", `{"public":true}`, 404)
	_, teams, _ := s.call(t, "GET", "/teams", "", 200)
	if len(teams) != 1 || teams[0].(map[string]any)["name"] != "team" || teams[0].(map[string]any)["apiKey"] != s.key {
		t.Errorf("teams: %v", teams)
	}
}

// TestSnapshots are templates, whichever door made them.
func TestSnapshots(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","envVars":{"A":"b"}}`, 201)
	id := made["sandboxID"].(string)
	at := "/sandboxes/" + id
	unnamed, _, _ := s.call(t, "POST", at+"/snapshots", `{}`, 201)
	again, _, _ := s.call(t, "POST", at+"/snapshots", "", 201)
	named, _, _ := s.call(t, "POST", at+"/snapshots", `{"name":"mine:v1","memory":true}`, 201)
	if named["snapshotID"] != "mine:v1" || !cmp.Equal(named["names"], []any{"mine:v1"}) || unnamed["snapshotID"] == again["snapshotID"] {
		t.Errorf("snapshots %v, %v, %v", unnamed, again, named)
	}
	s.call(t, "POST", at+"/snapshots", `{"name":"mine:v1"}`, 201) // which the name refers to now
	s.call(t, "POST", at+"/snapshots", `{"name":"a/b"}`, 400)
	s.call(t, "POST", at+"/snapshots", `{"name":"base"}`, 400)
	s.call(t, "POST", "/sandboxes/inothing/snapshots", `{}`, 404)

	count := func(query string, want int) (ids []string, next string) {
		t.Helper()
		_, list, h := s.call(t, "GET", "/snapshots"+query, "", 200)
		for _, entry := range list {
			ids = append(ids, entry.(map[string]any)["snapshotID"].(string))
		}
		if list == nil || len(list) != want {
			t.Errorf("%s: %v, want %d", query, list, want)
		}
		return ids, h.Get("X-Next-Token")
	}
	all, _ := count("", 3)
	count("?sandboxID="+id, 3)
	count("?sandboxID="+string(wrenn.NewSandboxID()), 0)
	count("?sandboxID=nothing", 0)
	count("?name=mine", 1)
	count("?name=mine:v1", 1)
	count("?name=nothing", 0)
	first, next := count("?limit=2", 2)
	rest, last := count("?limit=2&nextToken="+next, 1)
	if got := append(first, rest...); !cmp.Equal(got, all) || next == "" || last != "" {
		t.Errorf("pages %v, then %q; want %v", got, last, all)
	}
	s.call(t, "GET", "/snapshots?nextToken=%25", "", 400)
	s.call(t, "GET", "/snapshots?limit=0", "", 400)

	copied, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"mine:v1"}`, 201)
	if copied["templateID"] != "mine:v1" {
		t.Errorf("created from the snapshot: %v", copied)
	}
	s.call(t, "DELETE", at, "", 204)
	s.call(t, "POST", "/v2/sandboxes", `{"templateID":"`+unnamed["snapshotID"].(string)+`"}`, 201)
	s.call(t, "DELETE", "/templates/mine%3Av1", "", 204)
	s.call(t, "DELETE", "/templates/mine%3Av1", "", 404)
	for _, name := range []string{"%0D", "a%20b", "a:b:c", "x%0A"} { // of no template
		for _, call := range [][2]string{
			{"DELETE", ""}, {"GET", ""}, {"GET", "/tags"}, {"GET", "/builds/" + noBuild + "/status"},
		} {
			s.call(t, call[0], "/templates/"+name+call[1], "", 404)
		}
		s.call(t, "GET", "/templates/aliases/"+name, "", 404)
	}
	count("", 2)
}

// TestWithoutMemory pauses, resumes and saves the disk alone.
func TestWithoutMemory(t *testing.T) {
	s := newSurface(t)
	for body, want := range map[string]int{
		`"autoPauseMemory":false`: 400,
		`"autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}`:  400,
		`"autoPause":true,"autoPauseMemory":true,"autoResume":{"enabled":true}`:   201,
		`"autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":false}`: 201,
	} {
		s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base",`+body+`}`, want)
	}
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","autoPause":true,"autoPauseMemory":false}`, 201)
	at := "/sandboxes/" + made["sandboxID"].(string)
	info, _, _ := s.call(t, "GET", at, "", 200)
	if !cmp.Equal(info["lifecycle"], any(map[string]any{"autoResume": false, "onTimeout": "pause"})) {
		t.Errorf("lifecycle: %v", info["lifecycle"])
	}
	for i, step := range []struct {
		pause, connect string
		disk, ifAble   bool
		boots          int
	}{
		{`{"memory":false}`, `{}`, true, true, 0},
		{`{"memory":true,"requireHealthyGuest":true}`, `{"memory":false}`, false, false, 1},
		{``, `{"memory":true}`, false, true, 1},
	} {
		s.call(t, "POST", at+"/pause", step.pause, 204)
		all := s.agent.Pauses()
		if last := all[len(all)-1]; len(all) != i+1 || last.GetDiskOnly() != step.disk || last.GetIfAble() != step.ifAble {
			t.Errorf("%s asked for %v", step.pause, all)
		}
		s.call(t, "POST", "/v2"+at+"/connect", step.connect, 201)
		if n := s.agent.Boots(); n != step.boots {
			t.Errorf("after %s the sandbox has booted %d times, want %d", step.connect, n, step.boots)
		}
	}
	s.call(t, "POST", "/v2"+at+"/connect", `{"memory":false}`, 200) // it runs
	s.call(t, "POST", at+"/snapshots", `{"name":"disk","memory":false}`, 201)
}

// TestPortsAreShown as they were chosen at create.
func TestPortsAreShown(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base","network":{"allowPublicTraffic":false,"maskRequestHost":"localhost:${PORT}","httpsPorts":[8443],"denyOut":["1.1.1.1"]}}`, 201)
	at := "/sandboxes/" + made["sandboxID"].(string)
	info, _, _ := s.call(t, "GET", at, "", 200)
	want := map[string]any{"allowPublicTraffic": false, "maskRequestHost": "localhost:${PORT}", "httpsPorts": []any{8443.}, "denyOut": []any{"1.1.1.1"}}
	if diff := cmp.Diff(any(want), info["network"]); diff != "" {
		t.Errorf("network (-want +got):\n%s", diff)
	}
	s.call(t, "PUT", at+"/network", `{}`, 204)
	delete(want, "denyOut")
	info, _, _ = s.call(t, "GET", at, "", 200)
	if diff := cmp.Diff(any(want), info["network"]); diff != "" {
		t.Errorf("after the rules are gone, network (-want +got):\n%s", diff)
	}
}

// TestSnapshotThatFails leaves no template.
func TestSnapshotThatFails(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 201)
	at := "/sandboxes/" + made["sandboxID"].(string)
	s.fullDisk.Store(true)
	s.call(t, "POST", at+"/snapshots", `{}`, 429)
	s.call(t, "POST", at+"/pause", `{}`, 204)
	s.call(t, "POST", at+"/snapshots", `{}`, 409)
	if _, all, _ := s.call(t, "GET", "/templates", "", 200); len(all) != 1 {
		t.Errorf("templates: %v, want the base alone", all)
	}
}

func TestMetrics(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 201)
	id := made["sandboxID"].(string)
	at := "/sandboxes/" + id
	_, all, _ := s.call(t, "GET", at+"/metrics", "", 200)
	want := map[string]any{
		"timestamp": "2024-12-31T23:59:45Z", "timestampUnix": 1735689585., "cpuCount": 1., "cpuUsedPct": 12.5,
		"memUsed": 104857600., "memTotal": 536870912., "memCache": 52428800., "diskUsed": 1073741824., "diskTotal": 10737418240.,
	}
	if len(all) != 3 || !cmp.Equal(all[0], any(want)) {
		t.Errorf("metrics: %v", all)
	}
	for query, want := range map[string]int{"?start=1735689590": 2, "?end=1735689589": 1, "?start=1&end=2": 0, "?start=1735689590&end=1735689590": 1} {
		if _, got, _ := s.call(t, "GET", at+"/metrics"+query, "", 200); got == nil || len(got) != want {
			t.Errorf("%s: %v, want %d", query, got, want)
		}
	}
	for _, bad := range []string{"?start=x", "?end=-1"} {
		s.call(t, "GET", at+"/metrics"+bad, "", 400)
	}
	s.call(t, "GET", "/sandboxes/inothing/metrics", "", 404)
	last, _, _ := s.call(t, "GET", "/sandboxes/metrics?sandbox_ids="+id+",nothing", "", 200)
	if got := last["sandboxes"]; !cmp.Equal(got, any(map[string]any{})) { // the samples are old
		t.Errorf("last: %v", got)
	}
	s.call(t, "GET", "/sandboxes/metrics", "", 400)
	s.call(t, "POST", at+"/pause", `{}`, 204)
	if _, got, _ := s.call(t, "GET", at+"/metrics", "", 200); len(got) != 3 {
		t.Errorf("while it is paused: %v", got)
	}
}

func TestLogs(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 201)
	id := made["sandboxID"].(string)
	said := "console of " + id // which states no time
	v1, _, _ := s.call(t, "GET", "/sandboxes/"+id+"/logs", "", 200)
	v2, _, _ := s.call(t, "GET", "/v2/sandboxes/"+id+"/logs?level=info&direction=backward&search=console", "", 200)
	entry := first(t, v1["logEntries"])
	at, err := time.Parse(time.RFC3339, entry["timestamp"].(string))
	testkit.Must(t, err)
	want := map[string]any{"timestamp": entry["timestamp"], "level": "info", "message": said, "fields": map[string]any{"logger": "console"}}
	for name, got := range map[string]map[string]any{"v1": entry, "v2": first(t, v2["logs"])} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	wantLine := map[string]any{"timestamp": entry["timestamp"], "line": `{"level":"info","logger":"console","message":"` + said + `"}`}
	if diff := cmp.Diff(wantLine, first(t, v1["logs"])); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
	here, later := strconv.FormatInt(at.UnixMilli(), 10), strconv.FormatInt(at.UnixMilli()+1, 10)
	for query, want := range map[string]int{
		"cursor=" + here: 1, "cursor=" + later: 0, "direction=backward&cursor=" + here: 0, "direction=backward&cursor=" + later: 1,
		"level=warn": 0, "search=Windows": 0, "limit=0": 0,
	} {
		got, _, _ := s.call(t, "GET", "/v2/sandboxes/"+id+"/logs?"+query, "", 200)
		if list, ok := got["logs"].([]any); !ok || len(list) != want {
			t.Errorf("%s: %v, want %d", query, got["logs"], want)
		}
	}
	after, _, _ := s.call(t, "GET", "/sandboxes/"+id+"/logs?start="+later, "", 200)
	if diff := cmp.Diff(map[string]any{"logs": []any{}, "logEntries": []any{}}, after); diff != "" {
		t.Errorf("after the last line (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"cursor=-1", "cursor=x", "limit=1001", "direction=up", "level=fatal", "search=" + strings.Repeat("x", 257)} {
		s.call(t, "GET", "/v2/sandboxes/"+id+"/logs?"+bad, "", 400)
	}
	s.call(t, "GET", "/sandboxes/inothing/logs", "", 404)
	s.call(t, "GET", "/v2/sandboxes/inothing/logs", "", 404)
}

// first returns the only element of a list of JSON.
func first(t *testing.T, list any) map[string]any {
	t.Helper()
	if all, ok := list.([]any); ok && len(all) == 1 {
		return all[0].(map[string]any)
	}
	t.Fatalf("%v is not a list of one", list)
	return nil
}

func TestNetwork(t *testing.T) {
	s := newSurface(t)
	show := func(at string, internet bool, network any) {
		t.Helper()
		got, _, _ := s.call(t, "GET", at, "", 200)
		if got["allowInternetAccess"] != internet || !cmp.Equal(got["network"], network) {
			t.Errorf("shown: %v, %v; want %t, %v", got["allowInternetAccess"], got["network"], internet, network)
		}
	}
	for body, want := range map[string]map[string]any{
		`"allow_internet_access":false`:                                                                {"denyOut": []any{"0.0.0.0/0"}},
		`"network":{"denyOut":["0.0.0.0/0"]}`:                                                          {"denyOut": []any{"0.0.0.0/0"}},
		`"network":{"allowPublicTraffic":null,"rules":{}}`:                                             nil,
		`"allow_internet_access":true,"network":{"x":"y"}`:                                             nil,
		`"network":{"denyOut":["1.2.3.4","10.1.0.0/16"]}`:                                              {"denyOut": []any{"1.2.3.4", "10.1.0.0/16"}},
		`"network":{"allowOut":["*.Example.com","8.8.8.8","example.org:443"],"denyOut":["0.0.0.0/0"]}`: {"allowOut": []any{"8.8.8.8", "*.example.com", "example.org:443"}, "denyOut": []any{"0.0.0.0/0"}},
		`"allow_internet_access":false,"network":{"allowOut":["8.8.8.8"]}`:                             {"allowOut": []any{"8.8.8.8"}, "denyOut": []any{"0.0.0.0/0"}},
	} {
		made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base",`+body+`}`, 201)
		denies := want != nil && want["denyOut"].([]any)[0] == "0.0.0.0/0"
		if want == nil {
			show("/sandboxes/"+made["sandboxID"].(string), true, nil)
		} else {
			show("/sandboxes/"+made["sandboxID"].(string), !denies, want)
		}
	}
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 201)
	at := "/sandboxes/" + made["sandboxID"].(string)
	s.call(t, "PUT", at+"/network", `{"allow_internet_access":false,"allowOut":["example.com"],"dnsServers":["1.1.1.1","8.8.8.8"]}`, 204)
	show(at, false, map[string]any{"allowOut": []any{"example.com"}, "denyOut": []any{"0.0.0.0/0"}, "dnsServers": []any{"1.1.1.1", "8.8.8.8"}})
	s.call(t, "PUT", at+"/network", `{"allow_internet_access":false,"allowOut":["8.8.8.8"],"dnsServers":[]}`, 204)
	show(at, false, map[string]any{"allowOut": []any{"8.8.8.8"}, "denyOut": []any{"0.0.0.0/0"}})
	_, copies, _ := s.call(t, "POST", at+"/fork", `{}`, 201)
	show("/sandboxes/"+copies[0].(map[string]any)["sandbox"].(map[string]any)["sandboxID"].(string), false, map[string]any{"allowOut": []any{"8.8.8.8"}, "denyOut": []any{"0.0.0.0/0"}})
	s.call(t, "POST", at+"/pause", `{}`, 204)
	s.call(t, "PUT", at+"/network", `{"denyOut":["1.1.1.1"]}`, 204)
	show(at, true, map[string]any{"denyOut": []any{"1.1.1.1"}})
	s.call(t, "PUT", at+"/network", `{}`, 204) // which allows all again
	show(at, true, nil)
	for _, bad := range []string{`{"egressProxy":{"address":"a:1"}}`, `{"allowPublicTraffic":true}`, `{"maskRequestHost":"a"}`, `{"httpsPorts":[443]}`} {
		s.call(t, "PUT", at+"/network", bad, 400)
	}
	s.call(t, "PUT", at+"/network", `{"allowPublicTraffic":null}`, 204)
	s.call(t, "PUT", "/sandboxes/inothing/network", `{}`, 404)
	s.call(t, "DELETE", at, "", 204)
	s.call(t, "PUT", at+"/network", `{}`, 404)
}

// TestAnotherTeam cannot see, use or end a sandbox.
func TestAnotherTeam(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 201)
	at := "/sandboxes/" + made["sandboxID"].(string)
	team, err := s.service.EnsureTeam(t.Context(), "others")
	testkit.Must(t, err)
	_, s.key, err = s.service.CreateKey(t.Context(), service.Caller{Team: team}, service.NewKey{Name: "test"})
	testkit.Must(t, err)
	for _, call := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"POST", "/connect"}, {"POST", "/pause"}, {"POST", "/fork"}, {"POST", "/timeout"}, {"POST", "/refreshes"}, {"POST", "/resume"}, {"PUT", "/network"}, {"GET", "/metrics"}, {"GET", "/logs"}, {"POST", "/snapshots"}} {
		s.call(t, call[0], at+call[1], `{"timeout":1}`, 404)
	}
}

// TestScopes shows that a key may be used for what it was made for only.
func TestScopes(t *testing.T) {
	s := newSurface(t)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 201)
	at := "/sandboxes/" + made["sandboxID"].(string)
	team, err := s.service.EnsureTeam(t.Context(), "team")
	testkit.Must(t, err)
	read, err := wrenn.ParseScopes([]string{"read"})
	testkit.Must(t, err)
	_, s.key, err = s.service.CreateKey(t.Context(), service.Caller{Team: team}, service.NewKey{Name: "reader", Scopes: read})
	testkit.Must(t, err)
	for path, item := range spec(t).Paths.Map() {
		for method, op := range item.Operations() {
			allowed := len(*op.Security) == 0 || (*op.Security)[0]["apiKey"][0] == "read"
			req, err := http.NewRequestWithContext(t.Context(), method, s.url+strings.NewReplacer("{", "", "}", "").Replace(path), nil)
			testkit.Must(t, err)
			req.Header.Set("X-Api-Key", s.key)
			resp, err := http.DefaultClient.Do(req)
			testkit.Must(t, err)
			testkit.Must(t, resp.Body.Close())
			if (resp.StatusCode == http.StatusForbidden) == allowed && resp.StatusCode != http.StatusNotImplemented {
				t.Errorf("%s %s with a key that may read: %d", method, path, resp.StatusCode)
			}
		}
	}
	if seen, _, _ := s.call(t, "GET", at, "", 200); seen["envdAccessToken"] != "" {
		t.Error("a key that may only read gets the token for everything in the sandbox")
	}
}

func FuzzMetadataFilter(f *testing.F) {
	f.Add("a=b%20c&k=x%26y")
	f.Add("%")
	f.Fuzz(func(_ *testing.T, text string) { _, _ = metadataFilter(text) })
}
