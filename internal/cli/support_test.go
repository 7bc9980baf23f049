package cli

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
)

// TestSupportBundle looks for secrets in the bundle of a machine that has some everywhere.
func TestSupportBundle(t *testing.T) {
	const secret = "S3CRET"
	state, home := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		testkit.Must(t, os.MkdirAll(filepath.Dir(name), 0o700))
		testkit.Must(t, os.WriteFile(name, []byte(text), 0o600))
	}
	write(filepath.Join(home, ".config", "wrenn", "config.toml"), "url = 'http://127.0.0.1:1'\nkey = 'e2b_"+secret+"'\n")
	write(filepath.Join(state, "host-agent.toml"), "listen = 'unix:/run/x'\n[store]\nsecret_key = '"+secret+"'\n")
	write(filepath.Join(state, "logs", "control-plane.log"), "msg=started\nurl=postgres://u:"+secret+"@h/d\n")
	write(filepath.Join(state, "logs", "host-agent.log"), "msg=\"agent ready\"\nAuthorization: Bearer "+secret+"\n")
	metrics := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = w.Write([]byte("wrenn_sandboxes 1\n"))
	}))
	t.Cleanup(metrics.Close)
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	environ := map[string]string{"HOME": home, "WRENN_API_KEY": "e2b_" + secret}
	args := []string{"support-bundle", "--state", state, "--file", file, "--metrics", metrics.URL, "--listen", testkit.FreeAddress(t)}
	if got := invoke(t, strings.NewReader(""), environ, args...); got.code != 0 || got.out != file+"\n" || got.err != "" {
		t.Fatalf("%+v", got)
	}
	text, err := exec.CommandContext(t.Context(), "tar", "xzOf", file).Output()
	testkit.Must(t, err)
	if bytes.Contains(text, []byte(secret)) {
		t.Errorf("the bundle has a secret:\n%s", text)
	}
	for _, part := range []string{`"client"`, `"postgresql"`, "unix:/run/x", "msg=started", "agent ready", "wrenn_sandboxes 1", "MemTotal"} {
		if !bytes.Contains(text, []byte(part)) {
			t.Errorf("the bundle lacks %s", part)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if got := invoke(t, strings.NewReader(""), environ, args...); got.code != 1 || !strings.Contains(got.err, "file exists") {
		t.Errorf("over an existing file: %+v", got)
	}
}
