package up

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/localca"
)

// CertificatesDir returns the directory of this machine's authorities, one for
// each domain, in the state directory.
func CertificatesDir(state string) string { return filepath.Join(state, "tls") }

// domainListen is where the domain is served.
func (m *machine) domainListen() string {
	if m.cfg.DomainListen != "" {
		return m.cfg.DomainListen
	}
	host := ""
	if m.cfg.Domain.Local() {
		host = "localhost"
	}
	return net.JoinHostPort(host, strconv.Itoa(int(m.cfg.Domain.Port)))
}

// openDomain has the control plane serve the domain, if there is one: by the
// caller's certificate, or by one of this machine's authority, which is kept renewed.
func (m *machine) openDomain(context.Context) error {
	if m.cfg.Domain.Name == "" {
		return nil
	}
	m.domain = &RunningDomain{Domain: m.cfg.Domain}
	files := m.cfg.Certificate
	if files == (certs.Files{}) && !m.cfg.ACME.Enabled() {
		authority, err := localca.Open(CertificatesDir(m.cfg.StateDir), m.cfg.Domain.Name)
		if err != nil {
			return err
		}
		if err := authority.Renew(time.Now()); err != nil {
			return err
		}
		m.start("the renewal of certificates", func(ctx context.Context) error { return authority.KeepRenewed(ctx, m.log) })
		files, m.domain.Authority = authority.Files(), authority.File()
	}
	m.cp.Domain = controlplane.Domain{
		Name: m.cfg.Domain.String(), Listen: m.domainListen(),
		Certificate: controlplane.Certificate{Certificate: files.Certificate, Key: files.Key}, ACME: m.cfg.ACME,
	}
	return nil
}
