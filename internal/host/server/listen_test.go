package server

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/certs/certstest"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/telemetry/logtest"
	"wrenn.dev/proto/gen/hostagent/v1/hostagentv1connect"
)

func TestWhereAnAgentListens(t *testing.T) {
	files := certstest.New(t).Issue(t, certstest.Want{})
	full := TLS{Certificate: files.Certificate, Key: files.Key, ClientCA: files.CA, ClientName: "control-plane"}
	broken, nameless := full, full
	broken.ClientCA, nameless.ClientName = files.Key, ""
	for _, tc := range []struct {
		listen Listen
		says   string // "" is allowed
	}{
		{Listen{Address: "unix:/run/wrenn/agent.sock"}, ""},
		{Listen{Address: "127.0.0.1:1", AnyUser: true}, ""},
		{Listen{Address: "127.0.0.1:1"}, "any_local_user"},
		{Listen{Address: "[::1]:1", AnyUser: true}, ""},
		{Listen{Address: "[::1]:1"}, "any_local_user"},
		{Listen{Address: "127.9.9.9:1", AnyUser: true}, ""},
		{Listen{Address: "127.9.9.9:1"}, "any_local_user"},
		{Listen{Address: "localhost:1", AnyUser: true}, ""},
		{Listen{Address: "localhost:1"}, "any_local_user"},
		{Listen{Address: "0.0.0.0:1", TLS: full}, ""},
		{Listen{Address: "0.0.0.0:1", TLS: broken}, files.Key},
		{Listen{Address: "0.0.0.0:1", TLS: nameless}, "client_name"},
		{Listen{Address: "0.0.0.0:1"}, "mutual TLS"},
		{Listen{Address: ":1"}, "mutual TLS"},
		{Listen{Address: "[::]:1"}, "mutual TLS"},
		{Listen{Address: "10.0.0.2:1"}, "mutual TLS"},
		{Listen{Address: "host.example:1"}, "mutual TLS"}, // its name server decides which machines can connect
		{Listen{Address: "localhost.evil:1"}, "mutual TLS"},
		{Listen{Address: "127.0.0.1:1", TLS: TLS{Key: "k"}}, "all of"},
		{Listen{Address: "unix:/a", TLS: full}, "a socket has no TLS"},
		{Listen{Address: "unix:a"}, "absolute path"},
		{Listen{Address: "unix:/" + strings.Repeat("a", 107)}, "107 bytes"},
		{Listen{Address: "nonsense"}, "use unix:/path"},
		{Listen{Address: "127.0.0.1:1", Group: "root"}, "only a unix socket"},
	} {
		t.Run(tc.listen.Address, func(t *testing.T) {
			err := tc.listen.Check()
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("Check() = %v, want %q", err, tc.says)
			}
			if err == nil {
				return
			}
			if wrenn.CodeOf(err) != wrenn.Invalid {
				t.Errorf("Check() = %v is no Invalid", err)
			}
			if l, err := tc.listen.Open(t.Context(), slog.New(slog.DiscardHandler)); err == nil {
				l.Close()
				t.Error("it listens all the same")
			}
		})
	}
}

