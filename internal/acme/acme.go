// Package acme gets the certificate of a domain from an authority that speaks ACME,
// such as Let's Encrypt, and renews it. The authority is shown a DNS record (DNS-01),
// because the certificate is for a wildcard.
package acme

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/cloudflare"
	"github.com/libdns/rfc2136"
	"go.uber.org/zap"

	"wrenn.dev"
	"wrenn.dev/internal/config"
	"wrenn.dev/internal/wake"
)

// Config says how to get certificates. The zero value gets none.
type Config struct {
	// DNS is how the record is set: cloudflare, rfc2136 or exec; "" is no certificate.
	DNS string `toml:"dns,omitempty"`
	// State is the directory for the account, the keys and the certificates. Several
	// control planes may share it.
	State string `toml:"state,omitempty"`
	// Email is what the authority writes to before a certificate expires; may be "".
	Email string `toml:"email,omitempty"`
	// Directory is the URL of the authority; default Let's Encrypt.
	Directory string `toml:"directory,omitempty"`
	// CA is a file, in PEM, with what signs the certificate of Directory itself; by
	// default what the system trusts.
	CA string `toml:"ca,omitempty"`
	// Resolvers are the DNS servers that must have the record before the authority is
	// asked to look; by default those of the system and the zone's own.
	Resolvers  []string   `toml:"resolvers,omitempty"`
	Cloudflare Cloudflare `toml:"cloudflare,omitempty"`
	RFC2136    RFC2136    `toml:"rfc2136,omitempty"`
	Exec       Exec       `toml:"exec,omitempty"`
}

// Cloudflare is an account there.
type Cloudflare struct {
	// TokenFile has an API token that may read the zone and edit its DNS.
	TokenFile string `toml:"token_file,omitempty"`
}

// RFC2136 is a DNS server that takes dynamic updates, such as BIND, Knot or PowerDNS.
type RFC2136 struct {
	Server       string `toml:"server,omitempty"`        // host:port
	KeyName      string `toml:"key_name,omitempty"`      // of the TSIG key
	KeyAlgorithm string `toml:"key_algorithm,omitempty"` // default hmac-sha256
	KeyFile      string `toml:"key_file,omitempty"`      // the TSIG key in base64
}

const (
	cloudflareDNS = "cloudflare"
	rfc2136DNS    = "rfc2136"
	execDNS       = "exec"

	providers = cloudflareDNS + ", " + rfc2136DNS + " or " + execDNS
)

// Enabled reports whether certificates are to be had.
func (c *Config) Enabled() bool { return c.DNS != "" }

// Complete implements config.Configuration; the environment has nothing for it.
func (c *Config) Complete(func(string) string) error { return nil }

// Check implements config.Configuration.
func (c *Config) Check(problems *config.Problems) {
	if !c.Enabled() {
		problems.Addf("dns: set it to %s", providers)
		return
	}
	if c.State == "" {
		problems.Addf("state: set it to a directory for the certificates")
	}
	_, err := c.provider()
	problems.Add(err)
	_, err = c.roots()
	problems.Add(err)
}

// provider returns what sets the record.
func (c *Config) provider() (certmagic.DNSProvider, error) {
	switch c.DNS {
	case cloudflareDNS:
		token, err := secret("cloudflare.token_file", c.Cloudflare.TokenFile)
		return &cloudflare.Provider{APIToken: token}, err
	case rfc2136DNS:
		if c.RFC2136.Server == "" || c.RFC2136.KeyName == "" {
			return nil, wrenn.Errorf(wrenn.Invalid, "rfc2136: set server, key_name and key_file")
		}
		key, err := secret("rfc2136.key_file", c.RFC2136.KeyFile)
		algorithm := c.RFC2136.KeyAlgorithm
		if algorithm == "" {
			algorithm = "hmac-sha256"
		}
		return &rfc2136.Provider{Server: c.RFC2136.Server, KeyName: c.RFC2136.KeyName, KeyAlg: algorithm, Key: key}, err
	case execDNS:
		return c.Exec.check()
	default:
		return nil, wrenn.Errorf(wrenn.Invalid, "dns %q: use %s", c.DNS, providers)
	}
}

