package mcpserver

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// tools returns those of a server, by name.
func tools(t *testing.T, cfg Config) map[string]*mcp.Tool {
	t.Helper()
	s, err := New(cfg)
	testkit.Must(t, err)
	here, there := mcp.NewInMemoryTransports()
	_, err = s.mcp.Connect(t.Context(), there, nil)
	testkit.Must(t, err)
	session, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), here, nil)
	testkit.Must(t, err)
	defer session.Close()
	all := map[string]*mcp.Tool{}
	for tool, err := range session.Tools(t.Context(), nil) {
		testkit.Must(t, err)
		all[tool.Name] = tool
	}
	return all
}

// TestProgress has a call that ends when the client was told that it goes on.
func TestProgress(t *testing.T) {
	s, err := New(Config{Client: &client.Client{}})
	testkit.Must(t, err)
	s.beat = time.Millisecond
	told := make(chan struct{})
	testkit.Must(t, add(s, tool{name: "wait", title: "Wait"}, func(ctx context.Context, _ call, _ noInput) (destroyOutput, error) {
		select {
		case <-told:
			return destroyOutput{}, nil
		case <-ctx.Done():
			return destroyOutput{}, ctx.Err()
		}
	}))
	here, there := mcp.NewInMemoryTransports()
	_, err = s.mcp.Connect(t.Context(), there, nil)
	testkit.Must(t, err)
	var once sync.Once
	session, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
			if r.Params.Message == "Wait" {
				once.Do(func() { close(told) })
			}
		},
	}).Connect(t.Context(), here, nil)
	testkit.Must(t, err)
	defer session.Close()
	params := &mcp.CallToolParams{Name: "wait", Arguments: map[string]any{}}
	params.SetProgressToken("p")
	if result, err := session.CallTool(t.Context(), params); err != nil || result.IsError {
		t.Errorf("%+v, %v", result, err)
	}
}

