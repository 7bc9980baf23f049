package controlplane

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wrenn.dev"
	"wrenn.dev/internal/acme"
	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/config"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/nodes"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/controlplane/tokenreview"
	"wrenn.dev/internal/tracing"
)

// Config is the configuration file; packaging/control-plane.toml has all keys.
type Config struct {
	// Listen is the address of the public API.
	Listen string `toml:"listen"`
	// PlainHTTP allows Listen to be reachable from other machines without TLS, for a proxy
	// in front that speaks TLS.
	PlainHTTP bool `toml:"plain_http"`
	// MetricsListen is the address of /metrics; "" is none.
	MetricsListen string `toml:"metrics_listen"`
	// ShutdownGrace is the time that requests in progress have at a stop.
	ShutdownGrace Duration `toml:"shutdown_grace"`

	// MemoryLimitMB is what the process should use at most, see budget.SetLimit; 0 is a 32nd of the machine's memory, at least 512.
	MemoryLimitMB int `toml:"memory_limit_mb"`

	TLS      Certificate `toml:"tls"`
	Domain   Domain      `toml:"domain"`
	Log      Log         `toml:"log"`
	Database Database    `toml:"database"`
	Hosts    []Host      `toml:"host"`
	Secrets  Secrets     `toml:"secrets"`
	Webhooks Webhooks    `toml:"webhooks"`
	Fleet    Fleet       `toml:"fleet"`
	Store    Store       `toml:"store"`
	Limits   Limits      `toml:"limits"`
	Traces   Traces      `toml:"traces"`
}

// Traces says which requests are traced, and where their spans are sent to.
type Traces struct {
	tracing.Export
	// Sample is the share of requests that are traced, 0 to 1.
	Sample float64 `toml:"sample"`
}

func (t Traces) check(problems *config.Problems) {
	t.Check(problems)
	if !(t.Sample >= 0 && t.Sample <= 1) { // NaN is neither
		problems.Addf("traces.sample: use 0 to 1")
	}
}

// Domain is where clients find the API and the ports of sandboxes by name.
type Domain struct {
	// Name is NAME or NAME:PORT; "" is none. A wildcard of it must lead here.
	Name string `toml:"name"`
	// Listen is another address on which the same is served, by TLS with
	// Certificate; "" is none: Config.Listen, or a proxy in front, serves the domain.
	Listen string `toml:"listen"`
	Certificate
	// ACME gets the certificate instead.
	ACME acme.Config `toml:"acme,omitempty"`
}

// Log configures the log, which goes to standard error.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn or error
	Format string `toml:"format"` // text or json
}

// Database is PostgreSQL. The URL may hold a password; it is never shown.
type Database struct {
	URL            string `toml:"url"`
	MaxConnections int    `toml:"max_connections"`
	// KeepEnded is how long ended sandboxes are listed, with their events; 0 is for good.
	KeepEnded Duration `toml:"keep_ended"`
	// KeepAudit is how long the audit log keeps an entry; 0 is for good.
	KeepAudit Duration `toml:"keep_audit"`
	// KeepUsage is how long the use of teams is kept; 0 is for good.
	KeepUsage Duration `toml:"keep_usage"`
}

// Host is a machine with a host agent.
type Host struct {
	ID  string `toml:"id"`
	URL string `toml:"url"` // https://, unix:///path, or http:// on this machine
	// CA is the authority of an https host's certificate; Certificate is the control plane's own.
	CA string `toml:"ca,omitempty"`
	// ServerName is the name that the host's certificate is for; default the host of URL.
	ServerName string `toml:"server_name,omitempty"`
	Certificate
}

// Certificate is a pair of PEM files; both or none.
type Certificate struct {
	Certificate string `toml:"certificate,omitempty"`
	Key         string `toml:"key,omitempty"`
}

// Limits bound the use of a team.
type Limits struct {
	RequestsPerSecond float64 `toml:"requests_per_second"` // of a team, on average
	RequestBurst      int     `toml:"request_burst"`       // of a team, at once
	OpenRequests      int     `toml:"open_requests"`       // of a team: commands, transfers and streams, too
	Sandboxes         int     `toml:"sandboxes"`           // of a team, at once
	TeamMemoryMB      int     `toml:"team_memory_mb"`      // of all of a team's sandboxes that are not paused
	VCPUs             int     `toml:"vcpus"`               // of one sandbox
	MemoryMB          int     `toml:"memory_mb"`           // of one sandbox
	DiskMB            int     `toml:"disk_mb"`             // of the disk of one sandbox
	Templates         int     `toml:"templates"`           // of a team
	Builds            int     `toml:"builds"`              // of templates, of a team at a time
	Volumes           int     `toml:"volumes"`             // of a team
	TeamVolumeMiB     int     `toml:"team_volume_mib"`     // of all of a team's volumes
	Secrets           int     `toml:"secrets"`             // of a team
}

