package service_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/testkit"
)

const joinURL = "https://127.0.0.1:1"

func newAuthority(t *testing.T) *authority.Authority {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet.pem")
	testkit.Must(t, authority.Create(path))
	a, err := authority.Load(path)
	testkit.Must(t, err)
	return a
}

func hostKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	return key
}

func request(t *testing.T, key any, from x509.CertificateRequest) string {
	t.Helper()
	raw, err := x509.CreateCertificateRequest(rand.Reader, &from, key)
	testkit.Must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: raw}))
}

// csr is a request as a host makes it.
func csr(t *testing.T, key any, names ...string) string {
	t.Helper()
	return request(t, key, x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names})
}

// wantRefusal checks the code of an error, and that its message has the text.
func wantRefusal(t *testing.T, what string, err error, code wrenn.Code, text string) {
	t.Helper()
	if wrenn.CodeOf(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %s with %q", what, err, code, text)
	}
}

type joinWorld struct {
	*world

	authority *authority.Authority
	s         *service.Service
}

func newJoinWorld(t *testing.T) *joinWorld {
	t.Helper()
	w := &joinWorld{world: newWorld(t, &hosttest.Agent{}), authority: newAuthority(t)}
	w.s, _ = w.replica(t, func(cfg *service.Config) { cfg.Authority = w.authority })
	return w
}

func (w *joinWorld) token(t *testing.T, host wrenn.HostID) string {
	t.Helper()
	made, err := w.s.CreateHostToken(t.Context(), w.caller, service.NewHostToken{Host: host, Zone: "a", Labels: map[string]string{"gpu": "none"}})
	testkit.Must(t, err)
	return made.Token
}

func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	w := newJoinWorld(t)
	key := hostKey(t)
	join := func(token, csr string) error {
		_, err := w.s.JoinHost(t.Context(), service.JoinHost{Token: token, CSR: csr, URL: joinURL})
		return err
	}
	good := w.token(t, "h9")
	forged := hostjoin.NewToken("h9", w.authority.Fingerprint()).String()
	of := strings.Split(good, ".")
	other := strings.Join([]string{of[0], "h8", of[2], of[3]}, ".")
	elsewhere := strings.Join([]string{of[0], of[1], of[2], strings.Repeat("0", 32)}, ".")
	wantRefusal(t, "no token", join("x", csr(t, key, "h9")), wrenn.Invalid, "wrenn host token")
	wantRefusal(t, "forged token", join(forged, csr(t, key, "h9")), wrenn.Unauthenticated, "unknown")
	wantRefusal(t, "token of another host", join(other, csr(t, key, "h8")), wrenn.Unauthenticated, "unknown")
	wantRefusal(t, "another fleet", join(elsewhere, csr(t, key, "h9")), wrenn.FailedPrecondition, "authority")

	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	testkit.Must(t, err)
	damaged := csr(t, key, "h9")
	damaged = strings.Replace(damaged, damaged[60:64], "AAAA", 1)
	for name, text := range map[string]string{
		"another name":    csr(t, key, "h8"),
		"one more name":   csr(t, key, "h9", "control-plane"),
		"a control plane": csr(t, key, "control-plane"),
		"an address":      request(t, key, x509.CertificateRequest{Subject: pkix.Name{CommonName: "h9"}, DNSNames: []string{"h9"}, IPAddresses: []net.IP{{10, 0, 0, 1}}}),
		"no name":         request(t, key, x509.CertificateRequest{}),
		"a key of RSA":    csr(t, weak, "h9"),
		"a damaged one":   damaged,
		"no request":      "-----BEGIN CERTIFICATE REQUEST-----",
		"nothing":         "",
		"two requests":    csr(t, key, "h9") + csr(t, key, "h9"),
	} {
		wantRefusal(t, name, join(good, text), wrenn.Invalid, "")
	}
	for _, url := range []string{"", "http://10.0.0.1:1", "https://10.0.0.1", "https://u@10.0.0.1:1", "https://10.0.0.1:1/x", "unix:///run/x", "https://" + strings.Repeat("x", 300) + ":1"} {
		_, err := w.s.JoinHost(t.Context(), service.JoinHost{Token: good, CSR: csr(t, key, "h9"), URL: url})
		wantRefusal(t, "url "+url, err, wrenn.Invalid, "https://ADDRESS:PORT")
	}
	testkit.Must(t, join(good, csr(t, key, "h9"))) // no refusal has used it up
	wantRefusal(t, "used token", join(good, csr(t, key, "h9")), wrenn.Unauthenticated, "was used")

	late := w.token(t, "h7")
	w.sql(t, "UPDATE host_tokens SET expires_at = now() - interval '1 second' WHERE host_id = 'h7'")
	wantRefusal(t, "expired token", join(late, csr(t, key, "h7")), wrenn.Unauthenticated, "expired")
	if dump := w.dump(t, "SELECT string_agg(t::text, '') FROM host_tokens t"); strings.Contains(dump, of[2]) {
		t.Error("the database has the secret of a token")
	}
}

