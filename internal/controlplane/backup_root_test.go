//go:build root

package controlplane

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/telemetry/logtest"
	"wrenn.dev/internal/testkit"
)

// backup is what docs/backup.md has operators keep: a dump of the database, the key of
// secrets and the authority of the fleet. The snapshot store is copied by who runs it.
type backup struct{ dump, secrets, authority string }

// back copies it as docs/backup.md says, while the control plane serves.
func (s *system) back(t *testing.T) backup {
	t.Helper()
	dir := t.TempDir()
	b := backup{filepath.Join(dir, "wrenn.sql"), filepath.Join(dir, "secrets.key"), filepath.Join(dir, "fleet.pem")}
	postgresql(t, nil, "pg_dump", "--no-owner", "--no-privileges", "--file", b.dump, s.database)
	for from, to := range map[string]string{s.config.Secrets.KeyFiles[0]: b.secrets, s.config.Fleet.Authority: b.authority} {
		raw, err := os.ReadFile(from)
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(to, raw, 0o600))
	}
	return b
}

// restored returns a control plane that has nothing but the backup.
func (b backup) restored(t *testing.T, key string) *system {
	t.Helper()
	s := &system{log: &logtest.Journal{}, key: key, database: pgtest.Empty(t)}
	dump, err := os.ReadFile(b.dump)
	testkit.Must(t, err)
	postgresql(t, dump, "psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", s.database)
	cfg := Defaults()
	cfg.Listen, cfg.MetricsListen = "127.0.0.1:0", ""
	cfg.Database.URL = s.database
	cfg.Secrets.KeyFiles, cfg.Fleet.Authority = []string{b.secrets}, b.authority
	s.serve(t, cfg, s.logger(t))
	return s
}

func postgresql(t *testing.T, input []byte, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdin = bytes.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// TestClusterFromBackup loses the control plane, the database and all hosts. A new
// cluster of the backup and the snapshot store has what was stored.
func TestClusterFromBackup(t *testing.T) {
	lost := newSystem(t)
	c, err := client.New(client.Config{URL: lost.url, Key: lost.key})
	testkit.Must(t, err)
	dir := t.TempDir() // the store
	h2 := lost.joinWith(t, c, "h2", storeIn(t, dir))
	for _, id := range []string{"h1", "h2"} {
		reached(t, c, id)
	}
	_, err = c.CordonHost(t.Context(), "h1")
	testkit.Must(t, err)
	made := func() string {
		sb, err := c.CreateSandbox(t.Context(), client.CreateSandbox{})
		testkit.Must(t, err)
		says(t, c, sb.ID, "before")
		return sb.ID
	}
	stored, runs := made(), made()
	_, err = c.BuildTemplate(t.Context(), client.BuildTemplate{Name: "mine", FromSandbox: stored})
	testkit.Must(t, err)
	templateStored(t, c, "mine")
	_, err = c.PauseSandboxBy(t.Context(), stored, client.PauseOptions{Durable: true})
	testkit.Must(t, err)
	_, err = c.SetSecret(t.Context(), "token", "a text", nil)
	testkit.Must(t, err)
	b := lost.back(t)
	after := made() // the backup does not have it
	lost.stop()
	h2.agent.Stop(t)

	s := b.restored(t, lost.key) // the keys of the API are in the database
	c, err = client.New(client.Config{URL: s.url, Key: s.key})
	testkit.Must(t, err)
	h4 := s.joinWith(t, c, "h4", storeIn(t, dir))
	reached(t, c, "h4")
	for _, id := range []string{"h1", "h2"} {
		_, err := c.LoseHost(t.Context(), id)
		testkit.Must(t, err)
	}
	_, err = c.ResumeSandbox(t.Context(), stored)
	testkit.Must(t, err)
	says(t, c, stored, "after")
	testkit.WaitNoError(t, "the sandbox that ran is failed", func() error {
		sb, err := c.Sandbox(t.Context(), runs)
		if err == nil && (sb.State != client.Failed || !strings.Contains(sb.Reason, "lost")) {
			err = errors.New(string(sb.State) + ": " + sb.Reason)
		}
		return err
	})
	if _, err := c.Sandbox(t.Context(), after); client.CodeOf(err) != client.NotFound {
		t.Errorf("a sandbox of after the backup: %v", err)
	}
	rule := client.HeaderRule{Host: "api.example.com", Headers: map[string]string{"X-Token": "${secrets.token}"}}
	for _, create := range []client.CreateSandbox{{Template: "mine"}, {Template: "mine", Network: &client.NetworkPolicy{Headers: []client.HeaderRule{rule}}}} {
		sb, err := c.CreateSandbox(t.Context(), create)
		testkit.Must(t, err)
		says(t, c, sb.ID, "of the template")
		testkit.Must(t, c.DeleteSandbox(t.Context(), sb.ID))
	}
	if n := h4.agent.Manager.Live(); n != 1 {
		t.Errorf("the new host has %d sandboxes", n)
	}
	if log := s.log.String(); strings.Contains(log, "cannot open") {
		t.Errorf("a secret of the backup: %s", log)
	}
}
