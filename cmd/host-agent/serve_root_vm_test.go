//go:build root && vm

package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/certs/certstest"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/telemetry/logtest"
)

// program is an agent as systemd starts it.
type program struct {
	cmd   *exec.Cmd
	log   *logtest.Journal
	ended chan error
}

func launch(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command("../../bin/host-agent", args...), log: &logtest.Journal{}, ended: make(chan error, 1)}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // it has ended in every test that passes
	go func() { p.ended <- p.cmd.Wait() }()
	return p
}

// until returns the first group of a line that the log gets.
func (p *program) until(t *testing.T, pattern string) string {
	t.Helper()
	return p.log.Until(t, pattern, p.ended)[1]
}

// systemd listens as the service manager does.
func systemd(t *testing.T, dir string) *net.UnixConn {
	t.Helper()
	path := filepath.Join(dir, "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return socket
}

// TestServe starts an agent as a service that other machines can reach, and
// stops it. No machine is started.
func TestServe(t *testing.T) {
	images := os.Getenv("WRENN_TEST_IMAGES")
	if images == "" {
		if os.Getenv("WRENN_CI") != "" {
			t.Fatal("WRENN_TEST_IMAGES is not set")
		}
		t.Skip("WRENN_TEST_IMAGES is not set")
	}
	dir, err := os.MkdirTemp("", "serve") //nolint:usetesting // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	ca := certstest.New(t)
	files := ca.Issue(t, certstest.Want{Names: []string{"127.0.0.1"}})
	path := filepath.Join(dir, "host-agent.toml")
	text := fmt.Sprintf(`
state = '%[1]s/state'
run = '%[1]s/run'
images = '%[2]s'
listen = '0.0.0.0:0'
metrics = '127.0.0.1:0'
tls = {certificate = '%[3]s', key = '%[4]s', client_ca = '%[5]s'}
driver = {name = 'qemu'}
network = {range = '10.221.0.0/16', prefix = 'wserve', ready = 1}
warm = {off = true}
`, dir, images, files.Certificate, files.Key, files.CA)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	manager := systemd(t, dir)
	p := launch(t, "serve", "--config", path)
	metrics := "http://" + p.until(t, `msg="agent starts" metrics=(\S+)`)
	if code, body := get(t, metrics+"/health"); code != 200 {
		t.Errorf("health before the agent is ready: %d %s", code, body)
	}
	address := p.until(t, `msg="agent ready" listen=\S*:(\d+)`)
	_ = manager.SetReadDeadline(time.Now().Add(time.Minute)) // a socket always can
	word := make([]byte, 64)
	if n, err := manager.Read(word); err != nil || string(word[:n]) != "READY=1" {
		t.Errorf("systemd heard %q, %v", word[:n], err)
	}
	if code, body := get(t, metrics+"/ready"); code != 200 {
		t.Errorf("ready: %d %s", code, body)
	}
	if code, body := get(t, metrics+"/metrics"); code != 200 || !strings.Contains(body, `wrenn_sandboxes{status="quarantined"} 0`) {
		t.Errorf("metrics: %d %s", code, body)
	}
	pingAs(t, ca, "127.0.0.1:"+address)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-p.ended; err != nil {
		t.Errorf("serve ended with %v", err)
	}
	if !strings.Contains(p.log.String(), `"agent stopped" sandboxes_left=0`) {
		t.Errorf("the log does not tell the end:\n%s", p.log)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(metrics, "http://")); err == nil {
		conn.Close()
		t.Error("the metrics' listener is still there")
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// pingAs asks the agent as a control plane does, by mutual TLS.
func pingAs(t *testing.T, ca *certstest.Authority, address string) {
	t.Helper()
	identity, err := certs.Open(ca.Issue(t, certstest.Want{Names: []string{"control-plane"}, Client: true}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c, err := hostclient.New(hostclient.Config{ID: "h1", URL: "https://" + address, TLS: func() *tls.Config { return identity.Client("") }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if info, err := c.Ping(t.Context(), 0); err != nil || info.Driver != "qemu" {
		t.Errorf("Ping() = %+v, %v", info, err)
	}
}
