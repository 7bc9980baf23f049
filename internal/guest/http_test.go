package guest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/guest"
	"wrenn.dev/proto/gen/envd/process"
	"wrenn.dev/proto/gen/envd/process/processconnect"
)

// call sends a request with a body and returns the status, the headers and the answer.
func (e *envd) call(t *testing.T, method, path, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, e.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := e.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(answer)
}

func (e *envd) init(t *testing.T, body string, header ...string) {
	t.Helper()
	status, h, answer := e.call(t, http.MethodPost, "/init", body, header...)
	if status != http.StatusNoContent || h.Get("X-Envd-Version") != guest.Version {
		t.Fatalf("init: status %d, version %q: %s", status, h.Get("X-Envd-Version"), answer)
	}
}

func TestHealth(t *testing.T) {
	e := startEnvd(t)
	if status, _, body := e.call(t, http.MethodGet, "/health", ""); status != http.StatusNoContent || body != "" {
		t.Errorf("status %d, body %q", status, body)
	}
}

func TestMetrics(t *testing.T) {
	e := startEnvd(t)
	status, _, body := e.call(t, http.MethodGet, "/metrics", "")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	var got map[string]float64
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"ts", "cpu_count", "mem_total", "mem_used", "mem_total_mib", "mem_used_mib", "disk_used", "disk_total"} {
		if got[field] <= 0 {
			t.Errorf("%s = %v", field, got[field])
		}
	}
	for _, field := range []string{"cpu_used_pct", "mem_cache"} {
		if _, ok := got[field]; !ok {
			t.Errorf("no %s", field)
		}
	}
	if got["mem_used"] > got["mem_total"] || got["disk_used"] > got["disk_total"] || got["cpu_used_pct"] > 100 {
		t.Errorf("more used than there is: %s", body)
	}
}

func TestInit(t *testing.T) {
	e := startEnvd(t)
	envs := func() map[string]string {
		t.Helper()
		_, _, body := e.call(t, http.MethodGet, "/envs", "")
		var got map[string]string
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return got
	}
	if got := envs(); len(got) != 0 {
		t.Errorf("environment %v, want none", got)
	}
	e.init(t, `{"envVars":{"A":"1","B":"2"},"timestamp":"2026-11-24T12:00:00.123456789Z","entropy":"AAECAw==","later":[]}`)
	if diff := cmp.Diff(map[string]string{"A": "1", "B": "2"}, envs()); diff != "" {
		t.Errorf("envs mismatch (-want +got):\n%s", diff)
	}
	e.init(t, `{"envVars":null}`)
	e.init(t, ``)
	if len(envs()) != 2 {
		t.Error("null or nothing replaced the environment")
	}
	e.init(t, `{"envVars":{"C":"3"}}`)
	if diff := cmp.Diff(map[string]string{"C": "3"}, envs()); diff != "" {
		t.Errorf("envs mismatch (-want +got):\n%s", diff)
	}
	// No user is the agent's own default: programs run on.
	e.init(t, `{"defaultUser":""}`)
	if r := e.run(t, sh("echo $C")); r.stdout.String() != "3\n" {
		t.Errorf("stdout = %q", &r.stdout)
	}
	for _, body := range []string{`{`, `[]`, `{"timestamp":"noon"}`, `{"entropy":"?"}`, `{} {}`, `{"envVars":{"A":1}}`} {
		if status, _, answer := e.call(t, http.MethodPost, "/init", body); status != http.StatusBadRequest || !strings.Contains(answer, `"code":400`) {
			t.Errorf("init %s: status %d, %s", body, status, answer)
		}
	}
	huge := `{"defaultUser":"` + strings.Repeat("x", 2<<20) + `"}`
	if status, _, _ := e.call(t, http.MethodPost, "/init", huge); status != http.StatusBadRequest {
		t.Errorf("huge init: status %d, want 400", status)
	}
}

