package controlplane

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"wrenn"
	"wrenn/internal/certs"
	"wrenn/internal/controlplane/service"
)

// Config is the configuration file. Zero values are the defaults that Defaults
// fills in; docs/api.md has a file with all of them.
type Config struct {
	// Listen is where the public API is.
	Listen string `toml:"listen"`
	// MetricsListen is where Prometheus finds /metrics; "" is nowhere.
	MetricsListen string `toml:"metrics_listen"`
	// ShutdownGrace is for requests that are under way at a stop.
	ShutdownGrace Duration `toml:"shutdown_grace"`

	TLS      Certificate `toml:"tls"`
	Log      Log         `toml:"log"`
	Database Database    `toml:"database"`
	Hosts    []Host      `toml:"host"`
	Limits   Limits      `toml:"limits"`
}

// Log says what is logged, to standard error.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn or error
	Format string `toml:"format"` // text or json
}

// Database is PostgreSQL. The URL may hold a password; it is never shown.
type Database struct {
	URL            string `toml:"url"`
	MaxConnections int    `toml:"max_connections"`
}

// Host is a machine with a host agent.
type Host struct {
	ID  string `toml:"id"`
	URL string `toml:"url"` // https://, unix:///path, or http:// on this machine
	// CA, and the certificate that the control plane shows, of an https host.
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

// Limits bound what a key and a team may use.
type Limits struct {
	RequestsPerSecond float64 `toml:"requests_per_second"` // of one key, on average
	RequestBurst      int     `toml:"request_burst"`       // of one key, at once
	Sandboxes         int     `toml:"sandboxes"`           // of a team, at once
	TeamMemoryMB      int     `toml:"team_memory_mb"`      // of all of a team's sandboxes that are not paused
	VCPUs             int     `toml:"vcpus"`               // of one sandbox
	MemoryMB          int     `toml:"memory_mb"`           // of one sandbox
	Templates         int     `toml:"templates"`           // of a team
	Builds            int     `toml:"builds"`              // of templates, of a team at a time
}

// Duration is written as time.ParseDuration reads it.
type Duration struct{ time.Duration }

// UnmarshalText is for the TOML reader.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// MarshalText is for the TOML writer.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Defaults are the values of whatever a file does not name.
func Defaults() Config {
	return Config{
		Listen: "127.0.0.1:8080", MetricsListen: "127.0.0.1:9464", ShutdownGrace: Duration{30 * time.Second},
		Log:      Log{Level: "info", Format: "text"},
		Database: Database{MaxConnections: 16},
		Limits:   Limits{RequestsPerSecond: 500, RequestBurst: 1000, Sandboxes: 100, TeamMemoryMB: 262144, VCPUs: 8, MemoryMB: 16384, Templates: 100, Builds: 4},
	}
}

// Load reads the file at path, or none when path is "", then puts the
// environment on top: DATABASE_URL, CP_LISTEN_ADDR, and CP_HOST_AGENT_ADDR for
// a control plane with one host. A key that nobody knows is an error.
func Load(path string, environ func(string) string) (Config, error) {
	c := Defaults()
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return c, fmt.Errorf("read the configuration: %w", err)
		}
		if err := c.decode(text); err != nil {
			return c, fmt.Errorf("%s: %w", path, err)
		}
	}
	c.Database.URL = cmp.Or(environ("DATABASE_URL"), c.Database.URL)
	c.Listen = cmp.Or(environ("CP_LISTEN_ADDR"), c.Listen)
	if host := environ("CP_HOST_AGENT_ADDR"); host != "" {
		c.Hosts = []Host{{ID: "default", URL: host}}
	}
	return c, c.check()
}

func (c *Config) decode(text []byte) error {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(c)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		return fmt.Errorf("unknown keys:\n%s", strict.String())
	}
	if fault, ok := errors.AsType[*toml.DecodeError](err); ok {
		return fmt.Errorf("%w:\n%s", fault, fault.String())
	}
	return err
}

