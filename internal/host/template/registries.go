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

	"wrenn.dev"
	"wrenn.dev/internal/publicnet"
)

// AnyRegistry among Registries stands for every registry on the public Internet.
const AnyRegistry = "*"

// Registries are the hosts from which container images may come, like docker.io
// or registry.example:5000; a name without a port stands for all its ports. A
// build makes this machine connect to the registry, and to where that redirects
// it for tokens and layers. Addresses that are not public, such as this machine's
// or a cloud's metadata service, are dialed only for registries that are named,
// not for AnyRegistry.
type Registries []string

// dockerHub is how people write the registry that ggcr calls by its address.
const dockerHub = "docker.io"

// localTransports are other programs' names for places on this machine. A user
// may not name them: see oci.Open, which is not used here.
var localTransports = []string{"docker-archive", "docker-daemon", "containers-storage", "oci", "oci-archive", "dir"}

// hostOf returns the registry of a reference.
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

// check returns an error unless the image may be pulled from its registry.
func (r Registries) check(ref string) error {
	host, err := hostOf(ref)
	if err != nil {
		return err
	}
	if r.named(host) || slices.Contains(r, AnyRegistry) {
		return nil
	}
	return wrenn.Errorf(wrenn.PermissionDenied, "this host does not pull images from %.100s: its operator allows %s (templates.registries of its agent)", host, listed(r))
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

// transport returns the HTTP transport for the registry of a reference. Besides
// the addresses that are closed to all users it dials none in closed, unless the
// registry is named.
func (r Registries) transport(ref string, closed []netip.Prefix) http.RoundTripper {
	direct := newTransport()
	if host, err := hostOf(ref); err == nil && r.named(host) {
		direct.Proxy = http.ProxyFromEnvironment
		return direct
	}
	direct.DialContext = (&net.Dialer{Timeout: dialTimeout, ControlContext: onlyPublic(closed)}).DialContext
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
		DisableCompression:    true, // images are compressed already, and the limits count the bytes of the registry
	}
}

// guarded dials only public addresses. If the operator has set a proxy, the proxy
// decides.
type guarded struct{ direct, proxied *http.Transport }

// RoundTrip implements http.RoundTripper.
func (g *guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if proxy, err := http.ProxyFromEnvironment(r); err != nil || proxy != nil {
		return g.proxied.RoundTrip(r)
	}
	return g.direct.RoundTrip(r)
}

// onlyPublic returns a control function that refuses an address that is not
// public, is in closed, or is one of this machine, right before the connection:
// after the name was resolved.
func onlyPublic(closed []netip.Prefix) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("address of a registry: %w", err)
		}
		public, err := publicnet.IsPublic(at.Addr(), closed)
		if err != nil {
			return err
		}
		if !public {
			return wrenn.Errorf(wrenn.PermissionDenied, "the registry has, or redirects to, an address that is not public: to allow it, name the registry in templates.registries of the host's agent")
		}
		return nil
	}
}