// Secrets says where the keys are that encrypt the secrets of teams.
type Secrets struct {
	// KeyFiles are as age-keygen writes them. The first key encrypts, all decrypt.
	KeyFiles []string `toml:"key_files"`
}

// Webhooks says where events of teams may be sent to. Without it: by https to public
// addresses that are not this machine's.
type Webhooks struct {
	// AllowAddresses are networks that are reached although they are not public; DenyAddresses
	// are public ones that are not reached, such as those of other hosts.
	AllowAddresses []netip.Prefix `toml:"allow_addresses"`
	DenyAddresses  []netip.Prefix `toml:"deny_addresses"`
	// PlainHTTP allows URLs with http://.
	PlainHTTP bool `toml:"plain_http"`
}

// Store is the snapshot store of the hosts, as far as the control plane looks after it.
type Store struct {
	// Round is the length of a round of uploads: what nothing needs is deleted at most three
	// rounds later. 0 begins none, and deletes nothing.
	Round Duration `toml:"round"`
}

// minRound bounds Store.Round: each round, uploads send again what they share.
const minRound = time.Minute

// Fleet is what hosts join.
type Fleet struct {
	// Authority is the file that the command authority makes, the same for all control planes; "": no host can join.
	Authority string `toml:"authority"`
	// Kubernetes lets the nodes of its cluster join without a token of ours.
	Kubernetes tokenreview.Config `toml:"kubernetes"`
}

// reviewer returns what asks Kubernetes when hosts join, and what reads its nodes; nil if
// that is not configured.
func (f Fleet) reviewer(getenv func(string) string) (service.TokenReviewer, service.NodeReader, error) {
	if !f.Kubernetes.Enabled() {
		if f.Kubernetes.FollowNodes {
			return nil, nil, errors.New("fleet.kubernetes: follow_nodes needs service_accounts, by which nodes become hosts")
		}
		return nil, nil, nil
	}
	if f.Authority == "" {
		return nil, nil, errors.New("fleet.kubernetes: it needs authority of [fleet]")
	}
	reviewer, err := f.Kubernetes.Open(getenv)
	if err != nil {
		return nil, nil, fmt.Errorf("fleet.kubernetes: %w", err)
	}
	if !f.Kubernetes.FollowNodes {
		return reviewer, nil, nil
	}
	return reviewer, nodes.Reader{API: reviewer}, nil
}

// open loads the authority; nil if it is not set.
func (f Fleet) open() (*authority.Authority, error) {
	if f.Authority == "" {
		return nil, nil //nolint:nilnil // not set is no error
	}
	return authority.Load(f.Authority)
}

// Duration is written as time.ParseDuration reads it.
type Duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Defaults returns the values of the keys that a file leaves out.
func Defaults() Config {
	return Config{
		Listen: "127.0.0.1:8080", MetricsListen: "127.0.0.1:9464", ShutdownGrace: Duration{30 * time.Second},
		Log: Log{Level: "info", Format: "text"}, Secrets: Secrets{KeyFiles: []string{}},
		Fleet:    Fleet{Kubernetes: tokenreview.Config{ServiceAccounts: []string{}}},
		Webhooks: Webhooks{AllowAddresses: []netip.Prefix{}, DenyAddresses: []netip.Prefix{}},
		Database: Database{MaxConnections: 16, KeepEnded: Duration{30 * 24 * time.Hour}, KeepAudit: Duration{90 * 24 * time.Hour}, KeepUsage: Duration{400 * 24 * time.Hour}},
		Store:    Store{Round: Duration{24 * time.Hour}},
		Traces:   Traces{Sample: 0.1},
		Limits: Limits{
			RequestsPerSecond: 500, RequestBurst: 1000, OpenRequests: 1000,
			Sandboxes: 100, TeamMemoryMB: 262144, VCPUs: 8, MemoryMB: 16384, DiskMB: 20480,
			Templates: 100, Builds: 4, Volumes: 100, TeamVolumeMiB: 1 << 20, Secrets: 100,
		},
	}
}

