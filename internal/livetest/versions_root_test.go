//go:build root

package livetest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

// host is a fakehost in its own process. Its field names are those of its configuration.
type host struct {
	Listen   string
	Slots    int
	Labels   map[string]string
	Store    string
	StateDir string
	KeepIn   string

	cmd  *exec.Cmd
	stop io.Closer // its standard input
}

// start starts the host with the program of a build, and returns when its agent answers.
func (h *host) start(t *testing.T, b build) {
	t.Helper()
	h.KeepIn = filepath.Join(t.TempDir(), "state")
	raw, err := json.Marshal(h)
	testkit.Must(t, err)
	h.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), b.host, string(raw))
	h.cmd.Stderr = t.Output()
	h.stop, err = h.cmd.StdinPipe()
	testkit.Must(t, err)
	out, err := h.cmd.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, h.cmd.Start())
	t.Cleanup(func() { h.end(t) })
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); err != nil || line != "serves\n" {
		rest, _ := io.ReadAll(lines) // what there is
		t.Fatalf("the host printed %q, %v: %s", line, err, rest)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }() // until the process has ended
}

// end stops the agent and with it the guests. Its files are in KeepIn then. Twice is allowed.
func (h *host) end(t *testing.T) {
	t.Helper()
	if h.cmd == nil {
		return
	}
	cmd := h.cmd
	h.cmd = nil
	testkit.Must(t, h.stop.Close())
	if err := cmd.Wait(); err != nil {
		t.Errorf("the host ended: %v", err)
	}
}

// replace ends the host and starts the program of another build with its files.
func (h *host) replace(t *testing.T, b build) {
	t.Helper()
	h.end(t)
	h.StateDir = h.KeepIn
	h.start(t, b)
}

// fleetOf is a database, hosts, and what control planes of any build need to use them.
type fleetOf struct {
	config string // TOML, less the address
	hosts  map[string]*host
	key    string // of an operator
}

func newFleetOf(t *testing.T, first build) *fleetOf {
	t.Helper()
	dir, err := os.MkdirTemp("", "fleet") //nolint:usetesting // t.TempDir's names are too long for sockets
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, os.RemoveAll(dir)) })
	keys := filepath.Join(dir, "secrets.key")
	testkit.Must(t, vault.Create(keys))
	f := &fleetOf{hosts: map[string]*host{}}
	f.config = fmt.Sprintf("metrics_listen = \"\"\n[log]\nlevel = \"warn\"\n[database]\nurl = %q\n[secrets]\nkey_files = [%q]\n", pgtest.Empty(t), keys)
	for _, name := range []string{"old", "now"} {
		socket := filepath.Join(dir, name+".sock")
		f.hosts[name] = &host{Listen: "unix:" + socket, Slots: 8, Labels: map[string]string{"build": name}, Store: filepath.Join(dir, "store")}
		f.config += fmt.Sprintf("[[host]]\nid = %q\nurl = %q\n", name, "unix://"+socket)
	}
	testkit.Must(t, os.Mkdir(f.hosts["old"].Store, 0o700))
	f.operate(t, first, "migrate")
	f.key = strings.TrimSpace(f.operate(t, first, "key", "--operator", "team", "key"))
	return f
}

// operate runs a command of control-plane.
func (f *fleetOf) operate(t *testing.T, b build, args ...string) string {
	t.Helper()
	return command(t, ".", b.controlPlane, append([]string{"--config", f.file(t, "")}, args...)...)
}

// file writes the configuration of a control plane that begins with first.
func (f *fleetOf) file(t *testing.T, first string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "control-plane.toml")
	testkit.Must(t, os.WriteFile(name, []byte(first+f.config), 0o600))
	return name
}

