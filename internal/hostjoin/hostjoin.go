// Package hostjoin has what a host and a control plane say to each other when the host
// joins the fleet or renews its certificate: the token, and the proof of a renewal.
package hostjoin

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"

	"wrenn.dev"
)

const (
	prefix      = "wrenn-join"
	secretBytes = 32
	maxToken    = 256
)

// Token lets one host join once.
type Token struct {
	Host   wrenn.HostID
	Secret string // 32 random bytes, in base64
	// Authority is the fingerprint of the authority that signs the host's certificate.
	Authority string
}

// NewToken returns a token with a new secret.
func NewToken(host wrenn.HostID, authority string) Token {
	var b [secretBytes]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return Token{Host: host, Secret: base64.RawURLEncoding.EncodeToString(b[:]), Authority: authority}
}

// ParseToken is the inverse of Token.String. The error repeats nothing of the text.
func ParseToken(text string) (Token, error) {
	invalid := wrenn.Errorf(wrenn.Invalid, "the token is not one that `wrenn host token` prints")
	parts := strings.Split(text, ".")
	if len(text) > maxToken || len(parts) != 4 || parts[0] != prefix {
		return Token{}, invalid
	}
	host, err := wrenn.ParseHostID(parts[1])
	if err != nil {
		return Token{}, invalid
	}
	if b, err := base64.RawURLEncoding.DecodeString(parts[2]); err != nil || len(b) != secretBytes {
		return Token{}, invalid
	}
	return Token{host, parts[2], parts[3]}, nil
}

// String returns the token as ParseToken reads it.
func (t Token) String() string {
	return strings.Join([]string{prefix, string(t.Host), t.Secret, t.Authority}, ".")
}

// Hash is what the database has of the token: it is for this host, secret and authority alone.
func (t Token) Hash() []byte {
	sum := sha256.Sum256([]byte(t.String()))
	return sum[:]
}

// Renewal is a request for another certificate of a host that has one.
type Renewal struct {
	Certificate string // the one that it has, in PEM
	CSR         string // a certificate signing request for a new key, in PEM
	URL         string // where control planes reach the host
}

// digest is what the host signs with the key of its certificate.
func (r Renewal) digest() []byte {
	text, _ := json.Marshal([]string{"wrenn host renewal 1", r.Certificate, r.CSR, r.URL}) // texts can be marshalled
	sum := sha256.Sum256(text)
	return sum[:]
}

// Sign returns the proof that the renewal comes from the owner of the certificate's key.
func (r Renewal) Sign(key *ecdsa.PrivateKey) ([]byte, error) {
	return ecdsa.SignASN1(rand.Reader, key, r.digest())
}

// Proven reports whether proof was made by Sign with the private key of key.
func (r Renewal) Proven(key *ecdsa.PublicKey, proof []byte) bool {
	return ecdsa.VerifyASN1(key, r.digest(), proof)
}

// Fingerprint returns what a token names an authority by: the first half of the SHA-256
// of its certificate in DER, in hexadecimal digits.
func Fingerprint(certificate []byte) string {
	sum := sha256.Sum256(certificate)
	return hex.EncodeToString(sum[:sha256.Size/2])
}

const maxURL = 255

// CheckURL returns an Invalid error unless text can be where control planes reach a host.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || len(text) > maxURL || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return wrenn.Errorf(wrenn.Invalid, "%.100q is no url of a host: use https://ADDRESS:PORT, by which the control planes reach it", text)
	}
	return nil
}
