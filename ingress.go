package wrenn

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// EnvdPort is the port of the agent in every sandbox.
const EnvdPort = 49983

// Ingress is who reaches the ports of a sandbox by HTTP, and how. It does not
// concern the agent's port, which has its own token. The zero value lets everyone in.
type Ingress struct {
	// Private asks clients for the sandbox's traffic token.
	Private bool
	// MaskHost is the Host header that programs get instead of the client's, in which
	// ${PORT} is the port; "" is the client's.
	MaskHost string
	// HTTPSPorts are ports at which programs speak TLS, with any certificate.
	HTTPSPorts []uint16
}

// MaxHTTPSPorts bounds Ingress.HTTPSPorts.
const MaxHTTPSPorts = 128

const maskPort = "${PORT}"

// IsZero reports whether i is the default.
func (i Ingress) IsZero() bool { return !i.Private && i.MaskHost == "" && len(i.HTTPSPorts) == 0 }

// Check returns an Invalid error that says what is wrong, or nil.
func (i Ingress) Check() error {
	if i.MaskHost != "" && !isHost(strings.ReplaceAll(i.MaskHost, maskPort, "65535")) {
		return Errorf(Invalid, "%.100q is no host: give HOST or HOST:PORT, in which ${PORT} stands for the port", i.MaskHost)
	}
	if len(i.HTTPSPorts) > MaxHTTPSPorts {
		return Errorf(Invalid, "a sandbox has at most %d HTTPS ports, not %d", MaxHTTPSPorts, len(i.HTTPSPorts))
	}
	if slices.Contains(i.HTTPSPorts, 0) || slices.Contains(i.HTTPSPorts, EnvdPort) {
		return Errorf(Invalid, "HTTPS ports are from 1 to 65535, and not %d, which is the agent's", EnvdPort)
	}
	return nil
}

// Host returns the Host header for the program at a port, "" for the client's.
func (i Ingress) Host(port uint16) string {
	return strings.ReplaceAll(i.MaskHost, maskPort, strconv.Itoa(int(port)))
}

// HTTPS reports whether the program at a port speaks TLS.
func (i Ingress) HTTPS(port uint16) bool { return slices.Contains(i.HTTPSPorts, port) }

// isHost reports whether text is a name or an address, with a port or without.
func isHost(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return true
	}
	if _, err := netip.ParseAddrPort(text); err == nil {
		return true
	}
	name, port, hasPort := strings.Cut(text, ":")
	if _, err := strconv.ParseUint(port, 10, 16); hasPort && err != nil || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.ToLower(name), ".") {
		if !isDNSLabel(label) {
			return false
		}
	}
	return true
}
