package member

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/certs/certstest"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/testkit"
)

// plane answers as a control plane does, with certificates of an authority for tests.
type plane struct {
	t         *testing.T
	authority []byte // in PEM
	sign      func(csr string) string
	skew      time.Duration
	life      time.Duration
	refuse    string // the message of a refusal; "" is none

	mu     sync.Mutex // guards the following
	urls   []string
	renews chan struct{}
}

func newPlane(t *testing.T) (*plane, *httptest.Server, *httptest.Server) {
	t.Helper()
	ca := certstest.New(t)
	text, err := os.ReadFile(ca.File)
	testkit.Must(t, err)
	p := &plane{t: t, authority: text, sign: func(csr string) string { return ca.Sign(t, []byte(csr)) }, life: time.Hour, renews: make(chan struct{}, 100)}
	clear, secure := httptest.NewServer(p), httptest.NewTLSServer(p)
	t.Cleanup(clear.Close)
	t.Cleanup(secure.Close)
	return p, clear, secure
}

func (p *plane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now().Add(p.skew)
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	if r.URL.Path == "/health" {
		return
	}
	if p.refuse != "" {
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": "forbidden", "message": p.refuse}})
		return
	}
	var in struct{ CSR, URL, Certificate, Signature string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		p.t.Error(err)
	}
	if r.URL.Path == "/v1/host-renewals" {
		block, _ := pem.Decode([]byte(in.Certificate))
		cert, err := x509.ParseCertificate(block.Bytes)
		testkit.Must(p.t, err)
		proof, err := base64.StdEncoding.DecodeString(in.Signature)
		testkit.Must(p.t, err)
		if err := cert.CheckSignature(x509.ECDSAWithSHA256, []byte("x"), proof); err == nil {
			p.t.Error("anything is signed")
		}
		defer func() { p.renews <- struct{}{} }()
	}
	p.mu.Lock()
	p.urls = append(p.urls, in.URL)
	p.mu.Unlock()
	_ = json.NewEncoder(w).Encode(answer{p.sign(in.CSR), string(p.authority), now.Add(p.life), now})
}

func (p *plane) token(host wrenn.HostID) string {
	block, _ := pem.Decode(p.authority)
	return hostjoin.NewToken(host, hostjoin.Fingerprint(block.Bytes)).String()
}