// check says everything that is wrong, not only the first.
func (c *Config) check() error {
	var wrong []error
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		say("listen: %w", err)
	}
	if _, _, err := net.SplitHostPort(c.MetricsListen); c.MetricsListen != "" && err != nil {
		say("metrics_listen: %w", err)
	}
	if err := new(slog.Level).UnmarshalText([]byte(c.Log.Level)); err != nil {
		say("log.level: %q is none of debug, info, warn, error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		say("log.format: %q is neither text nor json", c.Log.Format)
	}
	if c.Database.URL == "" {
		say("database.url: not set, nor DATABASE_URL")
	}
	unheard := slog.New(slog.DiscardHandler) // Run says it again
	if _, err := c.TLS.open("", unheard); err != nil {
		say("tls: %w", err)
	}
	for name, n := range map[string]float64{
		"shutdown_grace": c.ShutdownGrace.Seconds(), "database.max_connections": float64(c.Database.MaxConnections),
		"limits.requests_per_second": c.Limits.RequestsPerSecond, "limits.request_burst": float64(c.Limits.RequestBurst),
		"limits.sandboxes": float64(c.Limits.Sandboxes), "limits.team_memory_mb": float64(c.Limits.TeamMemoryMB),
		"limits.vcpus": float64(c.Limits.VCPUs), "limits.memory_mb": float64(c.Limits.MemoryMB),
		"limits.templates": float64(c.Limits.Templates), "limits.builds": float64(c.Limits.Builds),
	} {
		if n <= 0 {
			say("%s: must be above 0", name)
		}
	}
	slices.SortFunc(wrong, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if _, err := c.hosts(unheard); err != nil {
		wrong = append(wrong, err)
	}
	return errors.Join(wrong...)
}

var hostID = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

// hosts are the hosts as the service takes them.
func (c *Config) hosts(log *slog.Logger) ([]service.Host, error) {
	var out []service.Host
	seen := map[string]bool{}
	for i, h := range c.Hosts {
		host, err := h.load(log)
		if err != nil {
			return nil, fmt.Errorf("host %d, %q: %w", i+1, h.ID, err)
		}
		if seen[h.ID] {
			return nil, fmt.Errorf("host %d: there are two of the id %q", i+1, h.ID)
		}
		seen[h.ID] = true
		out = append(out, host)
	}
	return out, nil
}

func (h *Host) load(log *slog.Logger) (service.Host, error) {
	none := service.Host{}
	if !hostID.MatchString(h.ID) {
		return none, errors.New("id: 1 to 63 of a-z, 0-9 and -")
	}
	u, err := url.Parse(h.URL)
	if err != nil {
		return none, fmt.Errorf("url: %w", err)
	}
	out := service.Host{ID: wrenn.HostID(h.ID), URL: h.URL}
	switch {
	case u.Scheme == "unix" && u.Path != "":
		return out, nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return out, nil
	case u.Scheme == "http":
		return none, fmt.Errorf("url: %s is another machine: commands and files would travel in the clear; use https", u.Host)
	case u.Scheme != "https" || u.Host == "":
		return none, fmt.Errorf("url: %q is neither https://, unix:///path nor http:// on this machine", h.URL)
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

// open returns nil when there is none. The authority, which may be "", is that of the others.
func (c *Certificate) open(authority string, log *slog.Logger) (*certs.Source, error) {
	if c.Certificate == "" && c.Key == "" {
		return nil, nil //nolint:nilnil // none is no error
	}
	if c.Certificate == "" || c.Key == "" {
		return nil, errors.New("certificate and key belong together")
	}
	return certs.Open(certs.Files{Certificate: c.Certificate, Key: c.Key, CA: authority}, log)
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// String is the effective configuration as a file, without secrets.
func (c Config) String() string {
	c.Database.URL = redact(c.Database.URL)
	text, err := toml.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// redact hides the password of a database's address. What is no URL may hold it anywhere.
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
