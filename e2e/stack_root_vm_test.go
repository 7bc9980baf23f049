//go:build root && vm

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/host"
	"wrenn.dev/internal/pgserver"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// stack runs all of Wrenn as three processes, each of which a test may kill.
type stack struct {
	agent        *agent
	database     *pgserver.Server
	databaseDir  string
	controlPlane *child
	config       string // of the control plane
	url, key     string
	api          *client.Client
}

// newStack starts all three. They stop at the end of the test, and must leave
// nothing. Two stacks at the same time need different names and addresses of slots.
func newStack(t *testing.T, prefix, addresses string) *stack {
	t.Helper()
	s := &stack{agent: newAgentOn(t, prefix, addresses)}
	s.config = filepath.Join(s.agent.dir, "control-plane.toml")
	dir, err := os.MkdirTemp("", "wdb") //nolint:usetesting // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s.databaseDir = dir
	s.startDatabase(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := s.database.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	s.agent.start(t)
	s.configure(t)
	s.startControlPlane(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the control plane printed:\n%s", s.controlPlane.out)
		}
		_ = s.controlPlane.cmd.Process.Kill() // it may have ended
		<-s.controlPlane.ended
	})
	return s
}

// configure writes the control plane's file, and makes the schema and a key.
func (s *stack) configure(t *testing.T) {
	t.Helper()
	if err := s.database.EnsureDatabase(t.Context(), "wrenn"); err != nil {
		t.Fatal(err)
	}
	// The port stays the same across restarts; on this address no other program takes it while the control plane is down.
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.222.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	secrets := filepath.Join(s.agent.dir, "secrets.key")
	if err := vault.Create(secrets); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("listen = %q\nmetrics_listen = \"\"\n[log]\nlevel = \"debug\"\n[database]\nurl = %q\n[secrets]\nkey_files = [%q]\n[[host]]\nid = \"h1\"\nurl = %q\n",
		address, s.database.URL("wrenn"), secrets, "unix://"+filepath.Join(s.agent.dir, "run", "agent.sock"))
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"migrate"}, {"key", "team", "test"}} {
		out, err := s.command(t, args...).Output()
		if err != nil {
			t.Fatalf("control-plane %q: %v", args, err)
		}
		s.key = strings.TrimSpace(string(out))
	}
	s.url = "http://" + address
	if s.api, err = client.New(client.Config{URL: s.url, Key: s.key}); err != nil {
		t.Fatal(err)
	}
}

func (s *stack) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := filepath.Abs("../bin/control-plane")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"-config", s.config}, args...)...)
	cmd.Stderr = t.Output()
	return cmd
}

// startControlPlane starts it and returns when it accepts requests.
func (s *stack) startControlPlane(t *testing.T) {
	t.Helper()
	s.controlPlane = startChild(t, s.command(t))
	s.ready(t)
}

func (s *stack) killControlPlane(t *testing.T) {
	t.Helper()
	s.controlPlane.stop(t, syscall.SIGKILL)
}

// ready waits until the control plane has its database.
func (s *stack) ready(t *testing.T) {
	t.Helper()
	testkit.WaitNoError(t, "the control plane is ready", func() error {
		select {
		case <-s.controlPlane.ended:
			t.Fatalf("the control plane ended; it printed:\n%s", s.controlPlane.out)
		default:
		}
		return s.api.Ready(t.Context())
	})
}

// startDatabase starts PostgreSQL on its existing data.
func (s *stack) startDatabase(t *testing.T) {
	t.Helper()
	var err error
	if s.database, err = pgserver.Start(context.WithoutCancel(t.Context()), pgserver.Config{Dir: s.databaseDir, DieWithParent: true}); err != nil {
		t.Fatal(err)
	}
}

