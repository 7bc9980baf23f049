package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/getkin/kin-openapi/openapi3"

	"wrenn/api"
	"wrenn/internal/testkit"
)

func TestDocsFiles(t *testing.T) {
	server := serve(t, &stub{}, nil)
	for file, media := range map[string]string{
		"swagger-ui-bundle.js": "text/javascript; charset=utf-8", "swagger-ui.css": "text/css; charset=utf-8",
		"start.js": "text/javascript; charset=utf-8", "favicon-32x32.png": "image/png",
	} {
		got := get(t, "http://"+server.address+"/docs/"+file, nil)
		if got.status != 200 || got.header.Get("Content-Type") != media || len(got.body) == 0 {
			t.Errorf("GET /docs/%s = %d %s, %d bytes", file, got.status, got.header.Get("Content-Type"), len(got.body))
		}
	}
	if got := get(t, "http://"+server.address+"/docs/", nil); got.status != 301 {
		t.Errorf("GET /docs/ = %d", got.status)
	}
}

// tryIt waits for the page, sets the key, opens listSandboxes and executes it,
// as a person does with a mouse. It returns what the page shows then.
const tryIt = `(async () => {
	const until = async (what, find) => {
		for (let i = 0; i < 600; i++) {
			const found = find();
			if (found) return found;
			await new Promise(done => setTimeout(done, 100));
		}
		throw new Error("the page never had " + what + ": " + document.body.innerText.slice(0, 500));
	};
	const box = "#operations-sandboxes-listSandboxes ";
	const find = css => () => document.querySelector(box + css);
	(await until("listSandboxes", find(".opblock-summary-control"))).click();
	ui.preauthorizeApiKey("apiKey", %q);
	(await until("a button to try", find(".try-out__btn"))).click();
	(await until("a button to execute", find(".btn.execute"))).click();
	const answer = await until("an answer", find(".live-responses-table .response .response-col_status"));
	return JSON.stringify({
		title: document.querySelector(".info .title").innerText,
		operations: document.querySelectorAll(".opblock").length,
		status: answer.innerText,
		body: document.querySelector(box + ".live-responses-table tbody").innerText,
		elsewhere: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith(location.origin) && !n.startsWith("data:")),
	});
})()`

// otherDocument returns what the page shows now.
const otherDocument = `(async () => {
	const title = document.querySelector(".info .title");
	return (title ? title.firstChild.textContent.trim() : "nothing") + ": " + document.querySelectorAll(".opblock").length;
})()`

// TestDocsInABrowser: the page works in a real browser that can reach nothing
// but this server.
func TestDocsInABrowser(t *testing.T) {
	program, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("WRENN_CI") == "1" {
			t.Fatal("chromium is not installed: apt-get install chromium")
		}
		t.Skip("chromium is not installed: apt-get install chromium")
	}
	server := serve(t, &stub{}, nil)
	tab := browse(t, program, "http://"+server.address+"/docs")
	var shown struct {
		Title, Status, Body string
		Operations          int
		Elsewhere           []string
	}
	text := tab.evaluate(t, fmt.Sprintf(tryIt, testKey))
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		t.Fatalf("the page says %s: %v", text, err)
	}
	operations := 0
	for _, item := range spec(t).Paths.Map() {
		operations += len(item.Operations())
	}
	if !strings.Contains(shown.Title, "Wrenn") || shown.Operations != operations {
		t.Errorf("the page shows %q with %d operations", shown.Title, shown.Operations)
	}
	if !strings.HasPrefix(shown.Status, "200") || !strings.Contains(shown.Body, testID) {
		t.Errorf("listSandboxes was answered with %s: %s", shown.Status, shown.Body)
	}
	if len(shown.Elsewhere) > 0 {
		t.Errorf("the page loads from elsewhere: %v", shown.Elsewhere)
	}
	tab.call(t, "Page.navigate", map[string]any{"url": "http://" + server.address + "/docs?api=e2b"})
	compatible, err := openapi3.NewLoader().LoadFromData(api.E2B)
	testkit.Must(t, err)
	operations = 0
	for _, item := range compatible.Paths.Map() {
		operations += len(item.Operations())
	}
	testkit.WaitNoError(t, "the other document is shown", func() error {
		if text := tab.evaluate(t, otherDocument); text != fmt.Sprintf("Wrenn, E2B-compatible: %d", operations) {
			return fmt.Errorf("the page shows %q, want %d operations", text, operations)
		}
		return nil
	})
	for _, fault := range tab.faults {
		t.Errorf("the browser complains: %s", fault)
	}
}