func TestSocketPermissions(t *testing.T) {
	own, err := user.LookupGroupId(strconv.Itoa(os.Getegid()))
	if err != nil {
		t.Skip("the group of this process has no name")
	}
	for group, want := range map[string]os.FileMode{"": 0o600, own.Name: 0o660} {
		path := filepath.Join(shortDir(t), "a.sock")
		for range 2 { // the second takes the place of what a dead agent left
			l, err := Listen{Address: "unix:" + path, Group: group}.Open(t.Context(), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != want || info.Sys().(*syscall.Stat_t).Gid != uint32(os.Getegid()) {
				t.Errorf("group %q: %v, %v; want mode %o", group, info, err, want)
			}
			l.Close()
		}
	}
	path := filepath.Join(shortDir(t), "a.sock")
	if l, err := (Listen{Address: "unix:" + path, Group: "no-such-group"}).Open(t.Context(), slog.New(slog.DiscardHandler)); wrenn.CodeOf(err) != wrenn.Invalid {
		l.Close()
		t.Errorf("a group that is not there: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket without its group is left: %v", err)
	}
}

// listen serves an agent by TLS, as Serve does.
func listen(t *testing.T, files certs.Files) (address string, said *logtest.Journal) {
	t.Helper()
	said = &logtest.Journal{}
	log := slog.New(slog.NewTextHandler(said, nil))
	l, err := Listen{
		Address: "127.0.0.1:0", TLS: TLS{Certificate: files.Certificate, Key: files.Key, ClientCA: files.CA, ClientName: "control-plane"},
	}.Open(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(hostagentv1connect.NewHostAgentServiceHandler(&hosttest.Agent{}))
	server := newServer(mux, log)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close() // what Serve says counts
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String(), said
}

// client is a control plane with the certificate given, or without any.
func client(t *testing.T, address string, files certs.Files, show bool) *hostclient.Client {
	t.Helper()
	identity, err := certs.Open(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c, err := hostclient.New(hostclient.Config{
		ID: "h1", URL: "https://" + address, Deadlines: hostclient.Deadlines{Ping: time.Minute},
		TLS: func() *tls.Config {
			cfg := identity.Client("")
			if !show {
				cfg.Certificates = nil
			}
			return cfg
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestMutualTLS(t *testing.T) {
	ours, theirs := certstest.New(t), certstest.New(t)
	address, said := listen(t, ours.Issue(t, certstest.Want{Names: []string{"127.0.0.1"}}))
	want := certstest.Want{Names: []string{"control-plane"}, Client: true}
	good := ours.Issue(t, want)
	foreign := theirs.Issue(t, want)
	foreign.CA = good.CA
	late := want
	late.Until = time.Now().Add(-time.Minute)
	for _, tc := range []struct {
		name   string
		client *hostclient.Client
		says   string // the agent, in its log; what the client hears depends on who is faster
	}{
		{"the control plane", client(t, address, good, true), ""},
		{"no certificate", client(t, address, good, false), "didn't provide a certificate"},
		{"a stranger", client(t, address, foreign, true), "signed by unknown authority"},
		{"an expired one", client(t, address, ours.Issue(t, late), true), "certificate has expired"},
		{"another host", client(t, address, ours.Issue(t, certstest.Want{Names: []string{"10.0.0.3"}, Client: true}), true), "the client's certificate is for another name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tc.client.Ping(t.Context(), 0)
			if tc.says == "" && err != nil {
				t.Errorf("Ping() = %v", err)
			}
			if tc.says == "" {
				return
			}
			if wrenn.CodeOf(err) != wrenn.Unavailable {
				t.Errorf("Ping() = %v (%s), want Unavailable", err, wrenn.CodeOf(err))
			}
			said.Until(t, regexp.QuoteMeta(tc.says), nil)
		})
	}
	t.Run("a caller without TLS", func(t *testing.T) {
		resp, err := http.Get("http://" + address + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("answered %s", resp.Status)
		}
	})
}

// Streams go both ways at once over one connection of HTTP/2.
func TestStreamsOverTLS(t *testing.T) {
	ca := certstest.New(t)
	address, _ := listen(t, ca.Issue(t, certstest.Want{Names: []string{"127.0.0.1"}}))
	c := client(t, address, ca.Issue(t, certstest.Want{Names: []string{"control-plane"}, Client: true}), true)
	id := wrenn.NewSandboxID()
	if err := c.Create(t.Context(), id, wrenn.SandboxSpec{Template: "base", Size: wrenn.Size{VCPUs: 1, MemoryMiB: 512}}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	var streams sync.WaitGroup
	for range 8 {
		streams.Go(func() {
			if err := converse(t, c, id); err != nil {
				t.Error(err)
			}
		})
	}
	streams.Wait()
}

// converse sends a word when the one before has come back.
func converse(t *testing.T, c *hostclient.Client, id wrenn.SandboxID) error {
	t.Helper()
	stream, err := c.StartExec(t.Context(), id, wrenn.ExecStart{ExecCommand: wrenn.ExecCommand{Cmd: "cat"}, WantStdin: true})
	if err != nil {
		return err
	}
	defer stream.Close()
	for _, word := range []string{"", "one", "two", "three"} {
		if word != "" {
			if err := stream.SendStdin([]byte(word)); err != nil {
				return err
			}
		}
		out, err := stream.Receive()
		if err != nil {
			return err
		}
		if string(out.Stdout) != word { // the first is the pid
			t.Errorf("%q came back as %q", word, out.Stdout)
		}
	}
	if err := stream.CloseStdin(); err != nil {
		return err
	}
	if out, err := stream.Receive(); err != nil || out.Exit == nil {
		t.Errorf("the end: %+v, %v", out, err)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	return nil
}

// A control plane finds out that the machine at a host's address is another one.
func TestAHostIsToldFromAnother(t *testing.T) {
	ca := certstest.New(t)
	address, _ := listen(t, ca.Issue(t, certstest.Want{Names: []string{"10.0.0.3", "host-3"}}))
	c := client(t, address, ca.Issue(t, certstest.Want{Names: []string{"control-plane"}, Client: true}), true)
	if _, err := c.Ping(t.Context(), 0); wrenn.CodeOf(err) != wrenn.Unavailable || !strings.Contains(err.Error(), "10.0.0.3, not 127.0.0.1") {
		t.Errorf("Ping() = %v, want to hear whose certificate that is", err)
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hs") //nolint:usetesting // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