func TestTokensAreRefused(t *testing.T) {
	t.Parallel()
	w := newJoinWorld(t)
	for name, want := range map[string]service.NewHostToken{
		"id":            {Host: "H2"},
		"control plane": {Host: "control-plane"},
		"life":          {TTL: time.Second},
		"long life":     {TTL: 1000 * time.Hour},
		"name":          {Name: "a\nb"},
		"zone":          {Zone: "a b"},
		"label":         {Labels: map[string]string{"": "x"}},
	} {
		_, err := w.s.CreateHostToken(t.Context(), w.caller, want)
		wantRefusal(t, name, err, wrenn.Invalid, "")
	}
	_, err := w.s.CreateHostToken(t.Context(), w.caller, service.NewHostToken{Host: "h1"})
	wantRefusal(t, "a host of the configuration", err, wrenn.FailedPrecondition, "configuration")
	without, _ := w.replica(t, nil)
	_, err = without.CreateHostToken(t.Context(), w.caller, service.NewHostToken{})
	wantRefusal(t, "no authority", err, wrenn.FailedPrecondition, "control-plane authority")
}

// TestRenewal: a host renews with its newest certificate or the one before, until it is removed.
func TestRenewal(t *testing.T) {
	t.Parallel()
	w := newJoinWorld(t)
	other, _ := w.replica(t, func(cfg *service.Config) { cfg.Authority = w.authority })
	key := hostKey(t)
	first, err := w.s.JoinHost(t.Context(), service.JoinHost{Token: w.token(t, "h9"), CSR: csr(t, key, "h9"), URL: joinURL, Name: "rack 3"})
	testkit.Must(t, err)
	h, err := other.Host(t.Context(), w.caller, "h9")
	if err != nil || !h.Joined || h.Name != "rack 3" || h.Zone != "a" || h.Labels["gpu"] != "none" || h.URL != joinURL || !h.CertificateUntil.Equal(first.Until) {
		t.Fatalf("the host is %+v, %v", h, err)
	}
	ask := func(certificate []byte, by *ecdsa.PrivateKey, next *ecdsa.PrivateKey, name, url string) (*service.HostCertificate, error) {
		r := hostjoin.Renewal{Certificate: string(certificate), CSR: csr(t, next, name), URL: url}
		proof, err := r.Sign(by)
		testkit.Must(t, err)
		return other.RenewHost(t.Context(), service.RenewHost{Renewal: r, Proof: proof})
	}
	next := hostKey(t)
	_, err = ask(first.Certificate, next, next, "h9", joinURL)
	wantRefusal(t, "another key", err, wrenn.Unauthenticated, "not signed")
	_, err = ask(first.Certificate, key, next, "h8", joinURL)
	wantRefusal(t, "another name", err, wrenn.Invalid, "another name")
	stranger, err := newAuthority(t).Sign("h9", []byte(csr(t, key, "h9")))
	testkit.Must(t, err)
	_, err = ask(stranger.PEM, key, next, "h9", joinURL)
	wantRefusal(t, "another authority", err, wrenn.Unauthenticated, "has not signed")
	_, err = ask([]byte("x"), key, next, "h9", joinURL)
	wantRefusal(t, "no certificate", err, wrenn.Invalid, "")

	const moved = "https://127.0.0.2:2"
	_, err = ask(first.Certificate, key, next, "h9", moved) // its answer is lost
	testkit.Must(t, err)
	second, err := ask(first.Certificate, key, next, "h9", moved)
	testkit.Must(t, err)
	third, err := ask(second.Certificate, next, next, "h9", moved)
	testkit.Must(t, err)
	_, err = ask(first.Certificate, key, next, "h9", joinURL)
	wantRefusal(t, "an old certificate", err, wrenn.PermissionDenied, "replaced")
	if h, err = w.s.Host(t.Context(), w.caller, "h9"); err != nil || h.URL != moved {
		t.Errorf("the host is %+v, %v", h, err)
	}
	for _, status := range []wrenn.HostStatus{wrenn.HostRemoved, wrenn.HostLost} {
		w.sql(t, "UPDATE hosts SET status = $1 WHERE id = 'h9'", string(status))
		_, err = ask(third.Certificate, next, next, "h9", moved)
		wantRefusal(t, "a host that is "+string(status), err, wrenn.PermissionDenied, "revoked")
	}
	_, err = w.s.JoinHost(t.Context(), service.JoinHost{Token: w.token(t, "h9"), CSR: csr(t, key, "h9"), URL: joinURL})
	testkit.Must(t, err)
	_, err = ask(third.Certificate, next, next, "h9", moved)
	wantRefusal(t, "a certificate of before", err, wrenn.PermissionDenied, "replaced")
}

