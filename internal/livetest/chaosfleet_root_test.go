//go:build root

package livetest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/child"
	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/host/fakehost"
	"wrenn.dev/internal/host/member"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/livetest"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// plane is a control plane in its own process.
type plane struct {
	cfg      controlplane.Config
	api      *client.Client
	process  *child.Process
	database *testkit.Link
}

func (p *plane) start(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	testkit.Must(t, err)
	raw, err := json.Marshal(p.cfg)
	testkit.Must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), planeConfig+"="+string(raw))
	cmd.Stderr = t.Output()
	p.process, err = child.Start(cmd)
	testkit.Must(t, err)
}

// kill ends the process as a crash does.
func (p *plane) kill(t *testing.T) {
	t.Helper()
	testkit.Must(t, p.process.Kill())
}

// chaosHost is a host whose agent is a process.
type chaosHost struct {
	*fakehost.Host
	id      string
	control *testkit.Link // by which control planes reach it
	store   *testkit.Link // by which it reaches the snapshot store
}

// fleet is all that the faults hit.
type fleet struct {
	planes  []*plane
	hosts   []*chaosHost
	made    int // hosts so far
	stopDB  func()
	startDB func()
	store   *objectstest.Server
	users   []*user

	// calm is held for reading during a call of a user and during a drain, and for writing
	// while a host is lost.
	calm sync.RWMutex
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	database, stopDB, startDB := pgtest.Server(t)
	f := newFleetOn(t, database, linkDatabase)
	f.stopDB, f.startDB = stopDB, startDB
	return f
}

// newFleetOn is newFleet on a database of the caller. Prepare is called with each control
// plane before it starts.
func newFleetOn(t *testing.T, database string, prepare func(*testing.T, *plane)) *fleet {
	t.Helper()
	f := &fleet{store: objectstest.StartServer(t)}
	cfg := controlplane.Defaults()
	cfg.MetricsListen = ""
	cfg.Database.URL = database
	cfg.Secrets.KeyFiles = []string{filepath.Join(t.TempDir(), "secrets.key")}
	testkit.Must(t, vault.Create(cfg.Secrets.KeyFiles[0]))
	cfg.Fleet.Authority = filepath.Join(t.TempDir(), "fleet.pem")
	testkit.Must(t, authority.Create(cfg.Fleet.Authority))
	key := livetest.MakeKey(t, cfg, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: logLevel})))
	for range planes {
		f.planes = append(f.planes, newPlane(t, cfg, key, prepare))
	}
	f.ready(t)
	for range hosts {
		f.join(t)
	}
	return f
}

// newPlane starts a control plane.
func newPlane(t *testing.T, cfg controlplane.Config, key string, prepare func(*testing.T, *plane)) *plane {
	t.Helper()
	p := &plane{cfg: cfg}
	p.cfg.Listen = testkit.FreeAddress(t)
	prepare(t, p)
	var err error
	p.api, err = client.New(client.Config{URL: "http://" + p.cfg.Listen, Key: key})
	testkit.Must(t, err)
	p.start(t)
	t.Cleanup(func() { p.kill(t) })
	return p
}

// linkDatabase has a control plane reach the database by its own link.
func linkDatabase(t *testing.T, p *plane) {
	t.Helper()
	at, err := url.Parse(p.cfg.Database.URL)
	testkit.Must(t, err)
	query := at.Query()
	dir := shortDir(t)
	const socket = ".s.PGSQL.5432"
	p.database = testkit.NewLink(t, "unix", filepath.Join(dir, socket), filepath.Join(query.Get("host"), socket))
	query.Set("host", dir)
	at.RawQuery = query.Encode()
	p.cfg.Database.URL = at.String()
}

// shortDir is for sockets: t.TempDir's names are too long for them.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ch") //nolint:usetesting // see above
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, os.RemoveAll(dir)) })
	return dir
}

// ready waits until every control plane answers and has reached the database.
func (f *fleet) ready(t *testing.T) {
	t.Helper()
	for _, p := range f.planes {
		testkit.WaitNoError(t, "a control plane is ready", func() error { return p.api.Ready(t.Context()) })
	}
}

// join makes a host and has it join.
func (f *fleet) join(t *testing.T) {
	t.Helper()
	f.made++
	h := &chaosHost{id: fmt.Sprintf("h%d", f.made)}
	address := testkit.FreeAddress(t)
	h.control = testkit.NewLink(t, "tcp", "127.0.0.1:0", address)
	h.store = testkit.NewLink(t, "tcp", "127.0.0.1:0", f.store.Address)
	cfg := fakehost.Config{
		Dir:     shortDir(t),
		Network: network.Config{Prefix: fmt.Sprintf("c%05x%02x", os.Getpid()&0xfffff, f.made), Range: netip.MustParsePrefix("10.221.0.0/24"), Max: 30},
		Store:   "s3://wrenn?insecure=true&endpoint=" + h.store.Address(), Credentials: f.store.Credentials,
		LogLevel: logLevel, Output: t.Output(),
	}
	api := f.planes[0].api
	token, err := api.CreateHostToken(t.Context(), client.CreateHostToken{Host: h.id})
	testkit.Must(t, err)
	m, err := member.Join{StateDir: filepath.Join(cfg.Dir, "member"), ControlPlane: api.URL(), Token: token.Token, Listen: address, URL: "https://" + h.control.Address()}.Do(t.Context())
	testkit.Must(t, err)
	files := m.Files()
	cfg.Listen = server.Listen{Address: address, TLS: server.TLS{Certificate: files.Certificate, Key: files.Key, ClientCA: files.CA, ClientName: "control-plane"}}
	h.Host, err = fakehost.New(cfg)
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, h.Close(context.WithoutCancel(t.Context()))) })
	testkit.Must(t, h.Start(t.Context()))
	f.hosts = append(f.hosts, h)
	testkit.WaitNoError(t, "host "+h.id+" is reached", func() error {
		at, err := api.Host(t.Context(), h.id)
		if err == nil && !at.Reachable {
			err = errors.New("not yet")
		}
		return err
	})
}

// anywhere calls a control plane after the other until one answers.
func (f *fleet) anywhere(t *testing.T, what string, call func(*client.Client) error) {
	t.Helper()
	i := 0
	testkit.WaitNoError(t, what, func() error {
		i++
		return call(f.planes[i%planes].api)
	})
}
