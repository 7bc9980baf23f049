package filesystem

import (
	"bytes"
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
	"time"

	"connectrpc.com/connect"

	"wrenn/internal/guest/account"
	"wrenn/internal/guest/settings"
	"wrenn/proto/gen/envd/filesystem/filesystemconnect"
)

// patience is for what must happen: long, because machines are slow.
const patience = 30 * time.Second

// house is a service behind a real HTTP server, and a user with a home.
type house struct {
	*Service
	rpc  filesystemconnect.FilesystemClient
	http *http.Client
	base string
	home string
}

// newHouse opens a house for the user who runs the test. The default user is
// "me"; "other" has another number.
func newHouse(t *testing.T) *house {
	t.Helper()
	return newHouseWith(t, Config{})
}

func newHouseWith(t *testing.T, cfg Config) *house {
	t.Helper()
	home, etc := t.TempDir(), t.TempDir()
	cfg.Accounts = account.DB{Passwd: filepath.Join(etc, "passwd"), Group: filepath.Join(etc, "group")}
	write(t, cfg.Accounts.Passwd, fmt.Sprintf("me:x:%d:%d::%s:/bin/sh\nother:x:12345:12346::%s:/bin/sh\n", os.Getuid(), os.Getgid(), home, home))
	write(t, cfg.Accounts.Group, fmt.Sprintf("mine:x:%d:\nothers:x:12346:\n", os.Getgid()))
	cfg.Settings = &settings.Settings{}
	cfg.Settings.Update(func(v *settings.Values) { v.User = "me" })
	s := New(cfg)
	mux := http.NewServeMux()
	mux.Handle(filesystemconnect.NewFilesystemHandler(s))
	mux.Handle("/files", s.Files())
	server := httptest.NewServer(mux)
	conns := &http.Transport{DisableCompression: true}
	client := &http.Client{Transport: conns}
	t.Cleanup(func() {
		s.Close()
		conns.CloseIdleConnections()
		server.Close()
	})
	return &house{Service: s, http: client, base: server.URL, home: home,
		rpc: filesystemconnect.NewFilesystemClient(client, server.URL, connect.WithProtoJSON())}
}

// in is a path in the user's home.
func (h *house) in(elements ...string) string {
	return filepath.Join(append([]string{h.home}, elements...)...)
}

func (h *house) filesURL(path string) string {
	if path == "" {
		return h.base + "/files"
	}
	return h.base + "/files?path=" + url.QueryEscape(path)
}

// answer is an HTTP answer that came whole.
type answer struct {
	status int
	header http.Header
	body   string
}

func (h *house) do(t *testing.T, req *http.Request) answer {
	t.Helper()
	resp, err := h.http.Do(req.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body)}
}

func (h *house) get(t *testing.T, path string, headers ...string) answer {
	t.Helper()
	return h.do(t, request(t, http.MethodGet, h.filesURL(path), nil, headers...))
}

// put uploads a raw body.
func (h *house) put(t *testing.T, path string, body io.Reader, headers ...string) answer {
	t.Helper()
	headers = append([]string{"Content-Type", "application/octet-stream"}, headers...)
	return h.do(t, request(t, http.MethodPost, h.filesURL(path), body, headers...))
}

func request(t *testing.T, method, target string, body io.Reader, headers ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// wantError checks a JSON error of /files.
func wantError(t *testing.T, got answer, status int, part string) {
	t.Helper()
	var decoded struct {
		Code    int
		Message string
	}
	if err := json.Unmarshal([]byte(got.body), &decoded); err != nil {
		t.Fatalf("status %d, body %q: %v", got.status, got.body, err)
	}
	if got.status != status || decoded.Code != status || !strings.Contains(decoded.Message, part) {
		t.Errorf("answer = %d %s, want %d with %q", got.status, got.body, status, part)
	}
}

func wantStatus(t *testing.T, got answer, status int) {
	t.Helper()
	if got.status != status {
		t.Fatalf("answer = %d %s, want %d", got.status, got.body, status)
	}
}

func wantCode(t *testing.T, err error, code connect.Code) {
	t.Helper()
	if connect.CodeOf(err) != code || err == nil {
		t.Errorf("error = %v, want %v", err, code)
	}
}

// names lists a directory, to see what an upload left.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func repeat(s string, n int) io.Reader { return bytes.NewReader(bytes.Repeat([]byte(s), n)) }