func names(all map[string]*mcp.Tool) (names []string) {
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestOffered compares what is offered with what the user allowed.
func TestOffered(t *testing.T) {
	reading := []string{"expose_port", "get_sandbox", "list_checkpoints", "list_files", "list_sandboxes", "list_templates", "read_file", "read_output"}
	if diff := cmp.Diff(reading, names(tools(t, Config{ReadOnly: true}))); diff != "" {
		t.Errorf("read-only: %s", diff)
	}
	bound := tools(t, Config{Sandbox: "iabcdefghijklmnopqrst"})
	for _, name := range []string{"create_sandbox", "list_sandboxes", "list_templates", "fork_sandbox", "branch_from_checkpoint", "destroy_sandbox", "set_network"} {
		if bound[name] != nil {
			t.Errorf("a server of one sandbox offers %s", name)
		}
	}
	for name, tool := range bound {
		if properties(tool.InputSchema)[argumentSandbox] != nil {
			t.Errorf("%s of a server of one sandbox asks which", name)
		}
	}
	for name, tool := range tools(t, Config{}) {
		if len(tool.Description) < 60 || tool.OutputSchema == nil || tool.Annotations == nil || tool.Title == "" {
			t.Errorf("%s: %+v", name, tool)
		}
		if tool.Annotations.ReadOnlyHint != slices.Contains(reading, name) {
			t.Errorf("%s: readOnlyHint is %v", name, tool.Annotations.ReadOnlyHint)
		}
		for argument, schema := range properties(tool.InputSchema) {
			if schema.(map[string]any)["description"] == nil {
				t.Errorf("%s: %s has no description", name, argument)
			}
		}
	}
}

func properties(schema any) map[string]any {
	all, _ := schema.(map[string]any)["properties"].(map[string]any) // none without arguments
	return all
}

func TestNewRefuses(t *testing.T) {
	for _, d := range []time.Duration{time.Second, -1, 25 * time.Hour} {
		if _, err := New(Config{Timeout: d}); err == nil {
			t.Errorf("a timeout of %v is accepted", d)
		}
	}
	s, err := New(Config{})
	testkit.Must(t, err)
	err = add(s, tool{name: "x", bounds: bounds{"absent": {}}}, func(context.Context, call, target) (destroyOutput, error) { return destroyOutput{}, nil })
	if err == nil {
		t.Error("a bound of no argument is accepted")
	}
}

func TestClip(t *testing.T) {
	for _, c := range []struct {
		limit  int
		pieces []string
		want   string
		cut    int64
	}{
		{8, []string{"1234", "5678"}, "12345678", 0},
		{8, []string{"12345678", "9"}, "1234\n[... 1 bytes cut ...]\n6789", 1},
		{8, []string{"123456789012"}, "1234\n[... 4 bytes cut ...]\n9012", 4},
		{8, []string{strings.Repeat("x", 100), "a", "b", "c", "d"}, "xxxx\n[... 96 bytes cut ...]\nabcd", 96},
		{8, []string{"123ü", "78", "ü012"}, "123\n[... 6 bytes cut ...]\n012", 6},
		{8, []string{"\xff12"}, "\uFFFD12", 0},
	} {
		w := newClip(c.limit)
		for _, p := range c.pieces {
			_, _ = w.Write([]byte(p))
		}
		if got, cut := w.text(); got != c.want || cut != c.cut {
			t.Errorf("%q: %q, %d cut; want %q, %d", c.pieces, got, cut, c.want, c.cut)
		}
	}
}

func TestParseOutput(t *testing.T) {
	if got, err := parseOutput([]byte("10 4 137\nab\n")); err != nil || got.TotalBytes != 10 || got.Offset != 4 || *got.ExitCode != 137 || got.Output != "ab\n" || got.NextOffset != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "1\n", "a b\n", "1 b\n", "1 2 c\n", "1 2 3 4\n"} {
		if _, err := parseOutput([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// TestAdvice needs each code to be one of the SDK's.
func TestAdvice(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&client.Error{Code: client.NotFound, Message: "there is no sandbox i1", Status: 404}, "list_sandboxes"},
		{&client.Error{Code: client.Unavailable, Message: "no connection"}, "wrenn up"},
		{&client.Error{Code: client.Unavailable, Message: "x", Status: 503, RetryAfter: time.Second}, "Repeat after 1s"},
		{&client.Error{Code: client.Internal, Message: "x", RequestID: "r1"}, "request r1"},
		{&client.Error{Code: client.InvalidState, Message: "the sandbox is paused"}, "resume_sandbox"},
	} {
		if got := advise(t.Context(), c.err).Error(); !strings.Contains(got, c.want) || !strings.Contains(got, c.err.Error()) {
			t.Errorf("%q lacks %q", got, c.want)
		}
	}
	if got := advise(t.Context(), &client.Error{Message: "\x1b[31m" + strings.Repeat("x", 1<<20)}).Error(); len(got) > 2*maxError || strings.Contains(got, "\x1b") {
		t.Errorf("%d bytes: %.20q", len(got), got)
	}
}

// TestGuard has requests of pages and by names, to a server whose control plane does not answer.
func TestGuard(t *testing.T) {
	s, err := New(Config{})
	testkit.Must(t, err)
	handler := s.Handler(HTTPConfig{URL: "http://127.0.0.1:1", Hosts: []string{"mcp.example.com"}})
	for _, c := range []struct {
		host, origin string
		want         int
	}{
		{"127.0.0.1:8080", "", 401},
		{"[::1]:8080", "", 401},
		{"localhost", "http://localhost:3000", 401},
		{"mcp.example.com", "https://mcp.example.com", 401},
		{"MCP.example.com:443", "http://127.0.0.1:3000", 401},
		{"evil.example", "http://evil.example", 421},
		{"127.0.0.1", "http://evil.example", 403},
		{"127.0.0.1", "http://1.2.3.4", 403},
		{"127.0.0.1", "null", 403},
	} {
		r := httptest.NewRequest(http.MethodPost, Path, nil)
		r.Host = c.host
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("host %s, origin %s: %d, want %d: %s", c.host, c.origin, w.Code, c.want, w.Body)
		}
	}
}
