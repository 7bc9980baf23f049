package service_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/vault"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/telemetry/logtest"
	"wrenn.dev/internal/testkit"
)

// keyFile makes a key.
func keyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secrets.key")
	testkit.Must(t, vault.Create(path))
	return path
}

// withKeys returns a service on a database that has these keys.
func withKeys(t *testing.T, url string, journal *logtest.Journal, files ...string) *service.Service {
	t.Helper()
	keys, err := vault.Load(files)
	testkit.Must(t, err)
	s, err := service.New(service.Config{Vault: keys, Limits: service.Limits{Limits: postgres.Limits{Secrets: 2}}}, pgtest.Open(t, url), slog.New(slog.NewTextHandler(journal, nil)))
	testkit.Must(t, err)
	return s
}

// running runs the service until stop.
func running(t *testing.T, s *service.Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		testkit.Must(t, <-done)
	}
}

// TestSecretKeys: keys are rotated, a row that is copied over another one does not
// open, and without keys there are no secrets.
func TestSecretKeys(t *testing.T) {
	t.Parallel()
	url, journal := pgtest.New(t), new(logtest.Journal)
	before, after := keyFile(t), keyFile(t)
	old := withKeys(t, url, journal, before)
	team, err := old.EnsureTeam(t.Context(), "team")
	testkit.Must(t, err)
	c := service.Caller{Team: team}
	value := []byte("planted-value")
	for _, name := range []string{"one", "two"} {
		if _, created, err := old.SetSecret(t.Context(), c, service.NewSecret{Name: name, Value: string(value) + name}); err != nil || !created {
			t.Fatal(created, err)
		}
	}
	if _, _, err := old.SetSecret(t.Context(), c, service.NewSecret{Name: "three", Value: "x"}); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("over the limit: %v", err)
	}
	if secret, created, err := old.SetSecret(t.Context(), c, service.NewSecret{Name: "ONE", Value: string(value) + "one"}); err != nil || created || secret.Version != 2 {
		t.Errorf("set again: %+v, %v, %v", secret, created, err)
	}

	both := withKeys(t, url, journal, after, before)
	defer running(t, both)()
	alone := withKeys(t, url, journal, after)
	for _, name := range []string{"one", "two"} { // sealed again one by one, in any order
		testkit.WaitNoError(t, "the secret has the new key", func() error {
			_, _, err := alone.SecretValue(t.Context(), team, name)
			return err
		})
	}
	got, version, err := alone.SecretValue(t.Context(), team, "one")
	if err != nil || string(got) != "planted-valueone" || version != 2 {
		t.Errorf("after the rotation: %q, %d, %v", got, version, err)
	}
	testkit.WantCode(t, second(old.SecretValue(t.Context(), team, "one")), wrenn.FailedPrecondition)

	conn, err := pgx.Connect(t.Context(), url)
	testkit.Must(t, err)
	defer conn.Close(t.Context())
	var rows []byte
	testkit.Must(t, conn.QueryRow(t.Context(), "SELECT string_agg(s::text || encode(sealed, 'escape'), '') FROM secrets s").Scan(&rows))
	if len(rows) == 0 || bytes.Contains(rows, value) {
		t.Errorf("the rows are %s", rows)
	}
	_, err = conn.Exec(t.Context(), "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'one') WHERE name = 'two'")
	testkit.Must(t, err)
	if got, _, err := alone.SecretValue(t.Context(), team, "two"); err == nil || got != nil {
		t.Errorf("a row that was copied: %q", got)
	}
	none := withKeys(t, url, journal)
	_, err = none.UpdateSecret(t.Context(), c, "one", "x", nil)
	testkit.WantCode(t, err, wrenn.FailedPrecondition)
	if bytes.Contains([]byte(journal.String()), value) {
		t.Errorf("a value is in the log:\n%s", journal)
	}
}

// TestProxyPasswordKeys: the password of an egress proxy in a row of the version before gets
// the first key; that of a sandbox that has ended, and one whose key is not here, do not.
func TestProxyPasswordKeys(t *testing.T) {
	t.Parallel()
	url, journal := pgtest.New(t), new(logtest.Journal)
	before, after := keyFile(t), keyFile(t)
	old, err := vault.Load([]string{before})
	testkit.Must(t, err)
	foreign, err := vault.Load([]string{keyFile(t)})
	testkit.Must(t, err)
	conn, err := pgx.Connect(t.Context(), url)
	testkit.Must(t, err)
	defer conn.Close(t.Context())
	both := withKeys(t, url, journal, after, before)
	team, err := both.EnsureTeam(t.Context(), "team")
	testkit.Must(t, err)
	row := func(id, state string, keys *vault.Vault) {
		sealed, err := keys.Seal(string(team)+"/egress proxy", []byte("planted-password"))
		testkit.Must(t, err)
		network, err := json.Marshal(wrenn.NetworkPolicy{Proxy: &wrenn.EgressProxy{Protocol: wrenn.ProxySOCKS5, Host: "192.0.2.1", Port: 1080, HasPassword: true, Sealed: sealed}})
		testkit.Must(t, err)
		_, err = conn.Exec(t.Context(), `INSERT INTO sandboxes (id, state, team_id, template, vcpus, memory_mb, timeout_sec, on_timeout, network, stored_at, stored_key)
			VALUES ($1, $2, $3, 'base', 1, 256, 60, 'destroy', $4, now(), 'key')`, id, state, team, network)
		testkit.Must(t, err)
	}
	ids := []string{"iaaaaaaaaaaaaaaaaaaaa", "ibbbbbbbbbbbbbbbbbbbb", "icccccccccccccccccccc"}
	row(ids[0], "paused", old)
	row(ids[1], "stopped", old)
	row(ids[2], "paused", foreign)
	defer running(t, both)()
	alone, err := vault.Load([]string{after})
	testkit.Must(t, err)
	read := func(id string) (p wrenn.EgressProxy) {
		var network wrenn.NetworkPolicy
		testkit.Must(t, conn.QueryRow(t.Context(), "SELECT network FROM sandboxes WHERE id = $1", id).Scan(&network))
		return *network.Proxy
	}
	testkit.WaitUntil(t, "the password has the new key", func() bool { return read(ids[0]).SealedKey == alone.KeyID() })
	p := read(ids[0])
	if got, err := alone.Open(string(team)+"/egress proxy", p.Sealed); err != nil || string(got) != "planted-password" {
		t.Errorf("after the rotation: %q, %v", got, err)
	}
	if !p.HasPassword || p.Host != "192.0.2.1" || p.Port != 1080 {
		t.Errorf("the proxy is %+v", p)
	}
	testkit.WaitUntil(t, "the log has the other one", func() bool { return strings.Contains(journal.String(), "cannot encrypt all secrets") })
	for _, id := range ids[1:] {
		if p := read(id); p.SealedKey != "" {
			t.Errorf("sandbox %s: %+v", id, p)
		}
	}
}

func second(_ []byte, _ int, err error) error { return err }
