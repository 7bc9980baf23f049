package up_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/cli/up"
	"wrenn.dev/internal/pgserver"
)

// patience bounds a test: making a database is slow on a busy machine.
const patience = 2 * time.Minute

// TestMain lets the test binary play the host agent.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := playAgent(os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // it is a program
		}
		return
	}
	m.Run()
}

// playAgent accepts connections on the configured address until it is stopped.
func playAgent(config string) error {
	if os.Getenv("WRENN_TEST_AGENT") == "broken" {
		return errors.New("the agent's reason")
	}
	var c struct {
		Run    string `toml:"run"`
		Listen string `toml:"listen"`
	}
	text, err := os.ReadFile(config)
	if err == nil {
		err = toml.Unmarshal(text, &c)
	}
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	path := strings.TrimPrefix(c.Listen, "unix:")
	_ = os.Remove(path)
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	pids, err := os.OpenFile(filepath.Join(c.Run, "pids"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	fmt.Fprintln(pids, os.Getpid())
	<-stop
	return nil
}

// said collects progress.
type said struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (s *said) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.WriteString(line + "\n")
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// config returns the configuration of a run in a new directory that the database's user can enter.
func config(t *testing.T) (up.Config, *said) {
	t.Helper()
	if _, err := pgserver.Find(t.Context()); err != nil {
		if os.Getenv("WRENN_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "up-") //nolint:usetesting // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &said{}
	return up.Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Listen: "127.0.0.1:0", Team: "default", Destroy: true,
		Agent: up.AgentConfig{Program: program}, Say: s.say,
	}, s
}

func TestRun(t *testing.T) {
	cfg, s := config(t)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	var secret string
	for range 2 { // the second start uses the data of the first
		ctx, stop := context.WithCancel(ctx)
		err := up.Run(ctx, cfg, func(ctx context.Context, r *up.Running) error {
			defer stop()
			got, err := r.Key(ctx, secret, "test")
			if err != nil {
				return err
			}
			if secret != "" && got != secret {
				t.Error("a valid key was replaced")
			}
			secret = got
			c, err := client.New(client.Config{URL: r.URL, Key: secret})
			if err != nil {
				return err
			}
			keys, err := c.Keys(ctx)
			if err == nil && len(keys) != 1 {
				t.Errorf("the team has %d keys, want the one", len(keys))
			}
			return err
		})
		if err != nil {
			t.Fatalf("Run() = %v\n%s", err, s)
		}
	}
}

func TestAgentComesBack(t *testing.T) {
	cfg, s := config(t)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	pids := func() []string {
		text, _ := os.ReadFile(filepath.Join(cfg.RunDir, "pids")) // not there yet
		return strings.Fields(string(text))
	}
	err := up.Run(ctx, cfg, func(ctx context.Context, _ *up.Running) error {
		defer stop()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		killed := false
		for len(pids()) < 2 {
			if first := pids(); len(first) == 1 && !killed {
				var pid int
				if _, err := fmt.Sscan(first[0], &pid); err != nil {
					return err
				}
				killed = true
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					return err
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return errors.New("no second agent came")
			}
		}
		return nil
	})
	if err != nil || !strings.Contains(s.String(), "is started again") {
		t.Errorf("Run() = %v\n%s", err, s)
	}
}

func TestDatabaseComesBack(t *testing.T) {
	cfg, s := config(t)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	err := up.Run(ctx, cfg, func(ctx context.Context, r *up.Running) error {
		defer stop()
		secret, err := r.Key(ctx, "", "test")
		if err != nil {
			return err
		}
		c, err := client.New(client.Config{URL: r.URL, Key: secret})
		if err != nil {
			return err
		}
		text, err := os.ReadFile(filepath.Join(cfg.StateDir, "postgres", "data", "postmaster.pid"))
		if err != nil {
			return err
		}
		var pid int
		if _, err := fmt.Sscan(string(text), &pid); err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			if _, err := c.Keys(ctx); err == nil && strings.Contains(s.String(), "the database ended") {
				return nil
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return errors.New("the database did not come back")
			}
		}
	})
	if err != nil {
		t.Errorf("Run() = %v\n%s", err, s)
	}
}

func TestRunSaysWhyNot(t *testing.T) {
	never := func(context.Context, *up.Running) error { return errors.New("it is ready, though it cannot be") }
	run := func(t *testing.T, cfg up.Config) error {
		t.Helper()
		ctx, stop := context.WithTimeout(t.Context(), patience)
		defer stop()
		return up.Run(ctx, cfg, never)
	}
	t.Run("the agent ends", func(t *testing.T) {
		cfg, _ := config(t)
		t.Setenv("WRENN_TEST_AGENT", "broken")
		if err := run(t, cfg); err == nil || !strings.Contains(err.Error(), "the agent's reason") {
			t.Errorf("Run() = %v", err)
		}
	})
	t.Run("the port is taken", func(t *testing.T) {
		cfg, _ := config(t)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		cfg.Listen = l.Addr().String()
		if err := run(t, cfg); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "--listen") {
			t.Errorf("Run() = %v", err)
		}
	})
	t.Run("without TLS beyond this machine", func(t *testing.T) {
		cfg, _ := config(t)
		cfg.Listen = "0.0.0.0:0"
		if err := run(t, cfg); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "--plain-http") {
			t.Errorf("Run() = %v", err)
		}
	})
	t.Run("nobody may enter", func(t *testing.T) {
		cfg, _ := config(t)
		if err := os.Chmod(filepath.Dir(cfg.StateDir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := run(t, cfg); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "chmod o+x") {
			t.Errorf("Run() = %v", err)
		}
	})
}

// A domain is served by TLS that clients trust when they trust the machine's
// authority, by HTTP/2: the API by one name, sandboxes by all others.
func TestDomain(t *testing.T) {
	cfg, s := config(t)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Domain = wrenn.Domain{Name: "sandbox.localhost", Port: uint16(l.Addr().(*net.TCPAddr).Port)}
	l.Close()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	err = up.Run(ctx, cfg, func(ctx context.Context, r *up.Running) error {
		defer stop()
		authority, err := os.ReadFile(r.Domain.Authority)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(authority)
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				_, port, _ := net.SplitHostPort(address)
				return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+port)
			},
		}
		defer transport.CloseIdleConnections()
		for url, want := range map[string]string{
			r.Domain.APIURL() + "/openapi.yaml":                          "openapi:",
			"https://8080-iaaaaaaaaaaaaaaaaaaaa." + r.Domain.String():    `"message":"The sandbox was not found"`,
			r.Domain.APIURL() + "/v2/sandboxes":                          `"code":401`,
			"https://49983-iaaaaaaaaaaaaaaaaaaaa-x." + r.Domain.String(): `"code":404`,
		} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.ProtoMajor != 2 || !strings.Contains(string(text), want) {
				t.Errorf("%s: %s %d %.200s, %v; want HTTP/2 with %s", url, resp.Proto, resp.StatusCode, text, err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("Run() = %v\n%s", err, s)
	}
}
