//go:build root && vm

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"wrenn.dev/internal/testkit"
)

// testPorts reaches a web server that listens only on the loopback address of a
// sandbox: by its URL, by a host name, and by port-forward.
func testPorts(t *testing.T, e *everything, id string) {
	t.Helper()
	const port = 8000
	url := strings.TrimSpace(e.must(t, nil, "sandbox", "port", id, fmt.Sprint(port)))
	if status, body := fetch(t, url, ""); status != http.StatusBadGateway || !strings.Contains(body, "port is not open") {
		t.Errorf("before a program listens: %d %s", status, body)
	}
	e.must(t, nil, "sandbox", "exec", id, "--", "sh", "-c",
		"mkdir -p /srv/www && echo it works > /srv/www/index.html && cd /srv/www && nohup python3 -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 &")
	testkit.WaitNoError(t, "the web server answers", func() error {
		if status, body := fetch(t, url, ""); status != http.StatusOK || body != "it works\n" {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	base := strings.TrimSuffix(url, fmt.Sprintf("/p/%s/%d/", id, port))
	if status, body := fetch(t, base+"/index.html", fmt.Sprintf("%d-%s.sandbox.localhost", port, id)); status != http.StatusOK || body != "it works\n" {
		t.Errorf("by a host name: %d %s", status, body)
	}
	if status, _ := fetch(t, fmt.Sprintf("%s/p/%s/49983/envs", base, id), ""); status != http.StatusUnauthorized {
		t.Errorf("envd answers %d without a token", status)
	}
	const inside = "import urllib.request, urllib.error\ntry: urllib.request.urlopen('http://127.0.0.1:49983/envs'); print('open')\nexcept urllib.error.HTTPError as e: print(e.code)"
	if got := e.must(t, nil, "sandbox", "exec", id, "--", "python3", "-c", inside); strings.TrimSpace(got) != "401" {
		t.Errorf("a program in the sandbox gets %q of envd without a token, want 401", got)
	}
	forward := startChild(t, e.command("port-forward", id, fmt.Sprintf("0:%d", port)))
	if !forward.out.wait("->", patience) {
		t.Fatalf("port-forward prints %q", forward.out)
	}
	address := regexp.MustCompile(`(\S+) ->`).FindStringSubmatch(forward.out.String())[1]
	if status, body := fetch(t, "http://"+address, ""); status != http.StatusOK || body != "it works\n" {
		t.Errorf("by port-forward: %d %s", status, body)
	}
	forward.stop(t, syscall.SIGINT)
	if code := forward.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("port-forward ends with %d: %s", code, forward.out)
	}
	cut := startChild(t, e.command("port-forward", id, "0:49983"))
	if !cut.out.wait("->", patience) {
		t.Fatalf("port-forward prints %q", cut.out)
	}
	open, err := net.Dial("tcp", regexp.MustCompile(`(\S+) ->`).FindStringSubmatch(cut.out.String())[1])
	testkit.Must(t, err)
	defer open.Close()
	_, err = io.WriteString(open, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
	testkit.Must(t, err)
	_, err = open.Read(make([]byte, 1)) // the connection stays
	testkit.Must(t, err)
	e.must(t, nil, "sandbox", "pause", id)
	if !cut.out.wait("the sandbox was paused: resume it", patience) {
		t.Errorf("a connection that the pause cut: port-forward prints %q", cut.out)
	}
	cut.stop(t, syscall.SIGINT)
	if status, body := fetch(t, url, ""); status != http.StatusBadGateway || !strings.Contains(body, "The sandbox was not found") {
		t.Errorf("paused: %d %s", status, body)
	}
	e.must(t, nil, "sandbox", "resume", id)
	if status, body := fetch(t, url, ""); status != http.StatusOK || body != "it works\n" {
		t.Errorf("resumed: %d %s", status, body)
	}
}

// fetch sends a request on a new connection. A status of 0 means that there was no response.
func fetch(t *testing.T, url, host string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	testkit.Must(t, err)
	req.Host, req.Close = host, true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	return resp.StatusCode, string(text)
}