// serve starts a control plane of a build, which ends with the test or by end.
func (f *fleetOf) serve(t *testing.T, b build) (api *client.Client, end func()) {
	t.Helper()
	address := testkit.FreeAddress(t)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, b.controlPlane, "--config", f.file(t, fmt.Sprintf("listen = %q\n", address)))
	cmd.Stderr = t.Output()
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	testkit.Must(t, cmd.Start())
	ended := false
	end = func() {
		if cancel(); !ended {
			_ = cmd.Wait() // it says that it was canceled
		}
		ended = true
	}
	t.Cleanup(end)
	api, err := client.New(client.Config{URL: "http://" + address, Key: f.key})
	testkit.Must(t, err)
	testkit.WaitNoError(t, "the control plane is ready", func() error { return api.Ready(t.Context()) })
	return api, end
}

// on makes a sandbox on the host with that label. What a control plane does not know of a
// host yet is repeated.
func on(t *testing.T, c *client.Client, label string) string {
	t.Helper()
	var id string
	testkit.WaitNoError(t, "a sandbox is made on "+label, func() error {
		sb, err := c.CreateSandbox(t.Context(), client.CreateSandbox{Requires: map[string]string{"build": label}, Timeout: client.Never})
		if err == nil {
			id = sb.ID
		}
		return err
	})
	return id
}

// says runs a command in the sandbox.
func says(t *testing.T, c *client.Client, id string) {
	t.Helper()
	got, err := c.Exec(t.Context(), id, client.Command{Cmd: "cat", User: "root", Stdin: []byte(id)})
	testkit.Must(t, err)
	if string(got.Stdout) != id {
		t.Fatalf("the command in %s: %+v", id, got)
	}
}

func pauseIt(t *testing.T, c *client.Client, id string) {
	t.Helper()
	sb, err := c.PauseSandbox(t.Context(), id)
	testkit.Must(t, err)
	if sb.State != client.Paused {
		t.Fatalf("paused: %+v", sb)
	}
}

func resumeIt(t *testing.T, c *client.Client, id string) {
	t.Helper()
	sb, err := c.ResumeSandbox(t.Context(), id)
	testkit.Must(t, err)
	if sb.State != client.Running {
		t.Fatalf("resumed: %+v", sb)
	}
	says(t, c, id)
}

// tour uses all that a sandbox can do on the host with that label: each call goes to the
// next of the control planes, which share the database.
func tour(t *testing.T, label string, planes ...*client.Client) {
	t.Helper()
	turn := 0
	next := func() *client.Client { turn++; return planes[turn%len(planes)] }
	id := on(t, next(), label)
	says(t, next(), id)
	pauseIt(t, next(), id)
	resumeIt(t, next(), id)
	made, err := next().CreateCheckpoint(t.Context(), id, "here")
	testkit.Must(t, err)
	forked, err := next().ForkSandbox(t.Context(), id, client.Fork{Count: 1})
	testkit.Must(t, err)
	if len(forked.Sandboxes) != 1 || len(forked.Errors) > 0 {
		t.Fatalf("forked: %+v", forked)
	}
	twin := forked.Sandboxes[0].ID
	says(t, next(), twin)
	_, err = next().RestoreCheckpoint(t.Context(), id, made.ID)
	testkit.Must(t, err)
	says(t, next(), id)
	both := []string{id, twin}
	for range planes {
		if found := running(t, next()); !slices.Contains(found, id) || !slices.Contains(found, twin) {
			t.Errorf("the list %v lacks one of %v", found, both)
		}
	}
	for _, id := range both {
		testkit.Must(t, next().DeleteSandbox(t.Context(), id))
		sb, err := next().Sandbox(t.Context(), id)
		testkit.Must(t, err)
		if sb.State != client.Stopped {
			t.Errorf("deleted: %+v", sb)
		}
	}
}

// running returns the ids of the team's sandboxes that run.
func running(t *testing.T, c *client.Client) []string {
	t.Helper()
	var ids []string
	for sb, err := range c.Sandboxes(t.Context(), client.ListSandboxes{}) {
		testkit.Must(t, err)
		if sb.State == client.Running {
			ids = append(ids, sb.ID)
		}
	}
	return ids
}

