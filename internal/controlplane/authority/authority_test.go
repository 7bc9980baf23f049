package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

func open(t *testing.T) (*Authority, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet.pem")
	testkit.Must(t, Create(path))
	a, err := Load(path)
	testkit.Must(t, err)
	return a, path
}

// issue returns a host's certificate with its key.
func issue(t *testing.T, a *Authority, host string) (tls.Certificate, Signed) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	raw, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}}, key)
	testkit.Must(t, err)
	signed, err := a.Sign(wrenn.HostID(host), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: raw}))
	testkit.Must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	testkit.Must(t, err)
	pair, err := tls.X509KeyPair(signed.PEM, encode("PRIVATE KEY", private))
	testkit.Must(t, err)
	return pair, signed
}

func TestFile(t *testing.T) {
	a, path := open(t)
	testkit.Must(t, Create(path))
	again, err := Load(path)
	if err != nil || again.Fingerprint() != a.Fingerprint() || len(a.Fingerprint()) != 32 {
		t.Errorf("loaded again: %v, %v", again, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
	testkit.Must(t, os.Chmod(path, 0o604))
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that all users read: %v", err)
	}
	testkit.Must(t, os.WriteFile(path, []byte("secret"), 0o600))
	testkit.Must(t, os.Chmod(path, 0o600))
	if _, err := Load(path); err == nil || strings.Contains(err.Error(), "secret\"") {
		t.Errorf("another file: %v", err)
	}
	if _, err := Load(path + "x"); err == nil {
		t.Error("no file")
	}
}

// meet has a control plane connect to a host that has a certificate.
func meet(t *testing.T, a *Authority, host tls.Certificate, allowed func(string) bool) (server, client error) {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	ended := make(chan error, 1)
	go func() {
		conn := tls.Server(far, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{host}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool, Time: a.now})
		err := conn.HandshakeContext(t.Context())
		if err == nil {
			err = conn.ConnectionState().PeerCertificates[0].VerifyHostname(ClientName)
		}
		_ = far.Close()
		ended <- err
	}()
	cfg := a.Client("h2", allowed)
	cfg.Time = a.now
	client = tls.Client(near, cfg).HandshakeContext(t.Context())
	_ = near.Close()
	return <-ended, client
}

func TestControlPlaneMeetsHosts(t *testing.T) {
	a, _ := open(t)
	pair, signed := issue(t, a, "h2")
	all := func(string) bool { return true }
	if server, client := meet(t, a, pair, func(serial string) bool { return serial == signed.Serial }); server != nil || client != nil {
		t.Errorf("its host: %v, %v", server, client)
	}
	if _, client := meet(t, a, pair, func(string) bool { return false }); client == nil || !strings.Contains(client.Error(), "revoked") {
		t.Errorf("a revoked certificate: %v", client)
	}
	other, _ := issue(t, a, "h3")
	if _, client := meet(t, a, other, all); client == nil {
		t.Error("another host is taken for it")
	}
	b, _ := open(t)
	foreign, _ := issue(t, b, "h2")
	if _, client := meet(t, a, foreign, all); client == nil {
		t.Error("a certificate of another authority is accepted")
	}
	host, _, serial, err := a.Verify(signed.PEM)
	if err != nil || host != "h2" || serial != signed.Serial {
		t.Errorf("verified %s, %s, %v", host, serial, err)
	}
	// A day later the host's certificate has ended, and the control plane has another one.
	later := time.Now().Add(25 * time.Hour)
	a.now = func() time.Time { return later }
	_, _, _, err = a.Verify(signed.PEM)
	if wrenn.CodeOf(err) != wrenn.Unauthenticated || !strings.Contains(err.Error(), "valid until") {
		t.Errorf("an expired certificate: %v", err)
	}
	if _, client := meet(t, a, pair, all); client == nil {
		t.Error("an expired certificate is accepted")
	}
	fresh, _ := issue(t, a, "h2")
	if server, client := meet(t, a, fresh, all); server != nil || client != nil {
		t.Errorf("a day later: %v, %v", server, client)
	}
}
