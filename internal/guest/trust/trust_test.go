package trust_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/guest/trust"
	"wrenn.dev/internal/testkit"
)

func authority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	raw, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	testkit.Must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
}

const system = "# the system's\n-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"

// TestAdd: an authority is in the bundle of the system and in its own file, in place of
// an earlier one, and twice changes nothing.
func TestAdd(t *testing.T) {
	root := t.TempDir()
	bundle := filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")
	testkit.Must(t, os.MkdirAll(filepath.Dir(bundle), 0o755))
	testkit.Must(t, os.WriteFile(bundle, []byte(system), 0o644))
	testkit.Must(t, os.Symlink("certs/ca-certificates.crt", filepath.Join(root, "etc/ssl/cert.pem")))
	first, second := authority(t), authority(t)
	want := map[string]string{
		"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt", "REQUESTS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt",
		"NODE_EXTRA_CA_CERTS": "/usr/local/share/ca-certificates/wrenn-egress.crt", "DENO_CERT": "/usr/local/share/ca-certificates/wrenn-egress.crt",
	}
	for _, cert := range []string{first, first, second} {
		env, err := trust.Add(root, cert)
		testkit.Must(t, err)
		if diff := cmp.Diff(want, env); diff != "" {
			t.Error(diff)
		}
		text, err := os.ReadFile(bundle)
		testkit.Must(t, err)
		if !strings.HasPrefix(string(text), system) || strings.Count(string(text), strings.TrimSpace(cert)) != 1 || strings.Count(string(text), "BEGIN") != 2 {
			t.Errorf("the bundle is\n%s", text)
		}
		own, err := os.ReadFile(filepath.Join(root, want["NODE_EXTRA_CA_CERTS"]))
		testkit.Must(t, err)
		if pool := x509.NewCertPool(); string(own) != cert || !pool.AppendCertsFromPEM(own) {
			t.Errorf("the file is\n%s", own)
		}
	}
}

// TestAddWithoutBundle: a system without certificates gets the file alone, so that no
// program loses what it trusts.
func TestAddWithoutBundle(t *testing.T) {
	env, err := trust.Add(t.TempDir(), authority(t))
	testkit.Must(t, err)
	if env["SSL_CERT_FILE"] != "" || env["NODE_EXTRA_CA_CERTS"] == "" {
		t.Errorf("%v", env)
	}
}

func TestAddRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "text": "hello", "a key": "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n",
		"no certificate": "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "long": strings.Repeat("\n", 65<<10),
	} {
		if _, err := trust.Add(t.TempDir(), text); err == nil {
			t.Errorf("%s was added", name)
		}
	}
}
