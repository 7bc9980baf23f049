package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/cli/up"
	"wrenn.dev/internal/localca"
)

type certCommand struct {
	State  string `default:"/var/lib/wrenn" type:"path" help:"The state directory of wrenn up."`
	Domain string `default:"sandbox.localhost" placeholder:"NAME" help:"The --domain of wrenn up; default: ${default}."`
}

// Run shows the authority of the domain. It makes one if there is none, which needs root.
func (c *certCommand) Run(_ context.Context, s *session) error {
	domain, err := wrenn.ParseDomain(c.Domain)
	if err != nil {
		return err
	}
	dir := up.CertificatesDir(c.State)
	authority, err := localca.Find(dir, domain.Name)
	if errors.Is(err, fs.ErrNotExist) && os.Geteuid() != 0 {
		return wrenn.Errorf(wrenn.FailedPrecondition, "there is no certificate authority for %s yet: sudo wrenn cert --domain %[1]s, or sudo wrenn up --domain %[1]s", domain.Name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		authority, err = c.make(dir, domain.Name)
	}
	if err != nil {
		return err
	}
	cert := authority.Certificate()
	result := struct {
		Domain      string    `json:"domain"`
		File        string    `json:"file"`
		Fingerprint string    `json:"sha256"`
		Until       time.Time `json:"until"`
	}{authority.Domain, authority.File(), authority.Fingerprint(), cert.NotAfter}
	return s.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "The certificate authority of this machine for %s and *.%[1]s\n\n  file     %s\n  SHA-256  %s\n  until    %s\n\n%s",
			result.Domain, result.File, result.Fingerprint, result.Until.Format(time.DateOnly), trustHelp(result.File))
	})
}

func (c *certCommand) make(dir, domain string) (*localca.Authority, error) {
	if err := os.MkdirAll(c.State, 0o711); err != nil {
		return nil, err
	}
	return localca.Open(dir, domain)
}

// trustHelp says how programs get to trust the authority's certificate.
func trustHelp(file string) string {
	return fmt.Sprintf(`Programs trust it by one of these:

  Python        export SSL_CERT_FILE=%[1]s
  Node.js       export NODE_EXTRA_CA_CERTS=%[1]s
  curl          curl --cacert %[1]s …
  all programs  sudo cp %[1]s /usr/local/share/ca-certificates/wrenn.crt && sudo update-ca-certificates
  browsers      import it as an authority; Firefox and Chromium do not use the system's

It signs for this domain alone. With SSL_CERT_FILE a program trusts nothing else: add the system's certificates to a copy of the file if it needs them.
`, file)
}

// domainHelp says how to use the domain, "" without one.
func domainHelp(ctx context.Context, d *up.RunningDomain, config string) string {
	if d == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nBy names: %s, and https://PORT-ID.%s for ports of sandboxes\n", d.APIURL(), d)
	fmt.Fprintf(&b, "  E2B   export E2B_DOMAIN=%s E2B_API_KEY=$(sed -n \"s/^key = '\\(.*\\)'/\\1/p\" %s)\n", d, config)
	if d.Authority != "" {
		fmt.Fprintf(&b, "        export SSL_CERT_FILE=%s NODE_EXTRA_CA_CERTS=%[1]s\n        unset E2B_API_URL E2B_SANDBOX_URL E2B_VOLUME_API_URL; wrenn cert --domain %s says more\n", d.Authority, d.Name)
	}
	if _, err := net.DefaultResolver.LookupHost(ctx, "api."+d.Name); err != nil {
		advice := "make *." + d.Name + " lead to this machine in the DNS"
		if d.Local() {
			advice = "install libnss-myhostname, or systemd-resolved"
		}
		fmt.Fprintf(&b, "  This machine cannot look up api.%s: %s\n", d.Name, advice)
	}
	return b.String()
}
