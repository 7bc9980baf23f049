package cli

import (
	"strings"
	"testing"
)

// TestMCPRefuses has command lines that would be unsafe, or mean nothing.
func TestMCPRefuses(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--listen 0.0.0.0:7337", "--plain-http"},
		{"--listen example.com:7337", "--plain-http"},
		{"--listen 7337", "ADDRESS:PORT"},
		{"--listen :0 --destroy", "--destroy is not for --listen"},
		{"--host example.com", "need --listen"},
		{"--plain-http", "need --listen"},
		{"--timeout 1s", "1m to 24h"},
		{"--timeout 25h --listen :0", "1m to 24h"},
	} {
		environ := map[string]string{"WRENN_API_KEY": "k", "WRENN_API_URL": "http://127.0.0.1:1", "HOME": t.TempDir()}
		got := invoke(t, strings.NewReader(""), environ, append([]string{"mcp"}, strings.Fields(c.args)...)...)
		if got.code != 2 || !strings.Contains(got.err, c.want) || got.out != "" {
			t.Errorf("%s: %+v, want %q", c.args, got, c.want)
		}
	}
}
