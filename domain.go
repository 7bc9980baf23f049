package wrenn

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Domain is where a control plane is found by name: the API at api.NAME, ports of
// sandboxes at PORT-ID.NAME, both by TLS.
type Domain struct {
	Name string // lower case, without a final dot
	Port uint16 // that clients use
}

// defaultTLSPort is left out of URLs.
const defaultTLSPort = 443

// ParseDomain reads NAME or NAME:PORT. A name has two labels at least, because
// clients refuse certificates for *.localhost or *.com. Invalid says what is wrong.
func ParseDomain(text string) (Domain, error) {
	d := Domain{Name: text, Port: defaultTLSPort}
	if name, port, err := net.SplitHostPort(text); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Domain{}, Errorf(Invalid, "domain %.100q: a port is a number from 1 to 65535", text)
		}
		d.Name, d.Port = name, uint16(n)
	}
	d.Name = strings.ToLower(strings.TrimSuffix(d.Name, "."))
	labels := strings.Split(d.Name, ".")
	// A sandbox's label, 65535- and its id, must fit in front.
	if _, err := netip.ParseAddr(d.Name); err == nil || len(labels) < 2 || len(d.Name) > 220 {
		return Domain{}, Errorf(Invalid, "domain %.100q: give a name of two labels or more, as example.com or sandbox.localhost:8443", text)
	}
	for _, label := range labels {
		if !isDNSLabel(label) {
			return Domain{}, Errorf(Invalid, "domain %.100q: labels have 1 to 63 letters, digits and inner hyphens", text)
		}
	}
	return d, nil
}

func isDNSLabel(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

// String returns the domain as it is in URLs, and as E2B_DOMAIN.
func (d Domain) String() string {
	if d.Port == defaultTLSPort {
		return d.Name
	}
	return net.JoinHostPort(d.Name, strconv.Itoa(int(d.Port)))
}

// APIURL returns the URL of the API.
func (d Domain) APIURL() string { return "https://api." + d.String() }

// Local reports whether the name means this machine, whatever the DNS says.
func (d Domain) Local() bool { return strings.HasSuffix(d.Name, ".localhost") }