// secret reads a file, so that no configuration has secrets.
func secret(key, path string) (string, error) {
	if path == "" {
		return "", wrenn.Errorf(wrenn.Invalid, "%s: set it to a file with the secret", key)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	if found := strings.TrimSpace(string(text)); found != "" {
		return found, nil
	}
	return "", wrenn.Errorf(wrenn.Invalid, "%s: %s is empty", key, path)
}

// roots returns nil for what the system trusts.
func (c *Config) roots() (*x509.CertPool, error) {
	if c.CA == "" {
		return nil, nil //nolint:nilnil // the system's
	}
	text, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, wrenn.Errorf(wrenn.Invalid, "ca: %s has no certificate in PEM", c.CA)
	}
	return pool, nil
}

// noEmail is no address. Without it certmagic asks for one on standard input, and waits.
const noEmail = " "

// Source has the certificate of a domain, once the authority has given it.
type Source struct {
	magic *certmagic.Config
	cache *certmagic.Cache
	name  string // of the certificate
	log   *slog.Logger
}

// Open returns a source of the certificate for *.domain. It is usable at once, and
// has no certificate before Run has one: the authority may be out of reach.
func Open(cfg Config, domain string, log *slog.Logger) (*Source, error) {
	provider, err := cfg.provider()
	if err != nil {
		return nil, err
	}
	roots, err := cfg.roots()
	if err != nil {
		return nil, err
	}
	s := &Source{name: "*." + domain, log: log}
	quiet := zap.NewNop() // observe logs what counts
	s.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return s.magic, nil }, RenewCheckInterval: renewalCheck, Logger: quiet,
	})
	s.magic = certmagic.New(s.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: cfg.State}, DefaultServerName: "api." + domain, OCSP: certmagic.OCSPConfig{DisableStapling: true},
		Logger: quiet, OnEvent: s.observe,
	})
	s.magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(s.magic, certmagic.ACMEIssuer{
		CA: cfg.Directory, TestCA: cfg.Directory, Email: cmp.Or(cfg.Email, noEmail), Agreed: true, DisableHTTPChallenge: true, DisableTLSALPNChallenge: true,
		TrustedRoots: roots, Logger: quiet,
		DNS01Solver: &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{DNSProvider: provider, Resolvers: cfg.Resolvers, Logger: quiet}},
	})}
	return s, nil
}

// observe logs what happens to the certificate. Run logs why it cannot get the first one.
func (s *Source) observe(ctx context.Context, event string, data map[string]any) error {
	name := slog.String("name", s.name)
	switch {
	case event == "cert_obtaining":
		s.log.LogAttrs(ctx, slog.LevelInfo, "asking the authority for a certificate", name)
	case event == "cert_obtained":
		s.log.LogAttrs(ctx, slog.LevelInfo, "certificate obtained", name)
	case event == "cert_failed" && data["renewal"] == true:
		s.log.LogAttrs(ctx, slog.LevelError, "cannot renew the certificate; will retry", name, slog.Any("err", data["error"]))
	}
	return nil
}

// The pauses after failures: authorities limit those of an hour.
const (
	pauseFactor  = 3
	longestPause = time.Hour
)

// Tests are quicker.
var (
	firstPause   = time.Minute
	renewalCheck = 10 * time.Minute // how often the certificate's age is looked at
)

// Run gets the certificate, unless an earlier run has, and renews it in time, until
// ctx ends. It retries what fails. Call it once.
func (s *Source) Run(ctx context.Context) error {
	defer s.cache.Stop()
	for pause := firstPause; ; pause = min(pauseFactor*pause, longestPause) {
		err := s.magic.ManageSync(ctx, []string{s.name})
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			s.log.LogAttrs(ctx, slog.LevelError, "cannot get a certificate; will retry", slog.String("name", s.name), slog.Any("err", err), slog.Duration("retry_in", pause))
		}
		if !wake.Sleep(ctx, pause) {
			return nil
		}
	}
	<-ctx.Done() // the cache renews it
	return nil
}

// Certificate is a tls.Config's GetCertificate. It fails before there is one.
func (s *Source) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	found, err := s.magic.GetCertificate(hello)
	if err != nil {
		return nil, fmt.Errorf("there is no certificate for %s yet: %w", s.name, err)
	}
	return found, nil
}