func TestToken(t *testing.T) {
	e := startEnvd(t)
	e.init(t, `{"accessToken":"secret"}`)
	if status, _, _ := e.call(t, http.MethodGet, "/health", ""); status != http.StatusNoContent {
		t.Errorf("health: %d", status)
	}
	for _, path := range []string{"/metrics", "/envs", "/files?path=/etc/passwd"} {
		if status, _, body := e.call(t, http.MethodGet, path, ""); status != http.StatusUnauthorized || !strings.Contains(body, `"code":401`) {
			t.Errorf("%s without token: status %d, %s", path, status, body)
		}
	}
	const list = "/process.Process/List"
	if status, _, _ := e.call(t, http.MethodPost, list, "{}", "Content-Type", "application/json"); status != http.StatusUnauthorized {
		t.Errorf("List without token: status %d", status)
	}
	if status, _, body := e.call(t, http.MethodPost, list, "{}", "Content-Type", "application/json", "X-Access-Token", "secret"); status != http.StatusOK || body != "{}" {
		t.Errorf("List with token: status %d, %s", status, body)
	}
	// A program in the guest, which this test is one of, may not give the agent another token.
	if status, _, _ := e.call(t, http.MethodPost, "/init", `{"accessToken":""}`); status != http.StatusUnauthorized {
		t.Errorf("init without token: status %d", status)
	}
	e.init(t, `{"accessToken":""}`, "X-Access-Token", "secret")
	if status, _, _ := e.call(t, http.MethodGet, "/envs", ""); status != http.StatusOK {
		t.Errorf("without a token set: status %d", status)
	}
}

func TestCORS(t *testing.T) {
	e := startEnvd(t)
	e.init(t, `{"accessToken":"secret"}`)
	status, h, _ := e.call(t, http.MethodOptions, "/process.Process/List", "",
		"Origin", "https://example.com", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,x-access-token")
	if status != http.StatusNoContent || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Headers") != "authorization,x-access-token" {
		t.Errorf("preflight: status %d, %v", status, h)
	}
	if _, h, _ := e.call(t, http.MethodGet, "/envs", ""); h.Get("Access-Control-Allow-Origin") != "*" {
		t.Error("a refusal is not readable for other origins")
	}
}

func TestHTTP2(t *testing.T) {
	e := startEnvd(t)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	client := processconnect.NewProcessClient(&http.Client{Transport: transport}, e.base)
	s, err := client.Start(t.Context(), sh("echo hello"))
	if err != nil {
		t.Fatal(err)
	}
	if r := collect(t, s); r.stdout.String() != "hello\n" {
		t.Errorf("stdout = %q", &r.stdout)
	}
}

// Files are served, also for a signed URL without the token.
func TestFiles(t *testing.T) {
	e := startEnvd(t)
	path := filepath.Join(t.TempDir(), "file")
	query := "/files?path=" + url.QueryEscape(path)
	if status, _, body := e.call(t, http.MethodPost, query, "content", "Content-Type", "application/octet-stream"); status != http.StatusOK {
		t.Fatalf("upload: status %d, %s", status, body)
	}
	e.init(t, `{"accessToken":"secret"}`)
	sum := sha256.Sum256([]byte(path + ":read::secret"))
	signed := query + "&signature=" + url.QueryEscape("v1_"+base64.RawStdEncoding.EncodeToString(sum[:]))
	if status, _, body := e.call(t, http.MethodGet, signed, ""); status != http.StatusOK || body != "content" {
		t.Errorf("signed download: status %d, %q", status, body)
	}
	if status, _, body := e.call(t, http.MethodPost, signed, "x"); status != http.StatusUnauthorized {
		t.Errorf("upload with a signature for reading: status %d, %s", status, body)
	}
	status, _, body := e.call(t, http.MethodPost, "/filesystem.Filesystem/Stat", `{"path":"`+path+`"}`, "Content-Type", "application/json", "X-Access-Token", "secret")
	if status != http.StatusOK || !strings.Contains(body, `"size":"7"`) {
		t.Errorf("Stat: status %d, %s", status, body)
	}
}