// TestRemovedHost: only an empty host that is cordoned is removed, and its certificate ends with it.
func TestRemovedHost(t *testing.T) {
	t.Parallel()
	w := newJoinWorld(t)
	key := hostKey(t)
	got, err := w.s.JoinHost(t.Context(), service.JoinHost{Token: w.token(t, "h9"), CSR: csr(t, key, "h9"), URL: joinURL})
	testkit.Must(t, err)
	remove := func(id wrenn.HostID) error {
		_, err := w.s.RemoveHost(t.Context(), w.caller, id)
		return err
	}
	wantRefusal(t, "a host of the configuration", remove("h1"), wrenn.FailedPrecondition, "configuration")
	wantRefusal(t, "no host", remove("h5"), wrenn.NotFound, "h5")
	wantRefusal(t, "a host that is not cordoned", remove("h9"), wrenn.FailedPrecondition, "cordon it first")
	_, err = w.s.CordonHost(t.Context(), w.caller, "h9")
	testkit.Must(t, err)
	w.sql(t, `INSERT INTO sandboxes (id, team_id, template, state, vcpus, memory_mb, timeout_sec, host_id) VALUES ('iabcdefghijklmnopqrst', $1, 'base', 'paused', 1, 512, 300, 'h9')`, string(w.caller.Team))
	wantRefusal(t, "a host with a sandbox", remove("h9"), wrenn.FailedPrecondition, "1 sandboxes, 0 templates and 0 volumes")
	w.sql(t, `UPDATE sandboxes SET state = 'stopped'`)
	testkit.Must(t, remove("h9"))
	testkit.Must(t, remove("h9"))
	r := hostjoin.Renewal{Certificate: string(got.Certificate), CSR: csr(t, key, "h9"), URL: joinURL}
	proof, err := r.Sign(key)
	testkit.Must(t, err)
	_, err = w.s.RenewHost(t.Context(), service.RenewHost{Renewal: r, Proof: proof})
	wantRefusal(t, "its renewal", err, wrenn.PermissionDenied, "removed: its certificate is revoked")
	_, err = w.s.UncordonHost(t.Context(), w.caller, "h9")
	wantRefusal(t, "uncordon", err, wrenn.FailedPrecondition, "removed")
}

// TestLostHost: what was only on a host that is lost fails, and what comes back on it is left alone.
func TestLostHost(t *testing.T) {
	t.Parallel()
	agents := []*hosttest.Agent{{}, {}}
	w := newWorld(t, agents...)
	s, _ := w.replica(t, func(cfg *service.Config) { cfg.Deadlines.Ping = testkit.Timeout })
	for _, id := range []wrenn.HostID{"h1", "h2"} {
		seesHost(t, s, id, "each host answers", func(h *service.HostState) bool { return h.Reachable })
	}
	_, err := s.CordonHost(t.Context(), w.caller, "h2")
	testkit.Must(t, err)
	running, paused := create(t, s, w.caller), create(t, s, w.caller)
	_, err = s.PauseSandbox(t.Context(), w.caller, paused.ID)
	testkit.Must(t, err)
	_, err = s.LoseHost(t.Context(), w.caller, "h1")
	wantRefusal(t, "a host that answers", err, wrenn.FailedPrecondition, "answers")
	w.servers[0].Stop()
	seesHost(t, s, "h1", "it stops answering", func(h *service.HostState) bool { return !h.Reachable })
	for range 2 {
		if h, err := s.LoseHost(t.Context(), w.caller, "h1"); err != nil || h.Status != wrenn.HostLost {
			t.Fatalf("lost: %+v, %v", h, err)
		}
	}
	for _, id := range []wrenn.SandboxID{running.ID, paused.ID} {
		sb, err := s.Sandbox(t.Context(), w.caller, id)
		if err != nil || sb.State != wrenn.Failed || sb.Reason != "its host was lost" {
			t.Errorf("a sandbox of it: %+v, %v", sb, err)
		}
		w.checkEvents(t, sb)
	}
	testkit.Must(t, w.servers[0].Start(t.Context()))
	seesHost(t, s, "h1", "it comes back", func(h *service.HostState) bool { return h.Reachable && h.Status == wrenn.HostLost })
	if got := agents[0].Sandboxes(); len(got) != 2 {
		t.Errorf("it has %v", got)
	}
	_, err = s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
	testkit.WantCode(t, err, wrenn.Unavailable) // it gets no new ones
}
