package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/telemetry/logtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// program is the control plane as its users start it, on a real database and a host
// in memory.
type program struct {
	url, metrics, key string
	config            string
	agent             *hosttest.Agent
	log               *logtest.Journal
	stop              func() error
}

// launch migrates, makes a key and serves, all by the command line.
func launch(t *testing.T) *program {
	t.Helper()
	agent := &hosttest.Agent{}
	host, err := hosttest.Serve(t.Context(), agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Stop)
	config := filepath.Join(t.TempDir(), "control-plane.toml")
	text := fmt.Sprintf("listen = '127.0.0.1:0'\nmetrics_listen = '127.0.0.1:0'\n[database]\nurl = %q\n[[host]]\nid = 'h1'\nurl = %q\n"+
		"[limits]\nrequests_per_second = 1e6\nrequest_burst = 1000000\nopen_requests = 100000\nsandboxes = 100000\nteam_memory_mb = 1000000000\nvcpus = 32\nmemory_mb = 65536\n",
		pgtest.New(t), host.URL())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	none := func(string) string { return "" }
	var key bytes.Buffer
	p := &program{log: &logtest.Journal{}, config: config, agent: agent}
	for _, args := range [][]string{{"migrate"}, {"migrate"}, {"key", "team-a", "first"}} { // twice is allowed
		if err := command(t.Context(), append([]string{"-config", config}, args...), environment{&key, p.log, none}); err != nil {
			t.Fatalf("control-plane %v: %v", args, err)
		}
	}
	p.key = strings.TrimSpace(key.String())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- command(ctx, []string{"-config", config}, environment{io.Discard, p.log, none}) }()
	p.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("serve = %v", err)
		}
		if t.Failed() {
			text := p.log.String()
			t.Logf("the end of its log:\n%s", text[max(0, len(text)-8<<10):])
		}
	})
	ready := regexp.MustCompile(`control plane is ready" api=(\S+) metrics=(\S+)`)
	p.until(t, "the log says that it is ready", func() bool {
		found := ready.FindStringSubmatch(p.log.String())
		if found != nil {
			p.url, p.metrics = "http://"+found[1], "http://"+found[2]
		}
		return found != nil
	})
	return p
}

func (p *program) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s; its log:\n%s", what, p.log)
		}
	}
}

// ask sends a request with the key and returns the status and the body.
func (p *program) ask(t *testing.T, method, url, media, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", p.key)
	if media != "" {
		req.Header.Set("Content-Type", media)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// call is ask with JSON, of an answer with the status given.
func (p *program) call(t *testing.T, status int, method, path, body string) map[string]any {
	t.Helper()
	got, text := p.ask(t, method, p.url+path, "application/json", body)
	if got != status {
		t.Fatalf("%s %s = %d %s, want %d", method, path, got, text, status)
	}
	answer := map[string]any{}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			t.Fatalf("%s %s = %s: %v", method, path, text, err)
		}
	}
	return answer
}

// TestServe uses the whole API on the real service and database.
func TestServe(t *testing.T) {
	p := launch(t)
	if !regexp.MustCompile(`^e2b_[0-9a-f]{40}$`).MatchString(p.key) {
		t.Fatalf("key printed %q", p.key)
	}
	p.until(t, "a host is connected", func() bool {
		status, _ := p.ask(t, "POST", p.url+"/v1/sandboxes", "application/json", `{"metadata":{"n":"0"}}`)
		return status == 201
	})
	box := p.call(t, 201, "POST", "/v1/sandboxes", `{"metadata":{"n":"1"},"env":{"A":"b"},"timeout_sec":0}`)
	path := fmt.Sprint("/v1/sandboxes/", box["id"])
	if box["status"] != "running" || box["timeout_sec"] != 0.0 {
		t.Errorf("created %v", box)
	}
	if status, text := p.ask(t, "GET", p.url+"/v1/sandboxes?metadata=n%3D1&state=running", "", ""); status != 200 || strings.Count(text, `"id"`) != 1 {
		t.Errorf("list = %d %s", status, text)
	}
	if got := p.call(t, 200, "POST", path+"/exec", `{"cmd":"cat","stdin":"/wA=","stdin_encoding":"base64"}`); got["stdout"] != "/wA=" || got["encoding"] != "base64" || got["exit_code"] != 0.0 {
		t.Errorf("exec = %v", got)
	}
	p.files(t, path)
	p.stream(t, path)
	if got := p.call(t, 200, "POST", path+"/timeout", `{"timeout_sec":60}`); got["timeout_sec"] != 60.0 {
		t.Errorf("timeout = %v", got)
	}
	if got := p.call(t, 200, "POST", path+"/pause", ""); got["status"] != "paused" {
		t.Errorf("pause = %v", got)
	}
	p.call(t, 409, "POST", path+"/exec", `{"cmd":"echo"}`)
	p.move(t, filepath.Base(path))
	if got := p.call(t, 200, "POST", path+"/resume", ""); got["status"] != "running" {
		t.Errorf("resume = %v", got)
	}
	p.call(t, 204, "DELETE", path, "")
	if got := p.call(t, 200, "GET", path, ""); got["status"] != "stopped" {
		t.Errorf("deleted: %v", got)
	}
	p.keys(t)
	p.hosts(t)
	if status, text := p.ask(t, "GET", p.metrics+"/metrics", "", ""); status != 200 || !strings.Contains(text, `wrenn_api_requests_total{operation="exec",status="200"} 1`) {
		t.Errorf("metrics = %d %s", status, text)
	}
	if err := p.stop(); err != nil {
		t.Errorf("stop = %v", err)
	}
	if strings.Contains(p.log.String(), p.key) {
		t.Error("the log has the key")
	}
}