// killDatabase kills the postmaster and returns when its children have ended too
// and no query is answered any more.
func (s *stack) killDatabase(t *testing.T) {
	t.Helper()
	data := filepath.Join(s.databaseDir, "data")
	content, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(first)
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
	<-s.database.Done()
	testkit.WaitNoError(t, "the database's processes are gone", func() error {
		cwds, err := filepath.Glob("/proc/[0-9]*/cwd")
		for _, link := range cwds {
			if cwd, _ := os.Readlink(link); cwd == data { // an ended process has none
				err = errors.Join(err, fmt.Errorf("%s exists", link))
			}
		}
		return err
	})
}

// list returns the sandboxes that have the mark.
func (s *stack) list(t *testing.T, mark string) ([]client.Sandbox, error) {
	t.Helper()
	var all []client.Sandbox
	for sb, err := range s.api.Sandboxes(t.Context(), client.ListSandboxes{Metadata: map[string]string{"mark": mark}}) {
		if err != nil {
			return nil, err
		}
		all = append(all, sb)
	}
	return all, nil
}

func (s *stack) create(t *testing.T, mark string) (*client.Sandbox, error) {
	t.Helper()
	return s.api.CreateSandbox(t.Context(), client.CreateSandbox{MemoryMB: 128, Timeout: time.Hour, Metadata: map[string]string{"mark": mark}})
}

// made is create, once the host answers: it is left out for a moment when its agent took
// long to start again.
func (s *stack) made(t *testing.T, mark string) (sb *client.Sandbox) {
	t.Helper()
	testkit.WaitNoError(t, "a sandbox can be created", func() (err error) {
		if sb, err = s.create(t, mark); err != nil && client.CodeOf(err) != client.Unavailable {
			t.Fatal(err)
		}
		return err
	})
	return sb
}

// usable returns an error unless a command runs in the sandbox and its output arrives.
func (s *stack) usable(t *testing.T, id string) error {
	t.Helper()
	r, err := s.api.Exec(t.Context(), id, client.Command{Cmd: "/bin/sh", Args: []string{"-c", "echo $((40+2))"}})
	if err == nil && string(r.Stdout) != "42\n" {
		err = fmt.Errorf("the command printed %q", r.Stdout)
	}
	return err
}

// clean deletes the sandboxes with the mark, stops the agent, and checks that
// nothing is left on the host. Then it starts the agent again.
func (s *stack) clean(t *testing.T, mark string) {
	t.Helper()
	all, err := s.list(t, mark)
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range all {
		if err := s.api.DeleteSandbox(t.Context(), sb.ID); err != nil {
			t.Errorf("delete %s: %v", sb.ID, err)
		}
	}
	testkit.WaitNoError(t, "the host has no sandbox", func() error {
		inv, err := s.agent.rpc.ListSandboxes(t.Context(), &pb.ListSandboxesRequest{})
		if err == nil && len(inv.GetSandboxes()) > 0 {
			err = fmt.Errorf("it has %v", inv.GetSandboxes())
		}
		return err
	})
	s.agent.stop(t, syscall.SIGTERM)
	if left := s.leftovers(t); len(left) > 0 {
		t.Errorf("left on the host:\n%s", strings.Join(left, "\n"))
	}
	s.agent.start(t)
}

// leftovers returns what machines have left on a host whose agent has stopped.
func (s *stack) leftovers(t *testing.T) []string {
	t.Helper()
	dir := s.agent.dir
	left, err := host.Leftovers(filepath.Join(dir, "run"), s.agent.prefix)
	if err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"state/sandboxes/*", "state/store/sandboxes/*"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, files...)
	}
	for _, process := range processes(t, dir) {
		if !strings.Contains(process, s.config) { // the control plane's own
			left = append(left, process)
		}
	}
	return left
}

// unavailable returns nil when err is that of an unreachable part, with Retry-After.
func unavailable(err error) error {
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != client.Unavailable || e.Status != 503 || e.RetryAfter <= 0 {
		return fmt.Errorf("got %w, want 503 with Retry-After", err)
	}
	return nil
}
