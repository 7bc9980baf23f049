//go:build root

package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/budget"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/host/member"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/host/template"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/telemetry/logtest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/vmfake"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// system is everything between a client and the processes of a guest, with all
// of its logs, as loud as they get, in one.
type system struct {
	url, key string
	log      *logtest.Journal
	database string
	config   Config
	stop     func()      // may be called before the end of the test
	broken   atomic.Bool // the host cannot start machines
}

// agentBudget is less than a few commands need that print much.
const agentBudget = 64 << 20

func newSystem(t *testing.T, changes ...func(*Config)) *system {
	t.Helper()
	s := &system{log: &logtest.Journal{}}
	log := s.logger(t)
	agent := agenttest.New(t, agenttest.Config{Log: log.With(slog.String("program", "agent")), Registries: template.Registries{"127.0.0.1"}, Memory: budget.New(agentBudget, server.MaxExecMemory, "the host"), Hook: func(step vmfake.Step) error {
		if s.broken.Load() {
			return vmfake.FailAt(vmfake.StepBoot)(step)
		}
		return nil
	}})
	cfg := Defaults()
	cfg.Listen, cfg.MetricsListen = "127.0.0.1:0", ""
	s.database = pgtest.New(t)
	cfg.Database.URL = s.database + "&password=" + plant("database")
	cfg.MemoryLimitMB = 256
	cfg.Hosts = []Host{{ID: "h1", URL: agent.URL()}}
	cfg.Secrets.KeyFiles = []string{filepath.Join(t.TempDir(), "secrets.key")}
	testkit.Must(t, vault.Create(cfg.Secrets.KeyFiles[0]))
	cfg.Fleet.Authority = filepath.Join(t.TempDir(), "fleet.pem")
	testkit.Must(t, authority.Create(cfg.Fleet.Authority))
	for _, change := range changes {
		change(&cfg)
	}
	s.key = makeKey(t, cfg, log)
	s.serve(t, cfg, log)
	return s
}

func (s *system) logger(t *testing.T) *slog.Logger {
	t.Helper()
	log, err := NewLogger(s.log, Log{Level: "debug", Format: "text"})
	testkit.Must(t, err)
	return log
}

// serve runs a control plane until stop, or the end of the test.
func (s *system) serve(t *testing.T, cfg Config, log *slog.Logger) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended, ready := make(chan error, 1), make(chan Addresses, 1)
	go func() { ended <- Run(ctx, cfg, log, func(at Addresses) { ready <- at }) }()
	s.config = cfg
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case at := <-ready:
		s.url = "http://" + at.API.String()
		t.Cleanup(s.stop)
	case err := <-ended:
		cancel()
		t.Fatal(err)
	}
}

