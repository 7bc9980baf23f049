//go:build root

package cli

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"wrenn.dev/internal/mcpserver"
	"wrenn.dev/internal/testkit"
)

// TestMCP has a session over pipes, which leaves no sandbox, and one over HTTP.
func TestMCP(t *testing.T) {
	l := newLive(t)
	in, toServer := io.Pipe()
	fromServer, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Command(context.WithoutCancel(t.Context()), []string{"--url", l.environ["URL"], "mcp", "--destroy"}, Std{
			In: in, Out: out, Err: t.Output(), Environ: func(name string) string { return l.environ[name] },
		})
	}()
	session, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), &mcp.IOTransport{Reader: fromServer, Writer: toServer}, nil)
	testkit.Must(t, err)
	made, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "create_sandbox", Arguments: map[string]any{}})
	testkit.Must(t, err)
	if made.IsError {
		t.Fatalf("%+v", made)
	}
	if ids := l.output("", "sandbox", "list", "-q", "-l", mcpserver.LabelMadeBy+"="+mcpserver.MadeBy); len(ids) != len("i00000000000000000000") {
		t.Errorf("sandboxes of the session: %q", ids)
	}
	testkit.Must(t, session.Close())
	testkit.Must(t, <-ended)
	l.want(result{0, "", ""}, "", "sandbox", "list", "-q")
	l.serveMCP(t)
}

// serveMCP starts a server over HTTP, which asks for a key, and stops it.
func (l *live) serveMCP(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	printed, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := Command(ctx, []string{"--url", l.environ["URL"], "mcp", "--listen", ":0"}, Std{In: strings.NewReader(""), Out: out, Err: t.Output(), Environ: func(name string) string {
			return map[string]string{"HOME": "/nonexistent"}[name]
		}})
		out.CloseWithError(err)
		ended <- err
	}()
	line, err := bufio.NewReader(printed).ReadString('\n')
	testkit.Must(t, err)
	address := strings.TrimSpace(line)
	if !strings.HasPrefix(address, "http://127.0.0.1:") {
		t.Errorf("it listens on %s", address)
	}
	resp, err := http.Post(address, "application/json", strings.NewReader(`{}`))
	testkit.Must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a key: %s", resp.Status)
	}
	stop()
	testkit.Must(t, <-ended)
}
