package template

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"wrenn"
)

// AnyRegistry among Registries stands for every registry on the public Internet.
const AnyRegistry = "*"

// Registries are the hosts from which container images may come, like docker.io
// or registry.example:5000; a name without a port is all its ports. Whoever may
// build templates has this machine connect to them, and to where they send it for
// tokens and layers. Addresses that are not public, such as this machine's own or
// those of a cloud's metadata, are dialed for registries that are named, and
// not for AnyRegistry.
type Registries []string

// dockerHub is how people write the registry that ggcr calls by its address.
const dockerHub = "docker.io"

// localTransports are other programs' words for places of this machine, which
// are nobody's to name: see oci.Open, which is not used here.
var localTransports = []string{"docker-archive", "docker-daemon", "containers-storage", "oci", "oci-archive", "dir"}

// hostOf is the registry of a reference.
func hostOf(ref string) (string, error) {
	parsed, err := name.ParseReference(ref)
	if transport, _, _ := strings.Cut(ref, ":"); err != nil || slices.Contains(localTransports, transport) {
		return "", wrenn.Errorf(wrenn.Invalid, "%.200q does not name a container image of a registry: use NAME:TAG or NAME@sha256:DIGEST", ref)
	}
	if host := parsed.Context().RegistryStr(); host != name.DefaultRegistry {
		return host, nil
	}
	return dockerHub, nil
}

// check says whether the image may be pulled from where it is.
func (r Registries) check(ref string) error {
	host, err := hostOf(ref)
	if err != nil {
		return err
	}
	if r.named(host) || slices.Contains(r, AnyRegistry) {
		return nil
	}
	return wrenn.Errorf(wrenn.PermissionDenied, "this host takes no images from %.100s: its operator allows %s (templates.registries of its agent)", host, listed(r))
}

func listed(r Registries) string {
	if len(r) == 0 {
		return "no registry"
	}
	return strings.Join(r, ", ")
}

func (r Registries) named(host string) bool {
	bare, _, err := net.SplitHostPort(host)
	return slices.Contains(r, host) || err == nil && slices.Contains(r, bare)
}

// transport is how the registry of a reference is asked.
func (r Registries) transport(ref string) http.RoundTripper {
	direct := newTransport()
	if host, err := hostOf(ref); err == nil && r.named(host) {
		direct.Proxy = http.ProxyFromEnvironment
		return direct
	}
	direct.DialContext = (&net.Dialer{Timeout: dialTimeout, ControlContext: onlyPublic}).DialContext
	proxied := newTransport()
	proxied.Proxy = http.ProxyFromEnvironment
	return &guarded{direct: direct, proxied: proxied}
}

const (
	dialTimeout   = 20 * time.Second
	headerTimeout = time.Minute // until a registry begins to answer
)

func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       time.Minute,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // images are compressed as it is, and what a registry sends is what is counted
	}
}

// guarded dials public addresses alone. Where the operator has set a proxy, that decides.
type guarded struct{ direct, proxied *http.Transport }

// RoundTrip implements http.RoundTripper.
func (g *guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if proxy, err := http.ProxyFromEnvironment(r); err != nil || proxy != nil {
		return g.proxied.RoundTrip(r)
	}
	return g.direct.RoundTrip(r)
}

// onlyPublic refuses what a name was resolved to, right before the connection.
func onlyPublic(_ context.Context, _, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address of a registry: %w", err)
	}
	if ip := at.Addr().Unmap(); !ip.IsGlobalUnicast() || ip.IsPrivate() || shared.Contains(ip) {
		return wrenn.Errorf(wrenn.PermissionDenied, "the registry is, or sends to, an address that is not public: its operator would have to name the registry in templates.registries of the host's agent")
	}
	return nil
}

// shared is the address space of providers' networks, RFC 6598, which clouds use for services of theirs.
var shared = netip.MustParsePrefix("100.64.0.0/10")