// move runs the operator's command for a paused sandbox whose files were copied.
func (p *program) move(t *testing.T, id string) {
	t.Helper()
	for host, want := range map[string]wrenn.Code{"h1": "", "h9": wrenn.NotFound} {
		err := command(t.Context(), []string{"-config", p.config, "move", id, host}, environment{io.Discard, p.log, func(string) string { return "" }})
		if got := wrenn.CodeOf(err); err != nil && got != want || err == nil && want != "" {
			t.Errorf("move to %s = %v, want %q", host, err, want)
		}
	}
}

// hosts runs the operator's command that lists a sandbox in quarantine.
func (p *program) hosts(t *testing.T) {
	t.Helper()
	id := wrenn.NewSandboxID()
	p.agent.Put(id, wrenn.ObservedQuarantined)
	p.agent.Restart() // causes a round at once
	p.until(t, "the log tells of the unknown sandbox", func() bool { return strings.Contains(p.log.String(), "no row explains") })
	var out bytes.Buffer
	if err := command(t.Context(), []string{"-config", p.config, "hosts"}, environment{&out, p.log, func(string) string { return "" }}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"h1 ", "UNKNOWN SANDBOX", string(id), "quarantined"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("control-plane hosts printed no %q:\n%s", want, &out)
		}
	}
	for _, path := range []string{"/health", "/ready"} {
		if status, text := p.ask(t, "GET", p.metrics+path, "", ""); status != 200 {
			t.Errorf("%s on the metrics' listener = %d %s", path, status, text)
		}
		_, there := p.ask(t, "GET", p.metrics+path, "", "")
		_, here := p.ask(t, "GET", p.url+path, "", "")
		if strings.TrimSpace(there) != strings.TrimSpace(here) {
			t.Errorf("%s is %q on one listener and %q on the other", path, there, here)
		}
	}
}

func (p *program) files(t *testing.T, path string) {
	t.Helper()
	content := strings.Repeat("\x00\xff\n", 200_000)
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	_ = w.WriteField("path", "/tmp/x")
	part, err := w.CreateFormFile("file", "x")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(part, content)
	_ = w.Close()
	for _, route := range []string{"/files/", "/files/stream/"} {
		if status, text := p.ask(t, "POST", p.url+path+route+"write", w.FormDataContentType(), form.String()); status != 204 {
			t.Errorf("%swrite = %d %s", route, status, text)
		}
		if status, text := p.ask(t, "POST", p.url+path+route+"read", "application/json", `{"path":"/tmp/x"}`); status != 200 || text != content {
			t.Errorf("%sread = %d, %d bytes of %d", route, status, len(text), len(content))
		}
		p.call(t, 404, "POST", path+route+"read", `{"path":"/missing"}`)
	}
}

func (p *program) stream(t *testing.T, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, p.url+path+"/exec/stream", &websocket.DialOptions{HTTPHeader: http.Header{"X-Api-Key": {p.key}}}) //nolint:bodyclose // Dial says it need not be
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }()
	for _, frame := range []string{`{"type":"start","cmd":"cat","stdin":true}`, `{"type":"stdin","data":"hé"}`, `{"type":"stdin_close"}`} {
		if err := conn.Write(ctx, websocket.MessageText, []byte(frame)); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]string{}
	for {
		_, text, err := conn.Read(ctx)
		if err != nil {
			break
		}
		var frame struct{ Type, Data string }
		if err := json.Unmarshal(text, &frame); err != nil {
			t.Fatal(err)
		}
		seen[frame.Type] += frame.Data
	}
	if want := map[string]string{"start": "", "stdout": "hé", "exit": ""}; !maps.Equal(seen, want) {
		t.Errorf("frames = %q, want %q", seen, want)
	}
}

func (p *program) keys(t *testing.T) {
	t.Helper()
	made := p.call(t, 201, "POST", "/v1/keys", `{"name":"laptop"}`)
	if status, text := p.ask(t, "GET", p.url+"/v1/keys", "", ""); status != 200 || strings.Count(text, `"id"`) != 2 || strings.Contains(text, fmt.Sprint(made["key"])) {
		t.Errorf("keys = %d %s", status, text)
	}
	p.call(t, 204, "DELETE", fmt.Sprint("/v1/keys/", made["id"]), "")
	p.call(t, 404, "DELETE", fmt.Sprint("/v1/keys/", made["id"]), "")
	p.call(t, 404, "DELETE", "/v1/keys/unknown", "")
	p.key, made["key"] = fmt.Sprint(made["key"]), p.key
	p.call(t, 401, "GET", "/v1/keys", "")
	p.key = fmt.Sprint(made["key"])
}
