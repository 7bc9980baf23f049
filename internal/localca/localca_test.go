package localca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"testing"
	"time"

	"wrenn.dev/internal/testkit"
)

// verify checks the domain's certificate for a name as a client that trusts only the authority.
func verify(t *testing.T, a *Authority, name string) error {
	t.Helper()
	files := a.Files()
	pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	testkit.Must(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(a.Certificate())
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name})
	return err
}

func TestAuthority(t *testing.T) {
	dir := t.TempDir()
	if _, err := Find(dir, "sandbox.localhost"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Find() before there is one: %v", err)
	}
	a, err := Open(dir, "sandbox.localhost")
	testkit.Must(t, err)
	testkit.Must(t, a.Renew(time.Now()))
	for _, name := range []string{"sandbox.localhost", "api.sandbox.localhost", "8080-iabc.sandbox.localhost"} {
		if err := verify(t, a, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := verify(t, a, "example.com"); err == nil {
		t.Error("it is valid for another domain")
	}
	again, err := Open(dir, "sandbox.localhost")
	testkit.Must(t, err)
	found, err := Find(dir, "sandbox.localhost")
	testkit.Must(t, err)
	if again.Fingerprint() != a.Fingerprint() || found.Fingerprint() != a.Fingerprint() {
		t.Error("another authority was made")
	}
	for path, perm := range map[string]os.FileMode{a.File(): 0o644, a.Files().Key: 0o600, dir + "/sandbox.localhost/" + authorityKeyFile: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != perm {
			t.Errorf("%s: %v, %v; want %v", path, info, err, perm)
		}
	}
}

func TestRenew(t *testing.T) {
	a, err := Open(t.TempDir(), "sandbox.localhost")
	testkit.Must(t, err)
	now := time.Now()
	read := func() []byte {
		text, err := os.ReadFile(a.Files().Certificate)
		testkit.Must(t, err)
		return text
	}
	testkit.Must(t, a.Renew(now))
	first := read()
	testkit.Must(t, a.Renew(now.Add(leafLife-renewBefore-2*backdate)))
	if !bytes.Equal(first, read()) {
		t.Error("a certificate that is valid for weeks was replaced")
	}
	testkit.Must(t, a.Renew(now.Add(leafLife-renewBefore+time.Hour)))
	if bytes.Equal(first, read()) {
		t.Error("a certificate was not renewed")
	}
}

// An authority cannot sign for another domain, so that trusting it is harmless.
func TestTheAuthorityIsLimitedToItsDomain(t *testing.T) {
	a, err := Open(t.TempDir(), "sandbox.localhost")
	testkit.Must(t, err)
	a.Domain = "example.com"
	testkit.Must(t, a.Renew(time.Now()))
	if err := verify(t, a, "example.com"); err == nil {
		t.Error("a certificate for another domain is accepted")
	}
}

func TestAnAuthorityThatIsDamaged(t *testing.T) {
	dir := t.TempDir()
	a, err := Open(dir, "sandbox.localhost")
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(a.File(), []byte("not PEM"), 0o600))
	if _, err := Open(dir, "sandbox.localhost"); err == nil {
		t.Error("it is used, or replaced silently")
	}
}
