// Package member makes this machine a host of a fleet: it joins by a token, or by that of
// a service account of Kubernetes, keeps the
// certificate by which control planes know it, and renews that.
//
// The key never leaves the machine. Certificate and key are one file, so that a crash
// cannot leave one without the other.
package member

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/untrusted"
)

const (
	// DefaultListen is where the agent of a host that joined listens.
	DefaultListen = ":49980"

	callTimeout = 30 * time.Second
	maxAnswer   = 64 << 10
	// maxSkew is how far the clock may be from the control plane's. Certificates are
	// valid from an hour before they are made, and renewed half a day before their end.
	maxSkew = 5 * time.Minute
)

// Names of the files in the directory.
const (
	directory     = "fleet"
	detailsFile   = "host.json"
	identityFile  = "host.pem" // certificate and key
	authorityFile = "authority.pem"
	serverCAFile  = "control-plane-ca.pem" // may be missing
)

// Member is a host that joined. It needs no closing. Renew must not be called by two
// goroutines at once.
type Member struct {
	dir     string
	details details
	http    *http.Client
}

// details are what joining has set.
type details struct {
	Host         wrenn.HostID `json:"host"`
	ControlPlane string       `json:"control_plane"`
	Listen       string       `json:"listen"`
	URL          string       `json:"url,omitempty"` // "": the address by which the machine reaches the control plane
	// Address is where the name of ControlPlane led when the host joined, as HOST:PORT. It
	// is used when the name is not known, as that of a service of Kubernetes on its nodes.
	Address string `json:"address,omitempty"`
}

// Join is how to join. ControlPlane and Token are required.
type Join struct {
	StateDir     string // of the agent
	ControlPlane string // url of the public API; https, or http on this machine
	Token        string // that of `wrenn host token`, or of a service account of Kubernetes
	Name         string // for people; "" is the machine's
	Listen       string // address of the agent; "" is DefaultListen
	// URL is where control planes reach the agent; "" is the port of Listen at the
	// address by which this machine reaches the control plane.
	URL string
	// CA is a file with the authority of the control plane's certificate; "" are those of the machine.
	CA string
}

// Open returns the member whose files are in the state directory of an agent: an error
// that is fs.ErrNotExist when the host has not joined.
func Open(stateDir string) (*Member, error) {
	m := &Member{dir: filepath.Join(stateDir, directory)}
	text, err := os.ReadFile(m.path(detailsFile))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &m.details); err != nil {
		return nil, fmt.Errorf("%s: %w", m.path(detailsFile), err)
	}
	m.http, err = newClient(m.path(serverCAFile), m.details.Address)
	return m, err
}

// Host is the id of this host.
func (m *Member) Host() wrenn.HostID { return m.details.Host }

// Listen is the address of the agent.
func (m *Member) Listen() string { return m.details.Listen }

// Files are those of the agent's mutual TLS. They change when the certificate is renewed.
func (m *Member) Files() certs.Files {
	return certs.Files{Certificate: m.path(identityFile), Key: m.path(identityFile), CA: m.path(authorityFile)}
}

func (m *Member) path(name string) string { return filepath.Join(m.dir, name) }

// Do joins. The token is used up when it succeeds, and when only its answer is lost. A
// host that joined before may do so again with a token for the same host id.
func (j Join) Do(ctx context.Context) (*Member, error) {
	host, authority, err := j.proof()
	if err != nil {
		return nil, err
	}
	m, err := j.prepare(ctx, host)
	if err != nil {
		return nil, err
	}
	if err := m.checkClock(ctx); err != nil {
		return nil, err
	}
	at, err := m.url(ctx)
	if err != nil {
		return nil, err
	}
	key, csr, err := newKey(m.details.Host)
	if err != nil {
		return nil, err
	}
	name := j.Name
	if name == "" {
		name, _ = os.Hostname() // only for people
	}
	var got answer
	if err := m.call(ctx, "/v1/host-joins", joinRequest{Token: j.Token, CSR: csr, URL: at, Name: name}, &got); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	if err := got.checkAuthority(authority); err != nil {
		return nil, err
	}
	return m, m.save(got, key)
}

// proof returns the host that the token is for, and the fingerprint of the authority that
// it names: "" for a service account's, where TLS alone proves the control plane.
func (j Join) proof() (host wrenn.HostID, authority string, err error) {
	if hostjoin.IsAccountToken(j.Token) {
		node, err := hostjoin.NodeOf(j.Token)
		return node.Host, "", err
	}
	token, err := hostjoin.ParseToken(j.Token)
	return token.Host, token.Authority, err
}

