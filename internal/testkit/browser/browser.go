// Package browser drives a real browser in tests, Debian's Chromium, over the Chrome
// DevTools Protocol.
package browser

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// Tab is a page of a browser. It is not safe for concurrent use.
type Tab struct {
	conn    *websocket.Conn
	session string
	calls   int
	faults  []string
}

// Faults returns what the page logged as errors, as far as calls have read it.
func (p *Tab) Faults() []string { return p.faults }

// Navigate begins to load another page.
func (p *Tab) Navigate(tb testing.TB, url string) {
	tb.Helper()
	p.call(tb, "Page.navigate", map[string]any{"url": url})
}

// Resize gives the page a size in CSS pixels.
func (p *Tab) Resize(tb testing.TB, width, height int) {
	tb.Helper()
	p.call(tb, "Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false})
}

// Dark has the page prefer dark colors, or light ones.
func (p *Tab) Dark(tb testing.TB, dark bool) {
	tb.Helper()
	value := "light"
	if dark {
		value = "dark"
	}
	p.call(tb, "Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": value}}})
}

// Screenshot returns what the page looks like, as PNG.
func (p *Tab) Screenshot(tb testing.TB) []byte {
	tb.Helper()
	data, _ := p.call(tb, "Page.captureScreenshot", nil)["data"].(string)
	png, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		tb.Fatal(err)
	}
	return png
}

// Type types text at the place that has the focus.
func (p *Tab) Type(tb testing.TB, text string) {
	tb.Helper()
	p.call(tb, "Input.insertText", map[string]any{"text": text})
}

// Press presses and releases a key, such as "Enter" with the code 13.
func (p *Tab) Press(tb testing.TB, key string, code int, text string) {
	tb.Helper()
	p.call(tb, "Input.dispatchKeyEvent", map[string]any{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text})
	p.call(tb, "Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code})
}

// profile returns a directory for a browser whose children may write to it a
// little longer than the browser lives.
func profile(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "browser") //nolint:usetesting // TempDir fails when another process writes while it removes
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		deadline := time.Now().Add(time.Minute)
		for err := os.RemoveAll(dir); err != nil; err = os.RemoveAll(dir) {
			if time.Now().After(deadline) {
				tb.Error(err)
				return
			}
		}
	})
	return dir
}

// Open starts a browser without a window that resolves no name, and opens url. The
// test is skipped without chromium, unless it runs in CI. It goes with the test.
func Open(tb testing.TB, url string) *Tab {
	tb.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("WRENN_CI") == "1" {
			tb.Fatal("chromium is not installed: apt-get install chromium")
		}
		tb.Skip("chromium is not installed: apt-get install chromium")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 10*time.Minute) // longer than any test, also on a busy machine
	cmd := exec.CommandContext(ctx, program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0", "--user-data-dir="+profile(tb), "about:blank")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
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
	conn, _, err := websocket.Dial(ctx, endpoint, nil)
	if err != nil {
		tb.Fatalf("connect to the browser at %q: %v", endpoint, err)
	}
	conn.SetReadLimit(16 << 20)
	tb.Cleanup(func() {
		(&Tab{conn: conn}).call(tb, "Browser.close", map[string]any{}) // its children end with it
		_ = conn.CloseNow()
	})
	p := &Tab{conn: conn}
	created := p.call(tb, "Target.createTarget", map[string]any{"url": "about:blank"})
	attached := p.call(tb, "Target.attachToTarget", map[string]any{"targetId": created["targetId"], "flatten": true})
	p.session, _ = attached["sessionId"].(string)
	p.call(tb, "Log.enable", nil)
	p.call(tb, "Runtime.enable", nil)
	p.call(tb, "Page.navigate", map[string]any{"url": url})
	return p
}

// call sends a command and waits for its answer.
func (p *Tab) call(tb testing.TB, method string, params map[string]any) map[string]any {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 2*time.Minute)
	defer cancel()
	p.calls++
	request := map[string]any{"id": p.calls, "method": method, "params": params}
	if p.session != "" {
		request["sessionId"] = p.session
	}
	text, err := json.Marshal(request)
	if err != nil {
		tb.Fatal(err)
	}
	if err := p.conn.Write(ctx, websocket.MessageText, text); err != nil {
		tb.Fatalf("%s: %v", method, err)
	}
	for {
		_, text, err := p.conn.Read(ctx)
		if err != nil {
			tb.Fatalf("%s: %v", method, err)
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
			tb.Fatal(err)
		}
		if message.Method == "Runtime.exceptionThrown" || message.Params.Entry.Level == "error" {
			p.faults = append(p.faults, string(text))
		}
		if message.ID == p.calls {
			if message.Error != nil {
				tb.Fatalf("%s: %v", method, message.Error)
			}
			return message.Result
		}
	}
}

// Evaluate runs a script in the page and returns the string it resolves to.
func (p *Tab) Evaluate(tb testing.TB, script string) string {
	tb.Helper()
	result := p.call(tb, "Runtime.evaluate", map[string]any{"expression": script, "awaitPromise": true, "returnByValue": true})
	value, _ := result["result"].(map[string]any)
	text, ok := value["value"].(string)
	if !ok {
		tb.Fatalf("the script failed: %v", result)
	}
	return text
}