func TestJoinAndRenew(t *testing.T) {
	p, _, secure := newPlane(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	testkit.Must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600))
	dir := t.TempDir()
	if _, err := Open(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before it joined: %v", err)
	}
	_, err := Join{StateDir: dir, ControlPlane: secure.URL, Token: p.token("h2")}.Do(t.Context())
	if err == nil || !strings.Contains(err.Error(), "--ca") {
		t.Errorf("a control plane that it does not trust: %v", err)
	}
	_, err = Join{StateDir: dir, ControlPlane: secure.URL, Token: p.token("h2"), CA: ca}.Do(t.Context())
	testkit.Must(t, err)
	m, err := Open(dir)
	testkit.Must(t, err)
	if m.Host() != "h2" || m.Listen() != DefaultListen || p.urls[0] != "https://127.0.0.1:49980" {
		t.Errorf("host %s at %s, %v", m.Host(), m.Listen(), p.urls)
	}
	identity := func() []byte {
		text, err := os.ReadFile(m.Files().Certificate)
		testkit.Must(t, err)
		_, err = tls.X509KeyPair(text, text)
		testkit.Must(t, err)
		return text
	}
	before := identity()
	p.life = 2 * time.Millisecond // so it is renewed each millisecond
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.KeepRenewed(ctx, slog.New(slog.DiscardHandler)) }()
	for range 3 {
		<-p.renews
	}
	stop()
	testkit.Must(t, <-ended)
	if bytes.Equal(before, identity()) {
		t.Error("the certificate was not renewed")
	}
	if info, err := os.Stat(m.Files().Key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is in %v, %v", info, err)
	}
	_, err = Join{StateDir: dir, ControlPlane: secure.URL, Token: p.token("h3")}.Do(t.Context())
	if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "--id h2") {
		t.Errorf("as another host: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	p, clear, _ := newPlane(t)
	good := p.token("h2")
	join := func(change func(*Join)) error {
		j := Join{StateDir: t.TempDir(), ControlPlane: clear.URL, Token: good}
		change(&j)
		_, err := j.Do(t.Context())
		if err != nil {
			if _, found := Open(j.StateDir); !errors.Is(found, fs.ErrNotExist) {
				t.Errorf("after %v it has joined: %v", err, found)
			}
		}
		return err
	}
	refused := func(text string, change func(*Join)) {
		t.Helper()
		if err := join(change); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
	refused("wrenn host token", func(j *Join) { j.Token = "wrenn-join.h2.x.y" })
	refused("use https://", func(j *Join) { j.ControlPlane = "http://10.0.0.1:8080" })
	refused("no url of a host", func(j *Join) { j.URL = "http://10.0.0.1:1" })
	refused("an address and a port", func(j *Join) { j.Listen = "10.0.0.1" })
	refused("another authority", func(j *Join) {
		j.Token = hostjoin.NewToken("h2", strings.Repeat("0", 32)).String()
	})
	for _, skew := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		p.skew = skew
		refused("the clock of this machine is 24h0m", func(*Join) {})
	}
	if len(p.urls) != 1 { // of the other authority
		t.Errorf("tokens were sent to %v", p.urls)
	}
	p.skew, p.refuse = 0, "the token was used"
	refused("the token was used", func(*Join) {})
	p.refuse = ""
	testkit.Must(t, join(func(*Join) {}))
}

// TestRefusedRenewal: a host that was removed, or whose clock is wrong, says so in its log.
func TestRefusedRenewal(t *testing.T) {
	p, clear, _ := newPlane(t)
	m, err := Join{StateDir: t.TempDir(), ControlPlane: clear.URL, Token: p.token("h2"), URL: "https://10.0.0.9:1"}.Do(t.Context())
	testkit.Must(t, err)
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	renew := func() time.Duration {
		valid, err := m.Renew(t.Context())
		return m.next(t.Context(), log, valid, err)
	}
	if after := renew(); after < 20*time.Minute || after > 30*time.Minute {
		t.Errorf("renewed again after %s", after)
	}
	p.skew = 24 * time.Hour
	if after := renew(); after < 20*time.Minute || !strings.Contains(text.String(), "behind the control plane's") {
		t.Errorf("with a wrong clock again after %s: %s", after, &text)
	}
	p.skew, p.refuse = 0, "host h2 is removed: its certificate is revoked"
	if after := renew(); after < refusedRetry/2 || !strings.Contains(text.String(), "is revoked") {
		t.Errorf("when removed again after %s: %s", after, &text)
	}
	clear.Close()
	if after := renew(); after > 2*renewRetry {
		t.Errorf("without a control plane again after %s", after)
	}
}

// TestJoinByServiceAccount: Kubernetes' token names the host, and may be used again.
func TestJoinByServiceAccount(t *testing.T) {
	p, clear, _ := newPlane(t)
	const uid = "1f0c9d3e-7a52-4b1e-9c88-3f2a6b7c8d9e"
	token := "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(`{"kubernetes.io":{"node":{"name":"node1","uid":"`+uid+`"}}}`)) + ".c2ln"
	dir := t.TempDir()
	for range 2 {
		_, err := Join{StateDir: dir, ControlPlane: clear.URL, Token: token}.Do(t.Context())
		testkit.Must(t, err)
	}
	m, err := Open(dir)
	testkit.Must(t, err)
	if m.Host() != "k8s-"+uid || "http://"+m.details.Address != clear.URL || len(p.urls) != 2 {
		t.Errorf("host %s, control plane at %s, joined %v", m.Host(), m.details.Address, p.urls)
	}
	_, err = Join{StateDir: dir, ControlPlane: clear.URL, Token: p.token("h2")}.Do(t.Context())
	if err == nil || !strings.Contains(err.Error(), "this machine is host k8s-") {
		t.Errorf("as another host: %v", err)
	}
	p.refuse = "has expired"
	_, err = Join{StateDir: dir, ControlPlane: clear.URL, Token: token}.Do(t.Context())
	if wrenn.CodeOf(err) != wrenn.PermissionDenied || !strings.Contains(err.Error(), "has expired") {
		t.Errorf("a refusal: %v", err)
	}
}

// TestNameThatIsNotKnown: a node does not know the names of Kubernetes' services.
func TestNameThatIsNotKnown(t *testing.T) {
	_, clear, _ := newPlane(t)
	address := strings.TrimPrefix(clear.URL, "http://")
	conn, err := dialer(address)(t.Context(), "tcp", "wrenn-control-plane.wrenn.invalid:443")
	testkit.Must(t, err)
	testkit.Must(t, conn.Close())
	if _, err := dialer("")(t.Context(), "tcp", "wrenn-control-plane.wrenn.invalid:443"); err == nil {
		t.Error("without an address")
	}
	if _, err := dialer(address)(t.Context(), "tcp", testkit.FreeAddress(t)); err == nil {
		t.Error("a server that is down")
	}
}
