package wrenn

import (
	"net/netip"
	"strings"
	"time"
)

// EgressProtocol is how a sandbox connects to somewhere.
type EgressProtocol string

// The protocols of an EgressEvent. TCP stands for those that are neither TLS nor HTTP/1.
const (
	EgressDNS  EgressProtocol = "dns"
	EgressHTTP EgressProtocol = "http"
	EgressTLS  EgressProtocol = "tls"
	EgressTCP  EgressProtocol = "tcp"
	EgressUDP  EgressProtocol = "udp"
	EgressICMP EgressProtocol = "icmp"
)

// EgressVerdict is what became of an attempt to reach somewhere.
type EgressVerdict string

// The verdicts of an EgressEvent. A connection that was allowed ends later; one that
// failed was allowed, too, but its host could not be reached.
const (
	EgressAllowed EgressVerdict = "allowed"
	EgressDenied  EgressVerdict = "denied"
	EgressFailed  EgressVerdict = "failed"
	EgressEnded   EgressVerdict = "ended"
)

// EgressEvent is an entry of a sandbox's egress log.
type EgressEvent struct {
	Seq      uint64 // grows with each event of the sandbox
	At       time.Time
	Protocol EgressProtocol
	Verdict  EgressVerdict
	Name     string     // that the sandbox asked for, canonical but chosen by it; "" if none
	Address  netip.Addr // that it was connected to, or wanted to connect to; zero if not known
	Port     uint16
	Reason   string // why it was denied or failed
	Via      string // the egress proxy that it goes through, as a URL; "" if none
	// Sent and Received are bytes, and Took the time, of a connection that ended.
	Sent, Received int64
	Took           time.Duration
}

// EgressLog is a part of a sandbox's egress log, oldest first.
type EgressLog struct {
	Events  []EgressEvent
	Dropped uint64 // events before these that were asked for and are not kept any more
}

// MaxEgressWait bounds how long a reader of an egress log waits for the next event.
const MaxEgressWait = 25 * time.Second

// EgressExplanation says why a sandbox may or may not reach somewhere.
type EgressExplanation struct {
	Allowed bool
	Rule    string       // that decided, such as "allow *.example.com"
	Layer   NetworkLayer // whose rule that is
	Reason  string       // for people
	// Addresses are those of the name, or the one that was asked for. Addresses that
	// are closed to all sandboxes are left out for a name.
	Addresses []EgressAddress
}

// EgressAddress is an address that a sandbox may or may not reach.
type EgressAddress struct {
	Address netip.Addr
	Allowed bool
	Rule    string
	Layer   NetworkLayer
}

// CheckEgressHost returns an Invalid error unless host is an IPv4 address or a name
// in canonical form.
func CheckEgressHost(host string) error {
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is4() {
		return nil
	}
	if n, err := ParseNetworkName(host); err != nil || n.Port != 0 || n.Domain != host || strings.HasPrefix(host, anyBelow) {
		return Errorf(Invalid, "%.80q is neither an IPv4 address nor the name of a host, such as example.com", host)
	}
	return nil
}
