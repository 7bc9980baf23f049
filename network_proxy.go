package wrenn

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// ProxyProtocol is how a host speaks to an egress proxy.
type ProxyProtocol string

// The values of ProxyProtocol.
const (
	ProxySOCKS5 ProxyProtocol = "socks5"
	ProxyHTTP   ProxyProtocol = "http" // by CONNECT
)

// ProxyPasswordSecret is the key of an egress proxy's password in SecretValues. Names of
// secrets have no braces.
const ProxyPasswordSecret = "{egress proxy}"

// Bounds of an EgressProxy. That of credentials is SOCKS5's, RFC 1929.
const (
	maxProxyCredential = 255
	maxProxyName       = 253
	maxProxyCA         = 8192
)

// EgressProxy is a server of the user through which the TCP connections of a sandbox
// go. The JSON form is that of host journals and of the database.
type EgressProxy struct {
	Protocol ProxyProtocol `json:"protocol"`
	Host     string        `json:"host"` // a canonical name or an IPv4 address
	Port     uint16        `json:"port"`
	Username string        `json:"username,omitempty"`
	// HasPassword reports whether the proxy needs a password besides.
	HasPassword bool `json:"has_password,omitempty"`
	// Sealed is the encrypted password. Only the control plane has it.
	Sealed []byte `json:"sealed,omitempty"`
	// SealedKey is the id of the key that encrypts it; "" in older rows.
	SealedKey string `json:"sealed_key,omitempty"`
	// Password is set between the request of a user and its encryption alone.
	Password string `json:"-"`
	// TLS is how TLS is spoken to the proxy; nil: not at all.
	TLS *ProxyTLS `json:"tls,omitempty"`
}

// ProxyTLS says how an egress proxy proves who it is. Its certificate is always verified.
type ProxyTLS struct {
	ServerName string `json:"server_name,omitempty"` // "" is the proxy's Host
	CA         string `json:"ca,omitempty"`          // PEM; "" is the authorities of the host's machine
}

// ParseProxyAddress reads HOST:PORT of a proxy: an IPv4 address or a name, and a port.
// Invalid when it is none.
func ParseProxyAddress(text string) (host string, port uint16, err error) {
	name, number, err := net.SplitHostPort(text)
	if err == nil {
		host = CanonicalName(name)
		err = CheckEgressHost(host)
	}
	n, portErr := strconv.ParseUint(number, 10, 16)
	if err != nil || portErr != nil || n == 0 {
		return "", 0, Errorf(Invalid, "egress proxy %.80q is not HOST:PORT, such as proxy.example.com:1080 or 203.0.113.7:1080", text)
	}
	return host, uint16(n), nil
}

// ParseEgressProxy reads a proxy from a URL: socks5://, socks5s:// (with TLS), http:// or
// https://, with the port, and with user and password if it needs them. Invalid names what
// is wrong, without the password.
func ParseEgressProxy(text string) (*EgressProxy, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Opaque != "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, Errorf(Invalid, "the egress proxy is a URL such as socks5://USER:PASSWORD@proxy.example.com:1080 or http://proxy.example.com:3128; characters such as / and @ in a password are written as %%2F and %%40")
	}
	p := &EgressProxy{}
	switch u.Scheme {
	case "socks5", "socks5h":
		p.Protocol = ProxySOCKS5
	case "socks5s":
		p.Protocol, p.TLS = ProxySOCKS5, &ProxyTLS{}
	case "http":
		p.Protocol = ProxyHTTP
	case "https":
		p.Protocol, p.TLS = ProxyHTTP, &ProxyTLS{}
	default:
		return nil, Errorf(Invalid, "egress proxies are socks5://, socks5s://, http:// and https://, not %.20q", u.Scheme)
	}
	if p.Host, p.Port, err = ParseProxyAddress(u.Host); err != nil {
		return nil, err
	}
	p.Username = u.User.Username()
	p.Password, _ = u.User.Password()
	p.HasPassword = p.Password != ""
	return p, p.Check()
}

// Check returns an Invalid error unless a host can use the proxy.
func (p *EgressProxy) Check() error {
	if p.Protocol != ProxySOCKS5 && p.Protocol != ProxyHTTP {
		return Errorf(Invalid, "this version does not know the protocol %.20q of egress proxies", string(p.Protocol))
	}
	if err := CheckEgressHost(p.Host); err != nil || p.Port == 0 {
		return Errorf(Invalid, "egress proxy %.80q has no host and port", p.Address())
	}
	switch {
	case len(p.Username) > maxProxyCredential || len(p.Password) > maxProxyCredential:
		return Errorf(Invalid, "user and password of an egress proxy have at most %d bytes each", maxProxyCredential)
	case !ValidHeaderText(p.Username) || !ValidHeaderText(p.Password):
		return Errorf(Invalid, "user and password of an egress proxy have no control characters")
	case p.Username == "" && p.HasPassword:
		return Errorf(Invalid, "an egress proxy with a password needs a user")
	case p.Protocol == ProxySOCKS5 && p.Username != "" && !p.HasPassword:
		return Errorf(Invalid, "an egress proxy that speaks SOCKS5 takes a user only with a password")
	case p.Protocol == ProxyHTTP && strings.Contains(p.Username, ":"):
		return Errorf(Invalid, "the user of an egress proxy that speaks HTTP has no colon")
	}
	return p.TLS.check()
}

func (t *ProxyTLS) check() error {
	switch {
	case t == nil:
	case len(t.ServerName) > maxProxyName:
		return Errorf(Invalid, "the server name of an egress proxy has at most %d bytes", maxProxyName)
	case len(t.CA) > maxProxyCA:
		return Errorf(Invalid, "the authorities of an egress proxy have at most %d bytes", maxProxyCA)
	case t.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(t.CA)):
		return Errorf(Invalid, "the authorities of an egress proxy have no certificate in PEM")
	}
	return nil
}

// Address is HOST:PORT.
func (p *EgressProxy) Address() string { return net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port))) }

// String returns the proxy as a URL without user and password.
func (p *EgressProxy) String() string {
	scheme := string(p.Protocol)
	if p.TLS != nil {
		scheme += "s"
	}
	return scheme + "://" + p.Address()
}

// GoString hides the password.
func (p *EgressProxy) GoString() string { return fmt.Sprintf("%q", p.String()) }

// Equal reports whether both lead to the same proxy in the same way. Passwords are not
// compared. Both may be nil.
func (p *EgressProxy) Equal(q *EgressProxy) bool {
	if p == nil || q == nil {
		return p == q
	}
	sameTLS := p.TLS == q.TLS || p.TLS != nil && q.TLS != nil && *p.TLS == *q.TLS
	return sameTLS && p.Protocol == q.Protocol && p.Host == q.Host && p.Port == q.Port && p.Username == q.Username && p.HasPassword == q.HasPassword
}

// DecideProxy reports whether the egress proxy may be connected to at an address: that
// the policy names it is as good as an allowed default of the sandbox's own policy.
func (p NetworkPolicy) DecideProxy(addr netip.Addr) NetworkDecision {
	name := ""
	if _, err := netip.ParseAddr(p.Proxy.Host); err != nil {
		name = p.Proxy.Host
	}
	p.DenyByDefault, p.DenyNames, p.Names = false, nil, nil
	return p.Decide(name, addr, p.Proxy.Port)
}

// PassesNames reports whether a connection to a host that it names can be left to the egress
// proxy with the name: no layer denies an address, which the proxy might find for it.
func (p NetworkPolicy) PassesNames() bool {
	for _, own := range p.Each() {
		if len(own.Deny) > 0 {
			return false
		}
	}
	return true
}
