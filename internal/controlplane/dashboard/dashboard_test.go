package dashboard

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
)

func ask(t *testing.T, path, host string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	r.Host = host
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Serve(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) []byte {
	t.Helper()
	content, err := io.ReadAll(r.Body)
	testkit.Must(t, err)
	testkit.Must(t, r.Body.Close())
	return content
}

// TestFirstPaint holds how much a browser loads before it shows the first page: the
// page, and what it names. The rest is loaded when it is needed.
func TestFirstPaint(t *testing.T) {
	const most = 300 << 10
	html := body(t, ask(t, "/", "localhost")) //nolint:bodyclose // body closes it
	sum := len(html)
	named := regexp.MustCompile(`(?:src|href)="(/ui/[^"]+)"`).FindAllSubmatch(html, -1)
	if len(named) < 3 {
		t.Fatalf("the page names %d files: %s", len(named), html)
	}
	for _, m := range named {
		r := ask(t, string(m[1]), "localhost", "Accept-Encoding", "gzip, br")
		packed := body(t, r)
		sum += len(packed)
		if r.StatusCode != http.StatusOK || r.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s: %s, %s", m[1], r.Status, r.Header.Get("Content-Encoding"))
		}
		unpacked, err := gzip.NewReader(bytes.NewReader(packed))
		testkit.Must(t, err)
		plain := body(t, ask(t, string(m[1]), "localhost")) //nolint:bodyclose // as above
		if content, err := io.ReadAll(unpacked); err != nil || !bytes.Equal(content, plain) {
			t.Errorf("%s is another one when it is compressed: %v", m[1], err)
		}
	}
	t.Logf("%d bytes", sum)
	if sum > most {
		t.Errorf("the first page needs %d bytes, more than %d", sum, most)
	}
	if bytes.Contains(html, []byte("<style")) || regexp.MustCompile(`<script[^>]*>[^<]`).Match(html) || bytes.Contains(html, []byte(" style=")) {
		t.Errorf("the page has something inline, which its policy refuses: %s", html)
	}
}

func TestServe(t *testing.T) {
	first := ask(t, "/ui/index.css", "localhost")
	if first.Header.Get("Content-Type") != "text/css; charset=utf-8" || len(body(t, first)) == 0 {
		t.Errorf("%s, %v", first.Status, first.Header)
	}
	if again := ask(t, "/ui/index.css", "localhost", "If-None-Match", first.Header.Get("ETag")); again.StatusCode != http.StatusNotModified || len(body(t, again)) > 0 {
		t.Errorf("asked again: %s", again.Status)
	}
	for _, path := range []string{"/ui/nothing.js", "/ui/../dashboard.go", "/ui/"} {
		if r := ask(t, path, "localhost"); r.StatusCode != http.StatusNotFound || len(body(t, r)) == 0 {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
}

// TestPolicy: scripts come from the dashboard's own files, never from ports of
// sandboxes below /p/, and a strange host adds nothing.
func TestPolicy(t *testing.T) {
	for host, own := range map[string]string{
		"localhost:8080":          "script-src localhost:8080/ui/;",
		"api.example.com":         "script-src api.example.com/ui/;",
		"[::1]:8080":              "script-src 'self';",
		"a; script-src *":         "script-src 'self';",
		"a 'unsafe-inline'":       "script-src 'self';",
		"a\r\nX-Header: injected": "script-src 'self';",
	} {
		policy := ask(t, "/", host).Header.Get("Content-Security-Policy") //nolint:bodyclose // it is in memory
		if !strings.Contains(policy, own) || strings.Count(policy, "script-src") != 1 || strings.Contains(policy, "unsafe") ||
			!strings.Contains(policy, "frame-ancestors 'none'") || !strings.HasPrefix(policy, "default-src 'none'") {
			t.Errorf("for %q: %s", host, policy)
		}
	}
}
