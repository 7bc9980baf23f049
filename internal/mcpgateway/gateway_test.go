package mcpgateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"wrenn.dev/internal/testkit"
)

// serverVariable makes the test's program a server that speaks on its standard input and
// output; the value is what its tool echo puts before its argument.
const serverVariable = "WRENN_TEST_MCP_SERVER"

// gatewayVariable makes it the gateway with places below the directory.
const gatewayVariable = "WRENN_TEST_MCP_GATEWAY"

func TestMain(m *testing.M) {
	if prefix := os.Getenv(serverVariable); prefix != "" {
		serveStdio(prefix)
		return
	}
	if dir := os.Getenv(gatewayVariable); dir != "" && len(os.Args) == 2 && os.Args[1] == serveCommand {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		_ = os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(os.Getpid())), 0o600) // endGateway fails without it
		if err := placesIn(dir).Main(ctx, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	m.Run() // its result is the exit code
}

func serveStdio(prefix string) {
	s := mcp.NewServer(&mcp.Implementation{Name: prefix, Version: "1"}, nil)
	type input struct {
		Text string `json:"text"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "echo"}, func(_ context.Context, _ *mcp.CallToolRequest, in input) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: prefix + " " + in.Text}}}, nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "end-" + prefix}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return nil, nil, syscall.Kill(os.Getpid(), syscall.SIGKILL)
	})
	s.AddPrompt(&mcp.Prompt{Name: "greet-" + prefix}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
		return &mcp.GetPromptResult{Description: "from " + prefix}, nil
	})
	s.AddResource(&mcp.Resource{URI: "test://" + prefix, Name: prefix}, func(_ context.Context, req *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: req.Params.URI, Text: "of " + prefix}}}, nil
	})
	_ = s.Run(context.Background(), &mcp.StdioTransport{}) // it ends with its input
}

// config names servers, each of which is this program.
func config(t *testing.T, names ...string) []byte {
	t.Helper()
	self, err := os.Executable()
	testkit.Must(t, err)
	all := map[string]any{}
	for _, name := range names {
		all[name] = map[string]any{"command": self, "env": map[string]string{serverVariable: name}}
	}
	text, err := json.Marshal(all)
	testkit.Must(t, err)
	return text
}

// bearer sends a token with each request.
type bearer string

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultTransport.RoundTrip(r)
}

func connect(t *testing.T, url, token string) (*mcp.ClientSession, error) {
	t.Helper()
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	return client.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: url + path, HTTPClient: &http.Client{Transport: bearer(token)}, DisableStandaloneSSE: true}, nil)
}

func text(t *testing.T, result *mcp.CallToolResult, err error) string {
	t.Helper()
	testkit.Must(t, err)
	return result.Content[0].(*mcp.TextContent).Text
}

func TestGateway(t *testing.T) {
	programs, err := parseConfig(config(t, "one", "two"), t.TempDir())
	testkit.Must(t, err)
	g, err := open(t.Context(), programs, t.Output(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	testkit.Must(t, err)
	t.Cleanup(g.close)
	server := httptest.NewServer(g.handler("secret"))
	t.Cleanup(server.Close)

	if _, err := connect(t, server.URL, "other"); err == nil {
		t.Fatal("another token was accepted")
	}
	session, err := connect(t, server.URL, "secret")
	testkit.Must(t, err)
	defer session.Close()

	tools, err := session.ListTools(t.Context(), nil)
	testkit.Must(t, err)
	var names []string
	for _, tool := range tools.Tools {
		names = append(names, tool.Name)
	}
	slices.Sort(names)
	if want := []string{"end-one", "end-two", "one_echo", "two_echo"}; !slices.Equal(names, want) {
		t.Errorf("tools are %q, want %q", names, want)
	}
	echo := func() (*mcp.CallToolResult, error) {
		return session.CallTool(t.Context(), &mcp.CallToolParams{Name: "two_echo", Arguments: map[string]any{"text": "hello"}})
	}
	result, err := echo()
	if got := text(t, result, err); got != "two hello" {
		t.Errorf("two_echo answers %q", got)
	}
	prompt, err := session.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "greet-one"})
	testkit.Must(t, err)
	if prompt.Description != "from one" {
		t.Errorf("the prompt is %q", prompt.Description)
	}
	resource, err := session.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "test://two"})
	testkit.Must(t, err)
	if resource.Contents[0].Text != "of two" {
		t.Errorf("the resource is %q", resource.Contents[0].Text)
	}
	if result, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "end-two"}); err == nil && !result.IsError {
		t.Error("a call during which the server ended succeeded")
	}
	result, err = echo()
	if got := text(t, result, err); got != "two hello" {
		t.Errorf("after the server ended, two_echo answers %q", got)
	}
}

func TestServerThatDoesNotStart(t *testing.T) {
	programs, err := parseConfig([]byte(`{"broken": {"command": "/bin/sh", "args": ["-c", "exit 4"]}}`), t.TempDir())
	testkit.Must(t, err)
	_, err = open(t.Context(), append(programs, mustParse(t, config(t, "one"))...), t.Output(), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "server broken: ") {
		t.Errorf("open() = %v, want an error of the server broken", err)
	}
}

func mustParse(t *testing.T, config []byte) []program {
	t.Helper()
	programs, err := parseConfig(config, t.TempDir())
	testkit.Must(t, err)
	return programs
}

func placesIn(dir string) Places {
	return Places{Token: filepath.Join(dir, "etc/token"), Log: filepath.Join(dir, "log"), Repositories: filepath.Join(dir, "opt"), Address: os.Getenv("WRENN_TEST_MCP_ADDRESS")}
}

// endGateway ends the gateway that runs now when the test does.
func endGateway(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	testkit.Must(t, err)
	pid, err := strconv.Atoi(string(text))
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, syscall.Kill(pid, syscall.SIGTERM)) })
}

// TestProgram starts the program as E2B's SDKs do: it returns when the gateway serves.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(gatewayVariable, dir)
	address := testkit.FreeAddress(t)
	t.Setenv("WRENN_TEST_MCP_ADDRESS", address)
	p := placesIn(dir)

	if err := p.Main(t.Context(), []string{"--config", "{}"}); err == nil || !strings.Contains(err.Error(), tokenVariable) {
		t.Errorf("without a token: %v", err)
	}
	t.Setenv(tokenVariable, "secret")
	if err := p.Main(t.Context(), []string{"--config", `{"broken": {"command": "/nonexistent"}}`}); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("with a server that does not exist: %v", err)
	}
	testkit.Must(t, p.Main(t.Context(), []string{"--config", string(config(t, "one"))}))
	endGateway(t, dir)
	token, err := os.ReadFile(p.Token)
	testkit.Must(t, err)
	session, err := connect(t, "http://"+address, string(token))
	testkit.Must(t, err)
	defer session.Close()
	result, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "hello"}})
	if got := text(t, result, err); got != "one hello" {
		t.Errorf("echo answers %q", got)
	}
	if info, err := os.Stat(p.Token); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v, %v", info, err)
	}
	if err := p.Main(t.Context(), []string{"--config", "{}"}); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second gateway: %v", err)
	}
}
