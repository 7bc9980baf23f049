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

	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/settings"
	"wrenn.dev/proto/gen/envd/filesystem/filesystemconnect"
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
func newHouse(tb testing.TB) *house {
	tb.Helper()
	return newHouseWith(tb, Config{})
}

func newHouseWith(tb testing.TB, cfg Config) *house {
	tb.Helper()
	home, etc := tb.TempDir(), tb.TempDir()
	cfg.Accounts = account.DB{Passwd: filepath.Join(etc, "passwd"), Group: filepath.Join(etc, "group")}
	write(tb, cfg.Accounts.Passwd, fmt.Sprintf("me:x:%d:%d::%s:/bin/sh\nother:x:12345:12346::%s:/bin/sh\n", os.Getuid(), os.Getgid(), home, home))
	write(tb, cfg.Accounts.Group, fmt.Sprintf("mine:x:%d:\nothers:x:12346:\n", os.Getgid()))
	cfg.Settings = &settings.Settings{}
	cfg.Settings.Update(func(v *settings.Values) { v.User = "me" })
	s := New(cfg)
	mux := http.NewServeMux()
	mux.Handle(filesystemconnect.NewFilesystemHandler(s))
	mux.Handle("/files", s.Files())
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	conns := &http.Transport{DisableCompression: true}
	client := &http.Client{Transport: conns}
	tb.Cleanup(func() {
		s.Close()
		conns.CloseIdleConnections()
		server.Close()
	})
	return &house{Service: s, http: client, base: server.URL, home: home,
		rpc: filesystemconnect.NewFilesystemClient(client, server.URL, connect.WithProtoJSON())}
}

// asRoot is a caller that is the agent's own user.
var asRoot = caller{User: &account.User{}}

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

func (h *house) do(tb testing.TB, req *http.Request) answer {
	tb.Helper()
	resp, err := h.http.Do(req.WithContext(tb.Context()))
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body)}
}

func (h *house) get(tb testing.TB, path string, headers ...string) answer {
	tb.Helper()
	return h.do(tb, request(tb, http.MethodGet, h.filesURL(path), nil, headers...))
}

// put uploads a raw body.
func (h *house) put(tb testing.TB, path string, body io.Reader, headers ...string) answer {
	tb.Helper()
	headers = append([]string{"Content-Type", "application/octet-stream"}, headers...)
	return h.do(tb, request(tb, http.MethodPost, h.filesURL(path), body, headers...))
}

func request(tb testing.TB, method, target string, body io.Reader, headers ...string) *http.Request {
	tb.Helper()
	req, err := http.NewRequest(method, target, body)
	if err != nil {
		tb.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

func write(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tb.Fatal(err)
	}
}

func mkdir(tb testing.TB, path string) {
	tb.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		tb.Fatal(err)
	}
}

func symlink(tb testing.TB, target, path string) {
	tb.Helper()
	if err := os.Symlink(target, path); err != nil {
		tb.Fatal(err)
	}
}

func read(tb testing.TB, path string) string {
	tb.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return string(content)
}

// wantError checks a JSON error of /files.
func wantError(tb testing.TB, got answer, status int, part string) {
	tb.Helper()
	var decoded struct {
		Code    int
		Message string
	}
	if err := json.Unmarshal([]byte(got.body), &decoded); err != nil {
		tb.Fatalf("status %d, body %q: %v", got.status, got.body, err)
	}
	if got.status != status || decoded.Code != status || !strings.Contains(decoded.Message, part) {
		tb.Errorf("answer = %d %s, want %d with %q", got.status, got.body, status, part)
	}
}

func wantStatus(tb testing.TB, got answer, status int) {
	tb.Helper()
	if got.status != status {
		tb.Fatalf("answer = %d %s, want %d", got.status, got.body, status)
	}
}

// names lists a directory, to see what an upload left.
func names(tb testing.TB, dir string) []string {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func repeat(s string, n int) io.Reader { return bytes.NewReader(bytes.Repeat([]byte(s), n)) }
