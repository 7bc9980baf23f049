// Package certstest makes certificates for tests.
package certstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/testkit"
)

// Authority signs certificates.
type Authority struct {
	File string // the authority's certificate

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Want describes a certificate to issue. The zero value is a server's, for no
// name, valid for an hour.
type Want struct {
	Names  []string // DNS names or addresses
	Client bool     // for a client instead of a server
	Until  time.Time
}

// New makes an authority. The end of the test removes its files and those of its
// certificates.
func New(tb testing.TB) *Authority {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := &Authority{File: filepath.Join(tb.TempDir(), "ca.crt"), key: key}
	a.cert = sign(tb, template, template, key, key)
	write(tb, a.File, "CERTIFICATE", a.cert.Raw)
	return a
}

// Issue makes a certificate and returns the files of a program that has it and
// trusts this authority.
func (a *Authority) Issue(tb testing.TB, want Want) certs.Files {
	tb.Helper()
	dir := tb.TempDir()
	files := certs.Files{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: a.File}
	a.Renew(tb, files, want)
	return files
}

// Renew writes a new certificate and key over those of files.
func (a *Authority) Renew(tb testing.TB, files certs.Files, want Want) {
	tb.Helper()
	if want.Until.IsZero() {
		want.Until = time.Now().Add(time.Hour)
	}
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: want.Until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if want.Client {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for _, name := range want.Names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	cert := sign(tb, template, a.cert, key, a.key)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	testkit.Must(tb, err)
	write(tb, files.Key, "PRIVATE KEY", private)
	write(tb, files.Certificate, "CERTIFICATE", cert.Raw)
}

// Sign returns the certificate, in PEM, of a server that asks for it by a certificate
// signing request in PEM.
func (a *Authority) Sign(tb testing.TB, request []byte) string {
	tb.Helper()
	block, _ := pem.Decode(request)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	testkit.Must(tb, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: csr.Subject, DNSNames: csr.DNSNames,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, csr.PublicKey, a.key)
	testkit.Must(tb, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(tb, err)
	return key
}

func sign(tb testing.TB, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	tb.Helper()
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	testkit.Must(tb, err)
	cert, err := x509.ParseCertificate(raw)
	testkit.Must(tb, err)
	return cert
}

// write replaces the file by a rename, as a renewal does.
func write(tb testing.TB, path, kind string, raw []byte) {
	tb.Helper()
	testkit.Must(tb, os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600))
	testkit.Must(tb, os.Rename(path+".new", path))
}