func makeKey(t *testing.T, cfg Config, log *slog.Logger) string {
	t.Helper()
	svc, closeStore, err := Open(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore()
	team, err := svc.EnsureTeam(t.Context(), "team")
	if err != nil {
		t.Fatal(err)
	}
	_, secret, err := svc.CreateKey(t.Context(), service.Caller{Team: team}, service.NewKey{Name: "key", Scopes: wrenn.OperatorScopes})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// plant makes a secret that can be found again.
func plant(what string) string { return "planted-" + what }

// TestNoLogHasASecret sends secrets by every way in, also by requests that
// fail, and looks for them in all logs.
func TestNoLogHasASecret(t *testing.T) {
	s := newSystem(t)
	c, err := client.New(client.Config{URL: s.url, Key: s.key})
	if err != nil {
		t.Fatal(err)
	}
	box := s.create(t, c)
	// As they are, in base64, and as a list of bytes.
	secrets := []string{s.key, strings.TrimPrefix(s.key, "e2b_"), "planted-", "cGxhbnRl", "112 108 97 110 116"}
	s.run(t, c, box)
	s.move(t, c, box)
	_, made, err := c.CreateKey(t.Context(), client.CreateKey{Name: "laptop"})
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, made)
	token, err := c.CreateHostToken(t.Context(), client.CreateHostToken{})
	testkit.Must(t, err)
	secrets = append(secrets, strings.Split(token.Token, ".")[2])
	_, err = member.Join{StateDir: t.TempDir(), ControlPlane: s.url, Token: token.Token}.Do(t.Context())
	testkit.Must(t, err)
	_, err = member.Join{StateDir: t.TempDir(), ControlPlane: s.url, Token: token.Token}.Do(t.Context())
	testkit.WantCode(t, err, wrenn.Unauthenticated)
	s.build(t, c)
	s.refused(t, box)
	s.store(t, c)
	s.broken.Store(true)
	if _, err := c.CreateSandbox(t.Context(), client.CreateSandbox{Env: map[string]string{"TOKEN": plant("broken-env")}}); err == nil {
		t.Error("a broken host made a sandbox")
	}
	if err := c.DeleteSandbox(t.Context(), box); err != nil {
		t.Error(err)
	}
	log := s.log.String()
	for _, line := range []string{"operation=createSandbox", "operation=exec ", "operation=execStream", "program=agent", "level=DEBUG", "call failed"} {
		if !strings.Contains(log, line) {
			t.Errorf("the log has no %q", line)
		}
	}
	for _, secret := range secrets {
		for _, line := range regexp.MustCompile("(?m)^.*"+regexp.QuoteMeta(secret)+".*$").FindAllString(log, 3) {
			t.Errorf("a secret is in the log: %s", line)
		}
	}
}

func (s *system) create(t *testing.T, c *client.Client) string {
	t.Helper()
	var box *client.Sandbox
	testkit.WaitNoError(t, "a sandbox can be created", func() (err error) {
		box, err = c.CreateSandbox(t.Context(), client.CreateSandbox{Env: map[string]string{"TOKEN": plant("sandbox-env")}})
		return err
	})
	return box.ID
}

// store sends secrets to be stored, and looks for them in the answers.
func (s *system) store(t *testing.T, c *client.Client) {
	t.Helper()
	for range 2 { // a new one, and another value
		if secret, err := c.SetSecret(t.Context(), "token", plant("secret"), nil); err != nil || strings.Contains(fmt.Sprint(secret), plant("secret")) {
			t.Errorf("stored %+v, %v", secret, err)
		}
	}
	for _, bad := range []string{"sec_", "a{b"} {
		if _, err := c.SetSecret(t.Context(), bad, plant("secret"), nil); err == nil || strings.Contains(err.Error(), plant("secret")) {
			t.Errorf("a secret of the name %s: %v", bad, err)
		}
	}
	if _, err := c.SetSecret(t.Context(), "long", strings.Repeat(plant("secret"), 4000), nil); err == nil || strings.Contains(err.Error(), plant("secret")) {
		t.Errorf("a long secret: %v", err)
	}
	if list, err := c.Secrets(t.Context()); err != nil || len(list) != 1 || strings.Contains(fmt.Sprint(list), plant("secret")) {
		t.Errorf("the list is %v, %v", list, err)
	}
}

// run sends secrets by commands.
func (s *system) run(t *testing.T, c *client.Client, box string) {
	t.Helper()
	env := map[string]string{"TOKEN": plant("command-env")}
	got, err := c.Exec(t.Context(), box, client.Command{
		Cmd: "sh", Args: []string{"-c", `cat; echo "$TOKEN"; echo "$TOKEN" >&2`, plant("argument")}, Env: env, User: "root", Stdin: []byte(plant("stdin")),
	})
	if err != nil || !strings.Contains(string(got.Stdout), plant("stdin")+plant("command-env")) {
		t.Fatalf("exec: %+v, %v", got, err)
	}
	for _, fails := range []client.Command{
		{Cmd: "/no/" + plant("program"), Env: env, User: "root"},
		{Cmd: "true", User: plant("user"), Env: env},
		{Cmd: "true", Cwd: "/" + plant("cwd"), Env: env, User: "root"},
	} {
		if _, err := c.Exec(t.Context(), box, fails); err == nil {
			t.Errorf("%+v worked", fails)
		}
	}
	late, err := c.Exec(t.Context(), box, client.Command{
		Cmd: "sleep", Args: []string{"600"}, Env: env, User: "root", Stdin: []byte(plant("late")), Timeout: time.Second,
	})
	if err != nil || late.Reason != client.EndTimeout {
		t.Errorf("a command past its timeout: %+v, %v", late, err)
	}
	stream, err := c.Start(t.Context(), box, client.Command{Cmd: "cat", Env: env, User: "root"}, client.StartOptions{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := io.WriteString(stream, plant("streamed")); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := stream.Copy(&out, io.Discard); err != nil || out.String() != plant("streamed") {
		t.Errorf("stream: %q, %v", &out, err)
	}
}

// move sends secrets by files.
func (s *system) move(t *testing.T, c *client.Client, box string) {
	t.Helper()
	name := t.TempDir() + "/" + plant("name")
	as := client.FileOptions{User: "root"}
	if err := c.WriteFile(t.Context(), box, name, strings.NewReader(plant("content")), as); err != nil {
		t.Fatal(err)
	}
	file, err := c.ReadFile(t.Context(), box, name, as)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if text, err := io.ReadAll(file); err != nil || string(text) != plant("content") {
		t.Errorf("read %q, %v", text, err)
	}
	if file, err := c.ReadFile(t.Context(), box, "/no/"+plant("file"), as); err == nil {
		file.Close()
		t.Error("a file that is not there was read")
	}
}

// build sends secrets by templates. What a registry wants goes there, and is kept nowhere.
func (s *system) build(t *testing.T, c *client.Client) {
	t.Helper()
	var asked atomic.Bool
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user == plant("registry-user") && password == plant("registry-password") {
			asked.Store(true)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="planted-realm"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(registry.Close)
	for _, b := range []client.BuildTemplate{
		{Name: "good", Env: map[string]string{"TOKEN": plant("template-env")}, StartCmd: "true " + plant("start"), ReadyCmd: "true " + plant("ready")},
		{Name: "bad", Env: map[string]string{"TOKEN": plant("template-env")}, StartCmd: "echo $TOKEN; exit 1"},
		{
			Name: "ugly", FromOCI: strings.TrimPrefix(registry.URL, "http://") + "/app:1",
			RegistryUsername: plant("registry-user"), RegistryPassword: plant("registry-password"),
		},
	} {
		g, err := c.BuildTemplate(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		done, err := c.FollowBuild(t.Context(), b.Name, g.ID, func(string) {})
		if err != nil || (done.State == client.BuildReady) != (b.Name == "good") {
			t.Errorf("build of %s: %+v, %v", b.Name, done, err)
		}
	}
	if !asked.Load() {
		t.Error("the registry did not get what it is to get")
	}
	conn, err := pgx.Connect(t.Context(), s.database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var rows string
	err = conn.QueryRow(t.Context(), "SELECT coalesce((SELECT string_agg(g::text, '') FROM template_generations g), '') || coalesce((SELECT string_agg(l::text, '') FROM template_lines l), '')").Scan(&rows)
	if err != nil || !strings.Contains(rows, plant("start")) || strings.Contains(rows, plant("registry")) {
		t.Errorf("rows, %v: %s", err, rows)
	}
}

// refused sends secrets by requests that are no good.
func (s *system) refused(t *testing.T, box string) {
	t.Helper()
	for name, r := range map[string]struct{ method, path, key, body string }{
		"build of what is not": {"POST", "/v1/templates", s.key, `{"name":"x","registry_password":"` + plant("password") + `"}`},
		"unknown key":          {"GET", "/v1/sandboxes", "e2b_" + plant("key"), ""},
		"no JSON":              {"POST", "/v1/sandboxes", s.key, `{"env": ` + plant("junk")},
		"unknown field":        {"POST", "/v1/sandboxes", s.key, `{"` + plant("field") + `": "` + plant("value") + `"}`},
		"wrong type":           {"POST", "/v1/sandboxes", s.key, `{"env": "` + plant("env-as-text") + `"}`},
		"unknown path":         {"GET", "/v1/no-such-path?key=" + plant("path"), s.key, ""}, // the path is logged
		"unknown parameter":    {"GET", "/v1/sandboxes?api_key=" + plant("parameter"), s.key, ""},
		"health":               {"GET", "/health?" + plant("query"), plant("health-key"), ""}, // logged at level debug
		"strange id":           {"GET", "/v1/sandboxes/" + plant("id"), s.key, ""},
		"input that is no base64": {
			"POST", "/v1/sandboxes/" + box + "/exec", s.key,
			fmt.Sprintf(`{"cmd":"cat","stdin":%q,"stdin_encoding":"base64"}`, plant("no base64!")),
		},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, s.url+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", r.key)
		req.Header.Set("X-Request-Id", "id with "+plant("request-id"))
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode/100 != 4 && name != "health" {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
}