// stored waits until a paused sandbox is in the snapshot store.
func stored(t *testing.T, c *client.Client, id string) {
	t.Helper()
	testkit.WaitNoError(t, "the sandbox is stored", func() error {
		sb, err := c.Sandbox(t.Context(), id)
		if err == nil && sb.StoredAt.IsZero() {
			err = errors.New("not yet")
		}
		return err
	})
}

// TestVersions has control planes and host agents of the previous build and of this one
// work together in each combination, as during an upgrade: control planes first, then
// hosts. The control planes are the real program; guests are processes of this machine.
func TestVersions(t *testing.T) {
	oldBuild, nowBuild := builds(t)
	f := newFleetOf(t, oldBuild)
	f.hosts["old"].start(t, oldBuild)
	f.hosts["now"].start(t, nowBuild)

	before, endBefore := f.serve(t, oldBuild)
	tour(t, "old", before) // what the next steps compare with
	t.Log("the previous control plane, a host of this build")
	tour(t, "now", before)
	kept, saved := on(t, before, "old"), on(t, before, "old")
	checkpoint, err := before.CreateCheckpoint(t.Context(), saved, "by the previous build")
	testkit.Must(t, err)
	pauseIt(t, before, saved)

	t.Log("the previous control plane, after the migration")
	f.operate(t, nowBuild, "migrate")
	tour(t, "old", before)
	tour(t, "now", before)

	t.Log("the control plane of this build, a host of the previous one; both control planes")
	after, _ := f.serve(t, nowBuild)
	tour(t, "old", after)
	tour(t, "now", after)
	tour(t, "old", before, after)
	tour(t, "now", after, before)
	says(t, after, kept)
	pauseIt(t, after, kept)
	resumeIt(t, before, kept)

	t.Log("what a host of one build stores is fetched by one of the other")
	for _, c := range []*client.Client{before, after} {
		wanders(t, c)
	}

	t.Log("a host of the previous build gets this one")
	endBefore()
	pauseIt(t, after, kept)
	f.hosts["old"].replace(t, nowBuild)
	for _, id := range []string{kept, saved} {
		testkit.WaitNoError(t, "the sandbox resumes", func() error { _, err := after.ResumeSandbox(t.Context(), id); return err })
		says(t, after, id)
	}
	_, err = after.RestoreCheckpoint(t.Context(), saved, checkpoint.ID)
	testkit.Must(t, err)
	says(t, after, saved)
	tour(t, "old", after)
	for _, id := range []string{kept, saved} {
		testkit.Must(t, after.DeleteSandbox(t.Context(), id))
	}
}

// wanders has a sandbox that is paused and stored resume on the other host, and back.
func wanders(t *testing.T, c *client.Client) {
	t.Helper()
	only(t, c, "old")
	sb, err := c.CreateSandbox(t.Context(), client.CreateSandbox{Timeout: client.Never})
	testkit.Must(t, err)
	for _, to := range []string{"now", "old"} {
		pauseIt(t, c, sb.ID)
		stored(t, c, sb.ID)
		only(t, c, to)
		resumeIt(t, c, sb.ID)
		if why, err := c.ExplainPlacement(t.Context(), sb.ID); err != nil || why.Host != to {
			t.Errorf("it should be on %s: %+v, %v", to, why, err)
		}
	}
	testkit.Must(t, c.DeleteSandbox(t.Context(), sb.ID))
	_, err = c.UncordonHost(t.Context(), "now")
	testkit.Must(t, err)
}

// only leaves one of the two hosts open for sandboxes.
func only(t *testing.T, c *client.Client, open string) {
	t.Helper()
	for _, host := range []string{"old", "now"} {
		change := c.CordonHost
		if host == open {
			change = c.UncordonHost
		}
		_, err := change(t.Context(), host)
		testkit.Must(t, err)
	}
}
