// Package authority is the certificate authority of a fleet: it signs the certificates
// of hosts that joined by a token, and those by which control planes call these hosts.
//
// A host's certificate is for its id, never for an address, and lasts for a day. The
// serial numbers that a host may use are in its row, so that an earlier certificate, or
// one of a host that was removed, is refused at once.
package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/hostjoin"
)

const (
	// Life is how long a certificate of a host is valid.
	Life = 24 * time.Hour
	// ClientName is the name in the certificates of control planes.
	ClientName = "control-plane"

	life     = 10 * 365 * 24 * time.Hour // of the authority
	backdate = time.Hour                 // for peers whose clock is late
	maxFile  = 64 << 10
)

// Authority signs certificates. It is safe for concurrent use and needs no closing.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	now  func() time.Time

	mu     sync.Mutex // guards client
	client *tls.Certificate
}

// Load reads the file that Create made. One that every user of the machine can read is
// refused.
func Load(path string) (*Authority, error) {
	text, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("authority of the fleet: %w", err)
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil { // it may repeat a part of the file
		return nil, fmt.Errorf("authority of the fleet: %s is not what `control-plane authority` makes", path)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("authority of the fleet: %s has no authority's certificate and key", path)
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("authority of the fleet: %s has expired: make another one, with which all hosts join again", path)
	}
	return of(pair.Leaf, key), nil
}

func of(cert *x509.Certificate, key *ecdsa.PrivateKey) *Authority {
	a := &Authority{cert: cert, key: key, pool: x509.NewCertPool(), now: time.Now}
	a.pool.AddCert(cert)
	return a
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s can be read by every user of this machine: chmod 600 %[1]s", path)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Create makes a file with a new authority, for its owner alone. A file that exists
// stays as it is.
func Create(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	cert := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Wrenn"}, CommonName: "Wrenn fleet"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return fmt.Errorf("sign the authority's certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := append(encode("CERTIFICATE", raw), encode("PRIVATE KEY", private)...)
	if err := durable.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("write the authority of the fleet: %w", err)
	}
	return nil
}

// Certificate returns the authority's certificate in PEM, without its key.
func (a *Authority) Certificate() []byte { return encode("CERTIFICATE", a.cert.Raw) }

// Fingerprint returns what a token names the authority by, see hostjoin.Token.
func (a *Authority) Fingerprint() string { return hostjoin.Fingerprint(a.cert.Raw) }

// Signed is a certificate that Sign made.
type Signed struct {
	PEM    []byte
	Serial string // in hexadecimal digits
	Until  time.Time
}

// Sign returns a certificate of the host for the key of a signing request in PEM. It is
// Invalid when the request is none, is for another name, or its key is of another kind
// than ECDSA on P-256.
func (a *Authority) Sign(host wrenn.HostID, request []byte) (Signed, error) {
	csr, err := parseRequest(host, request)
	if err != nil {
		return Signed{}, err
	}
	return a.sign(string(host), csr.PublicKey, x509.ExtKeyUsageServerAuth)
}

func (a *Authority) sign(name string, public any, usage x509.ExtKeyUsage) (Signed, error) {
	now := a.now()
	cert := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(Life).Truncate(time.Second),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	raw, err := x509.CreateCertificate(rand.Reader, cert, a.cert, public, a.key)
	if err != nil {
		return Signed{}, fmt.Errorf("sign a certificate: %w", err)
	}
	return Signed{PEM: encode("CERTIFICATE", raw), Serial: cert.SerialNumber.Text(16), Until: cert.NotAfter}, nil
}

func parseRequest(host wrenn.HostID, request []byte) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, wrenn.Errorf(wrenn.Invalid, "csr must be one certificate signing request in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "the certificate signing request cannot be read, or its signature is wrong")
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, wrenn.Errorf(wrenn.Invalid, "the key of the certificate signing request must be of ECDSA on P-256")
	}
	others := len(csr.IPAddresses) + len(csr.EmailAddresses) + len(csr.URIs)
	if csr.Subject.CommonName != string(host) || !slices.Equal(csr.DNSNames, []string{string(host)}) || others > 0 {
		return nil, wrenn.Errorf(wrenn.Invalid, "the certificate signing request is for another name than %s, the id of the host", host)
	}
	return csr, nil
}

// Verify returns the key and the serial number of a host's certificate in PEM, and the
// host. It is Unauthenticated when the authority has not signed it, or when it has
// expired. Whether the host may still use it is in its row.
func (a *Authority) Verify(certificate []byte) (host wrenn.HostID, key *ecdsa.PublicKey, serial string, err error) {
	block, _ := pem.Decode(certificate)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", nil, "", wrenn.Errorf(wrenn.Invalid, "certificate must be a certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", nil, "", wrenn.Errorf(wrenn.Invalid, "the certificate cannot be read")
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: a.pool, CurrentTime: a.now()})
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "", nil, "", wrenn.Errorf(wrenn.Unauthenticated, "the host's certificate was valid until %s: make a token with `wrenn host token --id %s`, and join again",
			cert.NotAfter.UTC().Format(time.RFC3339), cert.Subject.CommonName)
	}
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if err != nil || !ok || len(cert.DNSNames) != 1 {
		return "", nil, "", wrenn.Errorf(wrenn.Unauthenticated, "the authority of this fleet has not signed the host's certificate: make a token, and join again")
	}
	return wrenn.HostID(cert.DNSNames[0]), public, cert.SerialNumber.Text(16), nil
}

// Client returns the configuration of one new connection to the host, which must have a
// certificate that Verify accepts and whose serial number allowed accepts.
func (a *Authority) Client(host wrenn.HostID, allowed func(serial string) bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: string(host), RootCAs: a.pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.own() },
		VerifyConnection: func(state tls.ConnectionState) error {
			if !allowed(state.PeerCertificates[0].SerialNumber.Text(16)) {
				return fmt.Errorf("the certificate of host %s was replaced or revoked", host)
			}
			return nil
		},
	}
}

// own returns the certificate of this control plane, which lasts as long as a host's.
func (a *Authority) own() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil && a.now().Before(a.client.Leaf.NotAfter.Add(-Life/2)) {
		return a.client, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	signed, err := a.sign(ClientName, key.Public(), x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(signed.PEM, encode("PRIVATE KEY", private))
	if err != nil {
		return nil, err
	}
	a.client = &pair
	return a.client, nil
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