// Load returns the configuration in the file at path, see config.Load.
func Load(path string, getenv func(string) string) (Config, error) {
	return config.Load[Config](path, Defaults(), getenv)
}

// Complete implements config.Configuration: DATABASE_URL and CP_LISTEN_ADDR
// replace values of the file, and CP_HOST_AGENT_ADDR replaces its hosts by one.
func (c *Config) Complete(getenv func(string) string) error {
	c.Database.URL = cmp.Or(getenv("DATABASE_URL"), c.Database.URL)
	c.Listen = cmp.Or(getenv("CP_LISTEN_ADDR"), c.Listen)
	if host := getenv("CP_HOST_AGENT_ADDR"); host != "" {
		c.Hosts = []Host{{ID: "default", URL: host}}
	}
	return nil
}

// Check implements config.Configuration.
func (c *Config) Check(problems *config.Problems) {
	if host, _, err := net.SplitHostPort(c.Listen); err != nil {
		problems.Addf("listen: %w", err)
	} else if !loopback(host) && c.TLS == (Certificate{}) && !c.PlainHTTP {
		problems.Addf("listen: other machines reach %s without TLS, so API keys and files would travel unencrypted: set certificate and key of [tls], listen on 127.0.0.1 behind a proxy on this machine, or set plain_http = true if a proxy elsewhere speaks TLS to clients", c.Listen)
	}
	if _, _, err := net.SplitHostPort(c.MetricsListen); c.MetricsListen != "" && err != nil {
		problems.Addf("metrics_listen: %w", err)
	}
	if err := new(slog.Level).UnmarshalText([]byte(c.Log.Level)); err != nil {
		problems.Addf("log.level %q: use debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		problems.Addf("log.format %q: use text or json", c.Log.Format)
	}
	if c.Database.URL == "" {
		problems.Addf("database.url: set it, or DATABASE_URL in the environment")
	}
	discard := slog.New(slog.DiscardHandler) // Run loads the certificates again, and logs
	if _, err := c.TLS.open("", discard); err != nil {
		problems.Addf("tls: %w", err)
	}
	c.Domain.check(problems, discard)
	for name, n := range map[string]float64{
		"shutdown_grace": c.ShutdownGrace.Seconds(), "database.max_connections": float64(c.Database.MaxConnections),
		"limits.requests_per_second": c.Limits.RequestsPerSecond, "limits.request_burst": float64(c.Limits.RequestBurst),
		"limits.open_requests": float64(c.Limits.OpenRequests),
		"limits.sandboxes":     float64(c.Limits.Sandboxes), "limits.team_memory_mb": float64(c.Limits.TeamMemoryMB),
		"limits.vcpus": float64(c.Limits.VCPUs), "limits.memory_mb": float64(c.Limits.MemoryMB),
		"limits.disk_mb":   float64(c.Limits.DiskMB),
		"limits.templates": float64(c.Limits.Templates), "limits.builds": float64(c.Limits.Builds),
		"limits.volumes": float64(c.Limits.Volumes), "limits.team_volume_mib": float64(c.Limits.TeamVolumeMiB), "limits.secrets": float64(c.Limits.Secrets),
	} {
		if n <= 0 {
			problems.Addf("%s: must be above 0", name)
		}
	}
	if c.Database.KeepEnded.Duration < 0 {
		problems.Addf("database.keep_ended: must not be below 0")
	}
	if c.Database.KeepAudit.Duration < 0 {
		problems.Addf("database.keep_audit: must not be below 0")
	}
	if c.Database.KeepUsage.Duration < 0 {
		problems.Addf("database.keep_usage: must not be below 0")
	}
	if round := c.Store.Round.Duration; round != 0 && round < minRound {
		problems.Addf("store.round: use 0s for none, or %s or more", minRound)
	}
	c.Traces.check(problems)
	if c.MemoryLimitMB < 0 {
		problems.Addf("memory_limit_mb: must not be below 0")
	}
	if _, err := c.hosts(discard); err != nil {
		problems.Add(err)
	}
	if _, err := c.Fleet.open(); err != nil {
		problems.Add(err)
	}
	if _, _, err := c.Fleet.reviewer(os.Getenv); err != nil {
		problems.Add(err)
	}
}

// url is the domain as it is in URLs, "" without one. Check was called.
func (d *Domain) url() string {
	if d.Name == "" {
		return ""
	}
	domain, _ := wrenn.ParseDomain(d.Name) // was checked
	return domain.String()
}

func (d *Domain) check(problems *config.Problems, discard *slog.Logger) {
	if d.Name == "" {
		if d.Listen != "" || d.Certificate != (Certificate{}) || d.ACME.Enabled() {
			problems.Addf("domain.name: set it, or leave the rest of [domain] out")
		}
		return
	}
	if _, err := wrenn.ParseDomain(d.Name); err != nil {
		problems.Addf("domain.name: %w", err)
	}
	identity, err := d.open("", discard)
	if err != nil {
		problems.Addf("domain: %w", err)
	}
	if d.ACME.Enabled() {
		if d.Certificate != (Certificate{}) || d.Listen == "" {
			problems.Addf("domain.acme: it needs listen, and replaces certificate and key")
		}
		d.ACME.Check(problems)
	}
	if d.Listen == "" {
		if identity != nil {
			problems.Addf("domain.listen: set it to serve by the certificate of [domain]; that of listen is in [tls]")
		}
		return
	}
	if _, _, err := net.SplitHostPort(d.Listen); err != nil {
		problems.Addf("domain.listen: %w", err)
	}
	if identity == nil && err == nil && !d.ACME.Enabled() {
		problems.Addf("domain: set certificate and key, of a certificate for *.%s, or acme", d.Name)
	}
}

// hosts returns the hosts as the service needs them. The error has all problems.
func (c *Config) hosts(log *slog.Logger) ([]service.Host, error) {
	var out []service.Host
	var problems []error
	ids := map[string]bool{}
	for i, h := range c.Hosts {
		host, err := h.load(log)
		if err != nil {
			problems = append(problems, fmt.Errorf("host %d, %q: %w", i+1, h.ID, err))
		}
		if ids[h.ID] {
			problems = append(problems, fmt.Errorf("host %d, %q: another host has the same id", i+1, h.ID))
		}
		ids[h.ID] = true
		out = append(out, host)
	}
	return out, errors.Join(problems...)
}

func (h *Host) load(log *slog.Logger) (service.Host, error) {
	none := service.Host{}
	id, err := wrenn.ParseHostID(h.ID)
	if err != nil {
		return none, fmt.Errorf("id: %w", err)
	}
	u, err := url.Parse(h.URL)
	if err != nil {
		return none, fmt.Errorf("url: %w", err)
	}
	out := service.Host{ID: id, URL: h.URL}
	switch {
	case u.Scheme == "unix" && u.Path != "":
		return out, nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return out, nil
	case u.Scheme == "http":
		return none, fmt.Errorf("url: %s is another machine, to which commands and files would travel unencrypted: use https", u.Host)
	case u.Scheme != "https" || u.Host == "":
		return none, fmt.Errorf("url %q: use https://, unix:///path, or http:// on this machine", h.URL)
	}
	if h.CA == "" {
		return none, errMutual
	}
	identity, err := h.open(h.CA, log)
	if err != nil {
		return none, err
	}
	if identity == nil {
		return none, errMutual
	}
	out.TLS = func() *tls.Config { return identity.Client(h.ServerName) }
	return out, nil
}

var errMutual = errors.New("an https host needs ca, certificate and key")

// open loads the pair; nil if it is not set. authority, which may be "", is the
// file with the authority of the other side's certificate.
func (c *Certificate) open(authority string, log *slog.Logger) (*certs.Source, error) {
	if c.Certificate == "" && c.Key == "" {
		return nil, nil //nolint:nilnil // not set is no error
	}
	if c.Certificate == "" || c.Key == "" {
		return nil, errors.New("set both certificate and key")
	}
	return certs.Open(certs.Files{Certificate: c.Certificate, Key: c.Key, CA: authority}, log)
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// String returns the configuration as a file, without secrets.
func (c Config) String() string {
	c.Database.URL = redact(c.Database.URL)
	text, err := toml.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// redact hides the password in a database's address, and all of an address that is
// not a URL.
func redact(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" {
		if address == "" {
			return ""
		}
		return "[not shown]"
	}
	query := u.Query()
	if query.Has("password") {
		query.Set("password", "xxxxx")
		u.RawQuery = query.Encode()
	}
	return u.Redacted()
}