// prepare makes the directory, and the member without its certificate.
func (j Join) prepare(ctx context.Context, host wrenn.HostID) (*Member, error) {
	base, err := url.Parse(j.ControlPlane)
	if err != nil || base.Host == "" || base.Scheme != "https" && (base.Scheme != "http" || !loopback(base.Hostname())) {
		return nil, wrenn.Errorf(wrenn.Invalid, "%.100q is no url of a control plane: use https://, or http:// on this machine", j.ControlPlane)
	}
	listen := j.Listen
	if listen == "" {
		listen = DefaultListen
	}
	if _, port, err := net.SplitHostPort(listen); err != nil || port == "" || port == "0" {
		return nil, wrenn.Errorf(wrenn.Invalid, "listen %.100q: use an address and a port, such as %s", j.Listen, DefaultListen)
	}
	if j.URL != "" {
		if err := hostjoin.CheckURL(j.URL); err != nil {
			return nil, err
		}
	}
	m := &Member{
		dir:     filepath.Join(j.StateDir, directory),
		details: details{Host: host, ControlPlane: strings.TrimSuffix(j.ControlPlane, "/"), Listen: listen, URL: j.URL, Address: addressOf(ctx, base)},
	}
	if before, err := Open(j.StateDir); err == nil && before.Host() != host {
		return nil, wrenn.Errorf(wrenn.FailedPrecondition, "this machine is host %s, and its sandboxes are known under that id, not under %s: make a token with `wrenn host token --id %[1]s`", before.Host(), host)
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	if j.CA != "" {
		text, err := os.ReadFile(j.CA)
		if err != nil {
			return nil, fmt.Errorf("authority of the control plane: %w", err)
		}
		if err := durable.WriteFile(m.path(serverCAFile), text, 0o644); err != nil {
			return nil, err
		}
	}
	m.http, err = newClient(m.path(serverCAFile), m.details.Address)
	return m, err
}

// addressOf returns where the name in the url leads now, "" if that is not known.
func addressOf(ctx context.Context, base *url.URL) string {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, base.Hostname())
	if err != nil {
		return "" // the call that follows says why
	}
	return net.JoinHostPort(addresses[0], portOf(base))
}

func portOf(base *url.URL) string {
	if port := base.Port(); port != "" {
		return port
	}
	return base.Scheme
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// newClient returns a client that trusts the authorities in the file, or those of the
// machine without one. It connects to address where a name is not known, unless that is "".
func newClient(ca, address string) (*http.Client, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	switch text, err := os.ReadFile(ca); {
	case err == nil:
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("authority of the control plane: %s holds no certificate in PEM", ca)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return untrusted.Client(&http.Transport{TLSClientConfig: cfg, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableKeepAlives: true, DialContext: dialer(address)}), nil
}

// dialer returns a dialer that connects to address where a name is not known.
func dialer(address string) func(ctx context.Context, network, to string) (net.Conn, error) {
	return func(ctx context.Context, network, to string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, to)
		if unknown, ok := errors.AsType[*net.DNSError](err); ok && address != "" && !unknown.Timeout() {
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		return conn, err
	}
}

// checkClock fails when the clocks of this machine and the control plane differ: then
// one would refuse the certificates of the other. No token is used for it.
func (m *Member) checkClock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.details.ControlPlane+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return m.unreachable(err)
	}
	defer resp.Body.Close()
	now, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return nil // a proxy that tells no time
	}
	return skewed(now)
}

// skewed returns an error when this machine's clock is far from the control plane's.
func skewed(now time.Time) error {
	skew := time.Since(now)
	if skew.Abs() <= maxSkew {
		return nil
	}
	way := "ahead of"
	if skew < 0 {
		way = "behind"
	}
	return wrenn.Errorf(wrenn.FailedPrecondition, "the clock of this machine is %s %s the control plane's: certificates would be refused; set the clock, as chrony does",
		skew.Abs().Round(time.Minute), way)
}

// unreachable is the error of a call that had no answer.
func (m *Member) unreachable(err error) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fmt.Errorf("the control plane's certificate is not valid at %s, the time of this machine: if that is wrong, set the clock: %w", time.Now().UTC().Format(time.RFC3339), err)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("this machine does not trust the control plane's certificate: give its authority by --ca: %w", err)
	}
	return fmt.Errorf("reach the control plane: %w", err)
}

// url returns where control planes reach the agent now.
func (m *Member) url(ctx context.Context) (string, error) {
	if m.details.URL != "" {
		return m.details.URL, nil
	}
	host, port, err := net.SplitHostPort(m.details.Listen)
	if err != nil {
		return "", err
	}
	if address, err := netip.ParseAddr(host); err == nil && !address.IsUnspecified() {
		return "https://" + m.details.Listen, nil
	}
	base, err := url.Parse(m.details.ControlPlane)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := dialer(m.details.Address)(ctx, "tcp", net.JoinHostPort(base.Hostname(), portOf(base)))
	if err != nil {
		return "", fmt.Errorf("find the address of this machine: %w", err)
	}
	defer conn.Close()
	own, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return "https://" + net.JoinHostPort(own, port), err
}

