package egress

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 90 * 24 * time.Hour
	leafRenewal   = 30 * 24 * time.Hour // before its end
	// backdate is for guests whose clock is late.
	backdate  = 24 * time.Hour
	maxLeaves = 64 // that are kept; another one costs 0.1 ms
)

// Authority signs the certificates by which a sandbox's connections to hosts with header
// rules are answered. The guest trusts Certificate; Key must never reach it. The JSON
// form is that of host journals.
type Authority struct {
	Certificate string `json:"certificate"` // PEM
	Key         string `json:"key"`         // PEM
}

// NewAuthority returns a new authority. Name is for people.
func NewAuthority(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Wrenn"}, CommonName: "Wrenn egress of " + name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("authority of a sandbox: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &Authority{Certificate: encode("CERTIFICATE", raw), Key: encode("PRIVATE KEY", der)}, nil
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails, see crypto/rand
	return new(big.Int).SetBytes(b)
}

// signer is an authority at work.
type signer struct {
	cert *x509.Certificate
	key  crypto.Signer // of the authority
	leaf *ecdsa.PrivateKey

	mu     sync.Mutex // guards leaves
	leaves map[string]*tls.Certificate
}

func newSigner(a *Authority) (*signer, error) {
	pair, err := tls.X509KeyPair([]byte(a.Certificate), []byte(a.Key))
	if err != nil {
		return nil, fmt.Errorf("authority of a sandbox: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("authority of a sandbox: its certificate is not that of an authority")
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return &signer{cert: pair.Leaf, key: key, leaf: leaf, leaves: map[string]*tls.Certificate{}}, err
}

// certificate returns a certificate for a host.
func (s *signer) certificate(host string) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if c := s.leaves[host]; c != nil && now.Add(leafRenewal).Before(c.Leaf.NotAfter) {
		return c, nil
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), DNSNames: []string{host}, NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, leaf, s.cert, s.leaf.Public(), s.key)
	if err != nil {
		return nil, err
	}
	if leaf, err = x509.ParseCertificate(raw); err != nil {
		return nil, err
	}
	if len(s.leaves) >= maxLeaves {
		clear(s.leaves)
	}
	c := &tls.Certificate{Certificate: [][]byte{raw, s.cert.Raw}, PrivateKey: s.leaf, Leaf: leaf}
	s.leaves[host] = c
	return c, nil
}