// frame is a message of a stream of the Connect protocol.
func frame(message string) []byte {
	head := make([]byte, 5)
	binary.BigEndian.PutUint32(head[1:], uint32(len(message)))
	return append(head, message...)
}

// frames splits an answer, "2:" before the last one.
func frames(t *testing.T, body []byte) []string {
	t.Helper()
	var all []string
	for len(body) > 0 {
		if len(body) < 5 || len(body) < 5+int(binary.BigEndian.Uint32(body[1:])) {
			t.Fatalf("half a frame: %q", body)
		}
		end := 5 + int(binary.BigEndian.Uint32(body[1:]))
		var compact bytes.Buffer
		if err := json.Compact(&compact, body[5:end]); err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%d:%s", body[0], &compact))
		body = body[end:]
	}
	return all
}

// What the SDKs send and read, byte by byte.
func TestRawFrames(t *testing.T) {
	e := startEnvd(t)
	start := func(message string) []string {
		t.Helper()
		status, h, body := e.call(t, http.MethodPost, "/process.Process/Start", string(frame(message)),
			"Content-Type", "application/connect+json", "Connect-Protocol-Version", "1", "Connect-Timeout-Ms", "60000", "Keepalive-Ping-Interval", "50")
		if status != http.StatusOK || h.Get("Content-Type") != "application/connect+json" {
			t.Fatalf("status %d, content type %q", status, h.Get("Content-Type"))
		}
		return frames(t, []byte(body))
	}
	got := start(`{"process":{"cmd":"/bin/sh","args":["-c","printf 'a\\000\\377'; exit 3"]},"stdin":false}`)
	if len(got) != 4 || !strings.HasPrefix(got[0], `0:{"event":{"start":{"pid":`) {
		t.Fatalf("frames: %q", got)
	}
	want := []string{
		`0:{"event":{"data":{"stdout":"YQD/"}}}`,
		`0:{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}}}`,
		`2:{}`,
	}
	if diff := cmp.Diff(want, got[1:]); diff != "" {
		t.Errorf("frames mismatch (-want +got):\n%s", diff)
	}
	want = []string{`2:{"error":{"code":"not_found","message":"command 'no-such' not found"}}`}
	if diff := cmp.Diff(want, start(`{"process":{"cmd":"no-such"}}`)); diff != "" {
		t.Errorf("frames mismatch (-want +got):\n%s", diff)
	}
	status, _, body := e.call(t, http.MethodPost, "/process.Process/SendSignal", `{"process":{"pid":1},"signal":"SIGNAL_SIGKILL"}`,
		"Content-Type", "application/json", "Connect-Protocol-Version", "1")
	if status != http.StatusNotFound || body != `{"code":"not_found","message":"process with pid 1 not found"}` {
		t.Errorf("SendSignal: status %d, %s", status, body)
	}
}

func TestMessageTooLarge(t *testing.T) {
	e := startEnvd(t)
	_, err := e.SendInput(t.Context(), &process.SendInputRequest{Process: byPID(1), Input: stdin(strings.Repeat("x", 17<<20))})
	if err == nil || !strings.Contains(err.Error(), "resource_exhausted") {
		t.Errorf("SendInput() of 17 MiB = %v, want resource_exhausted", err)
	}
}

// The agent answers without a listener too: for those who compose it differently.
func TestHandlerAlone(t *testing.T) {
	agent := guest.New(guest.Config{Machine: failing{}, Log: discard()})
	defer agent.Close()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/init", strings.NewReader(`{"timestamp":"2001-01-01T00:00:00Z","entropy":"AAAA","accessToken":"t"}`))
	agent.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), os.ErrPermission.Error()) {
		t.Errorf("init on a machine that refuses: status %d, %s", w.Code, w.Body)
	}
	// What the machine refuses must not keep the token out.
	w = httptest.NewRecorder()
	agent.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/envs", nil))
	if w.Code != http.StatusUnauthorized {
		t.Errorf("after init: status %d, want 401", w.Code)
	}
}