type joinRequest struct {
	Token string `json:"token"`
	CSR   string `json:"csr"`
	URL   string `json:"url"`
	Name  string `json:"name,omitempty"`
}

type renewRequest struct {
	Certificate string `json:"certificate"`
	CSR         string `json:"csr"`
	URL         string `json:"url"`
	Signature   string `json:"signature"`
}

// answer is what a control plane answers to both.
type answer struct {
	Certificate string    `json:"certificate"`
	Authority   string    `json:"authority"`
	Until       time.Time `json:"certificate_until"`
	Now         time.Time `json:"now"`
}

// checkAuthority fails unless the authority is the one that the token names, if it names one.
func (a answer) checkAuthority(fingerprint string) error {
	block, _ := pem.Decode([]byte(a.Authority))
	if block == nil {
		return wrenn.Errorf(wrenn.Unauthenticated, "the control plane sent no certificate of its authority")
	}
	if fingerprint != "" && hostjoin.Fingerprint(block.Bytes) != fingerprint {
		return wrenn.Errorf(wrenn.Unauthenticated, "the control plane has another authority than the one that the token names: was the url right?")
	}
	return nil
}

// newKey returns a new key and its certificate signing request, in PEM.
func newKey(host wrenn.HostID) (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	raw, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: string(host)}, DNSNames: []string{string(host)},
	}, key)
	if err != nil {
		return nil, "", err
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: raw})), nil
}

// save stores what was answered. The details are written last: without them the host has not joined.
func (m *Member) save(got answer, key *ecdsa.PrivateKey) error {
	if err := durable.WriteFile(m.path(authorityFile), []byte(got.Authority), 0o644); err != nil {
		return err
	}
	if err := m.saveIdentity(got, key); err != nil {
		return err
	}
	text, err := json.Marshal(m.details)
	if err != nil {
		return err
	}
	return durable.WriteFile(m.path(detailsFile), append(text, '\n'), 0o644)
}

func (m *Member) saveIdentity(got answer, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := []byte(got.Certificate + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})))
	if _, err := tls.X509KeyPair(text, text); err != nil {
		return fmt.Errorf("the control plane sent a certificate of another key: %w", err)
	}
	return durable.WriteFile(m.path(identityFile), text, 0o600)
}

// call posts a request. The error of the control plane is a *wrenn.Error.
func (m *Member) call(ctx context.Context, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.details.ControlPlane+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := m.http.Do(req)
	if err != nil {
		return m.unreachable(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the control plane's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.StatusCode, text)
	}
	return json.Unmarshal(text, out)
}

// refusal is the error in an answer.
func refusal(status int, text []byte) error {
	var problem struct {
		Error struct{ Message string }
	}
	if json.Unmarshal(text, &problem) != nil || problem.Error.Message == "" {
		return wrenn.Errorf(wrenn.Unavailable, "the control plane answered with status %d: is the url that of its API?", status)
	}
	code := wrenn.Unavailable
	switch status {
	case http.StatusUnauthorized:
		code = wrenn.Unauthenticated
	case http.StatusForbidden:
		code = wrenn.PermissionDenied
	case http.StatusBadRequest:
		code = wrenn.Invalid
	case http.StatusConflict:
		code = wrenn.FailedPrecondition
	}
	return wrenn.Errorf(code, "%s", problem.Error.Message)
}

// Renew gets another certificate for a new key, and tells the control planes where the
// host is now. It returns how long the certificate is valid.
func (m *Member) Renew(ctx context.Context) (valid time.Duration, err error) {
	pair, err := tls.LoadX509KeyPair(m.path(identityFile), m.path(identityFile))
	if err != nil {
		return 0, fmt.Errorf("certificate of this host: %w", err)
	}
	old, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return 0, fmt.Errorf("%s has a key of another kind than ECDSA", m.path(identityFile))
	}
	key, csr, err := newKey(m.details.Host)
	if err != nil {
		return 0, err
	}
	at, err := m.url(ctx)
	if err != nil {
		return 0, err
	}
	ask := hostjoin.Renewal{Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})), CSR: csr, URL: at}
	proof, err := ask.Sign(old)
	if err != nil {
		return 0, err
	}
	var got answer
	err = m.call(ctx, "/v1/host-renewals", renewRequest{ask.Certificate, ask.CSR, ask.URL, base64.StdEncoding.EncodeToString(proof)}, &got)
	if err != nil {
		return 0, err
	}
	if err := m.saveIdentity(got, key); err != nil {
		return 0, err
	}
	return got.Until.Sub(got.Now), skewed(got.Now)
}