// tab is a page of a browser that is driven over the Chrome DevTools Protocol.
type tab struct {
	conn    *websocket.Conn
	session string
	calls   int
	faults  []string // what the page logged as an error
}

// profile returns a directory for a browser whose children may write to it a
// little longer than the browser lives.
func profile(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "browser") //nolint:usetesting // t.TempDir fails when another process writes while it removes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		deadline := time.Now().Add(time.Minute)
		for err := os.RemoveAll(dir); err != nil; err = os.RemoveAll(dir) {
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	return dir
}

// browse starts a browser without a window that resolves no name, and opens url.
func browse(t *testing.T, program, url string) *tab {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute)
	cmd := exec.CommandContext(ctx, program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0", "--user-data-dir="+profile(t), "about:blank")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its children, those that are left
	})
	var endpoint string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if after, ok := strings.CutPrefix(lines.Text(), "DevTools listening on "); ok {
			endpoint = after
			break
		}
	}
	go func() { _, _ = io.Copy(io.Discard, stderr) }()
	conn, _, err := websocket.Dial(ctx, endpoint, nil) //nolint:bodyclose // Dial says it need not be
	if err != nil {
		t.Fatalf("connect to the browser at %q: %v", endpoint, err)
	}
	conn.SetReadLimit(16 << 20)
	t.Cleanup(func() {
		(&tab{conn: conn}).call(t, "Browser.close", map[string]any{}) // its children end with it
		_ = conn.CloseNow()
	})
	p := &tab{conn: conn}
	created := p.call(t, "Target.createTarget", map[string]any{"url": "about:blank"})
	attached := p.call(t, "Target.attachToTarget", map[string]any{"targetId": created["targetId"], "flatten": true})
	p.session, _ = attached["sessionId"].(string)
	p.call(t, "Log.enable", nil)
	p.call(t, "Runtime.enable", nil)
	p.call(t, "Page.navigate", map[string]any{"url": url})
	return p
}

// call sends a command and waits for its answer.
func (p *tab) call(t *testing.T, method string, params map[string]any) map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	p.calls++
	request := map[string]any{"id": p.calls, "method": method, "params": params}
	if p.session != "" {
		request["sessionId"] = p.session
	}
	text, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.conn.Write(ctx, websocket.MessageText, text); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	for {
		_, text, err := p.conn.Read(ctx)
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		var message struct {
			ID     int
			Method string
			Params struct {
				Entry struct{ Level, Text, URL string }
			}
			Result map[string]any
			Error  any
		}
		if err := json.Unmarshal(text, &message); err != nil {
			t.Fatal(err)
		}
		if message.Method == "Runtime.exceptionThrown" || message.Params.Entry.Level == "error" {
			p.faults = append(p.faults, string(text))
		}
		if message.ID == p.calls {
			if message.Error != nil {
				t.Fatalf("%s: %v", method, message.Error)
			}
			return message.Result
		}
	}
}

// evaluate runs a script in the page and returns the string it resolves to.
func (p *tab) evaluate(t *testing.T, script string) string {
	t.Helper()
	result := p.call(t, "Runtime.evaluate", map[string]any{"expression": script, "awaitPromise": true, "returnByValue": true})
	value, _ := result["result"].(map[string]any)
	text, ok := value["value"].(string)
	if !ok {
		t.Fatalf("the script failed: %v", result)
	}
	return text
}
