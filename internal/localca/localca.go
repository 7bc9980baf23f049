// Package localca is a certificate authority of one machine for one domain: it
// signs the certificate by which that domain and its subdomains are served where no
// public authority can be had, as for names below localhost. A client of the
// domain trusts the authority once.
//
// The authority's certificate is limited to its domain: a thief of its key cannot
// pose as another site.
package localca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/filelock"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// leafLife is below the 398 days that browsers accept.
	leafLife = 90 * 24 * time.Hour
	// renewBefore is how long before its end a certificate is replaced, renewEvery
	// how often that is checked.
	renewBefore = 30 * 24 * time.Hour
	renewEvery  = 12 * time.Hour
	// backdate is for clients whose clock is late.
	backdate = time.Hour
)

// Names of the files in an authority's directory.
const (
	authorityFile, authorityKeyFile = "ca.pem", "ca-key.pem"
	leafFile, leafKeyFile           = "server.pem", "server-key.pem"
)

// Authority is the authority of a domain. It needs no closing.
type Authority struct {
	Domain string // without a port

	dir  string
	cert *x509.Certificate
	key  crypto.Signer // nil after Find
}

// Open returns the authority of the domain in the directory, where each domain has
// a subdirectory. It is made if there is none.
func Open(dir, domain string) (*Authority, error) {
	a := &Authority{Domain: domain, dir: filepath.Join(dir, domain)}
	// The certificate is for all users of the machine.
	if err := os.MkdirAll(a.dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.Open(a.dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := filelock.Lock(context.Background(), lock, nil); err != nil { // held for moments
		return nil, err
	}
	err = a.load()
	if errors.Is(err, fs.ErrNotExist) {
		err = a.make()
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority of %s: %w", domain, err)
	}
	return a, nil
}

// Find returns the authority of the domain without its key, which only root can
// read. An error that is fs.ErrNotExist: there is none.
func Find(dir, domain string) (*Authority, error) {
	a := &Authority{Domain: domain, dir: filepath.Join(dir, domain)}
	text, err := os.ReadFile(a.File())
	if err != nil {
		return nil, err
	}
	if a.cert, err = parse(text); err != nil {
		return nil, fmt.Errorf("%s: %w", a.File(), err)
	}
	return a, nil
}

// File is the path of the certificate that clients must trust.
func (a *Authority) File() string { return filepath.Join(a.dir, authorityFile) }

// Certificate is the certificate that clients must trust.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Fingerprint is the SHA-256 of the certificate, as browsers show it.
func (a *Authority) Fingerprint() string {
	sum := sha256.Sum256(a.cert.Raw)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

// Files are those of the domain's own certificate.
func (a *Authority) Files() certs.Files {
	return certs.Files{Certificate: filepath.Join(a.dir, leafFile), Key: filepath.Join(a.dir, leafKeyFile)}
}

// Renew makes the domain's certificate unless there is one that is valid for some
// weeks. Certificates are valid for 90 days.
func (a *Authority) Renew(now time.Time) error {
	if a.current(now) {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: a.Domain}, DNSNames: []string{a.Domain, "*." + a.Domain},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign the certificate of %s: %w", a.Domain, err)
	}
	files := a.Files()
	// A reader between the two writes finds a pair that does not match, and keeps what it has.
	return errors.Join(writeKey(files.Key, key), durable.WriteFile(files.Certificate, encode("CERTIFICATE", raw), 0o644))
}

// KeepRenewed renews the domain's certificate until ctx ends. A failure is logged,
// and tried again.
func (a *Authority) KeepRenewed(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		if err := a.Renew(time.Now()); err != nil {
			log.LogAttrs(ctx, slog.LevelError, "cannot renew the certificate; will retry", slog.String("domain", a.Domain), slog.Any("err", err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// current reports whether the domain's certificate can be used for some time.
func (a *Authority) current(now time.Time) bool {
	files := a.Files()
	pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	return err == nil && now.Add(renewBefore).Before(pair.Leaf.NotAfter) && pair.Leaf.CheckSignatureFrom(a.cert) == nil &&
		pair.Leaf.VerifyHostname("api."+a.Domain) == nil
}

func (a *Authority) load() error {
	pair, err := tls.LoadX509KeyPair(a.File(), filepath.Join(a.dir, authorityKeyFile))
	if err != nil {
		return err
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return fmt.Errorf("%s is no authority's: remove it to have another made, which clients must trust again", a.File())
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		return fmt.Errorf("%s has expired: remove it to have another made, which clients must trust again", a.File())
	}
	a.cert, a.key = pair.Leaf, signer
	return nil
}

// make makes the authority. The certificate is written last: without it there is none.
func (a *Authority) make() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // only for people
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Wrenn"}, CommonName: "Wrenn on " + host + " for " + a.Domain},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{a.Domain},
	}
	raw, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return err
	}
	if a.cert, err = x509.ParseCertificate(raw); err != nil {
		return err
	}
	a.key = key
	if err := writeKey(filepath.Join(a.dir, authorityKeyFile), key); err != nil {
		return err
	}
	return durable.WriteFile(a.File(), encode("CERTIFICATE", raw), 0o644)
}

func parse(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it holds no certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, encode("PRIVATE KEY", raw), 0o600)
}

func encode(kind string, raw []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw})
}

// serial is a random one, as RFC 5280 §4.1.2.2 allows: positive, and at most 20 bytes.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return new(big.Int).SetBytes(b[:])
}
