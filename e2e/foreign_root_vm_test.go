//go:build root && vm

package e2e

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testCurl uses the API without an SDK.
func testCurl(t *testing.T, s *stack) {
	t.Helper()
	dir := t.TempDir()
	content := make([]byte, 300_001)
	_, _ = rand.NewChaCha8([32]byte{4}).Read(content)
	up := filepath.Join(dir, "up")
	if err := os.WriteFile(up, content, 0o600); err != nil {
		t.Fatal(err)
	}
	key := s.key
	call := func(status string, args ...string) string {
		t.Helper()
		cmd := exec.Command("curl", append([]string{"-sS", "--max-time", "180", "-H", "X-API-Key: " + key, "-w", "\n%{http_code}"}, args...)...)
		cmd.Stderr = t.Output()
		out, err := cmd.Output()
		body, got := string(out), ""
		if i := strings.LastIndex(body, "\n"); i >= 0 {
			body, got = body[:i], body[i+1:]
		}
		if err != nil || got != status {
			t.Fatalf("curl %q: status %s, want %s, %v: %.300s", args, got, status, err, body)
		}
		return body
	}
	var sb struct{ ID, Status string }
	decode(t, call("201", "-X", "POST", s.url+"/v1/sandboxes", "--json", `{"memory_mb": 128, "metadata": {"mark": "curl"}}`), &sb)
	if sb.Status != "running" {
		t.Fatalf("created: %+v", sb)
	}
	at := s.url + "/v1/sandboxes/" + sb.ID
	var result struct {
		Stdout   string
		ExitCode int `json:"exit_code"`
	}
	decode(t, call("200", at+"/exec", "--json", `{"cmd": "sh", "args": ["-c", "echo hello; exit 3"]}`), &result)
	if result.Stdout != "hello\n" || result.ExitCode != 3 {
		t.Errorf("exec: %+v", result)
	}
	down := filepath.Join(dir, "down")
	for _, kind := range []string{"/files/", "/files/stream/"} {
		call("204", at+kind+"write", "-F", "path=/srv/file", "-F", "file=@"+up)
		call("200", at+kind+"read", "--json", `{"path": "/srv/file"}`, "-o", down)
		if got, err := os.ReadFile(down); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes went up, %d other ones came down, %v", kind, len(content), len(got), err)
		}
	}
	call("204", "-X", "DELETE", at)
	decode(t, call("200", at), &sb)
	if sb.Status != "stopped" {
		t.Errorf("deleted: %+v", sb)
	}
	key = "e2b_" + strings.Repeat("0", 40)
	call("401", at)
	s.clean(t, "curl")
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %.300s", err, text)
	}
}

// testWebSocketClient runs a command through Python's websocket-client.
func testWebSocketClient(t *testing.T, s *stack) {
	t.Helper()
	const python = "/usr/bin/python3" // the distribution's, which finds the distribution's packages
	if err := exec.Command(python, "-c", "import websocket").Run(); err != nil {
		if os.Getenv("WRENN_CI") == "1" {
			t.Fatal("python3-websocket is not installed")
		}
		t.Skip("needs python3-websocket")
	}
	sb, err := s.create(t, "python")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, filepath.Join("testdata", "stream.py"), "ws"+strings.TrimPrefix(s.url, "http")+"/v1/sandboxes/"+sb.ID+"/exec/stream", s.key)
	cmd.Stdin, cmd.Stderr = strings.NewReader("text and \xff\x00 bytes, grün\n"), t.Output()
	out, err := cmd.Output()
	if string(out) != "TEXT AND \xff\x00 BYTES, GRüN\n" || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("printed %q, %v", out, err)
	}
	s.clean(t, "python")
}
