package wrenn

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// NetworkName is a rule of a NetworkPolicy about hosts by name.
type NetworkName struct {
	// Domain is a name in lower case, such as example.com, or *.example.com for all
	// names below example.com, without itself.
	Domain string
	Port   uint16 // 0 is every port
}

// anyBelow begins a Domain that stands for the names below the rest of it.
const anyBelow = "*."

// maxName is the length of a name in text, without the dot at its end: RFC 1035, section 3.1.
const maxName = 253

// ParseNetworkName reads a rule such as example.com, *.example.com or
// example.com:443. Invalid says what is wrong.
func ParseNetworkName(text string) (NetworkName, error) {
	domain, portText, hasPort := strings.Cut(text, ":")
	n := NetworkName{Domain: CanonicalName(domain)}
	if hasPort {
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || port == 0 || portText[0] == '+' {
			return n, Errorf(Invalid, "network rule %.80q: %.20q is not a port, which is 1 to 65535", text, portText)
		}
		n.Port = uint16(port)
	}
	return n, n.check()
}

// CanonicalName returns a name in lower case, without the dot at its end.
func CanonicalName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// check returns an Invalid error unless the name can be that of a host.
func (n NetworkName) check() error {
	if n.Domain == "*" {
		return Errorf(Invalid, "network rule %q: to allow or deny everything, choose the default", n)
	}
	name := strings.TrimPrefix(n.Domain, anyBelow)
	if len(n.Domain) > maxName {
		return Errorf(Invalid, "network rule %.80q: a name has at most %d characters", n, maxName)
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if !validLabel(label) {
			return Errorf(Invalid, "network rule %.80q is neither an IPv4 address nor a name such as example.com or *.example.com, in lower-case letters, digits and hyphens (xn--… for others)", n)
		}
	}
	if len(labels) < 2 && name == n.Domain {
		return Errorf(Invalid, "network rule %.80q: write the full name of the host, such as www.example.com", n)
	}
	if _, err := strconv.Atoi(labels[len(labels)-1]); err == nil {
		return Errorf(Invalid, "network rule %.80q is neither an IPv4 address nor a name; addresses have no ports", n)
	}
	return nil
}

// validLabel reports whether a part of a name is one of RFC 1123, or has underscores besides.
func validLabel(label string) bool {
	const maxLabel = 63
	if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// looksLikeName reports whether a rule is no address and no network, but may be a name.
func looksLikeName(text string) bool {
	if strings.Contains(text, "/") || strings.Count(text, ":") > 1 {
		return false
	}
	if _, err := netip.ParseAddr(text); err == nil {
		return false
	}
	return strings.ContainsFunc(text, func(r rune) bool { return r == '*' || unicode.IsLetter(r) })
}

// Matches reports whether the rule is about a host, given by its canonical name.
func (n NetworkName) Matches(host string) bool {
	if below, ok := strings.CutPrefix(n.Domain, anyBelow); ok {
		return strings.HasSuffix(host, "."+below)
	}
	return host == n.Domain
}

// String returns the rule as people write it.
func (n NetworkName) String() string {
	if n.Port == 0 {
		return n.Domain
	}
	return n.Domain + ":" + strconv.Itoa(int(n.Port))
}

// MarshalText returns the rule as people write it.
func (n NetworkName) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (n *NetworkName) UnmarshalText(text []byte) (err error) {
	*n, err = ParseNetworkName(string(text))
	return err
}
