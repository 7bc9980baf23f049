package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network/egress"
)

const (
	dnsPort = 53
	// namesPort is where the agent accepts connections that the slot's rules redirect.
	namesPort = 5380
	// byNameMark is the mark of the agent's own packets that leave a slot. Only root
	// sets marks: a VMM that was taken over gets nothing past the slot's rules.
	byNameMark = 0x77e6
	// maxByName is how many connections by name all sandboxes of a host may have.
	maxByName = 8192
	// maxIntercepted is how many of these may be to hosts with header rules.
	maxIntercepted = 1024
	// Questions for names that a guest may ask in a second, and at once.
	dnsRate  = 100
	dnsBurst = 200
)

// writeByName adds the rules for what the agent serves to guests whose policy has
// names. Nothing listens for others.
func (t table) writeByName(offered, limits *nftables.Chain) {
	t.rule(offered, "questions for names", redirected(), toUDPPort(dnsPort), atMost(dnsRate, dnsBurst), accept())
	t.rule(offered, "too many questions for names", redirected(), toUDPPort(dnsPort), drop())
	t.rule(offered, "limits of questions for names", redirected(), toTCPPort(dnsPort), jump(limits))
	t.rule(offered, "questions for names", redirected(), toTCPPort(dnsPort), accept())
	t.rule(offered, "limits of connections by name", redirected(), toTCPPort(namesPort), jump(limits))
	t.rule(offered, "connections by name", redirected(), toTCPPort(namesPort), accept())
}

// byName serves the slots whose policy has names, header rules or a proxy.
type byName struct {
	cfg                Config
	shared, intercepts chan struct{}

	mu   sync.Mutex // guards open, and starts and stops of its servers
	open map[int]*egress.Server
}

func newByName(cfg Config) *byName {
	return &byName{cfg: cfg, shared: make(chan struct{}, maxByName), intercepts: make(chan struct{}, maxIntercepted), open: map[int]*egress.Server{}}
}

// follow has slot index served by a policy, with the credentials for its header rules. A
// server that has no names any more keeps the connections that stay allowed.
//
// Record gets what is decided; it holds for the life of the server.
func (b *byName) follow(index int, policy wrenn.NetworkPolicy, credentials egress.Credentials, record func(wrenn.EgressEvent)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if server := b.open[index]; server != nil {
		if err := server.SetCredentials(credentials); err != nil {
			return err
		}
		server.SetPolicy(policy)
		return nil
	}
	if !policy.NeedsNames() && len(policy.Headers) == 0 && policy.Proxy == nil {
		return nil
	}
	cfg, err := b.listen(b.cfg.namespace(index))
	if err != nil {
		return err
	}
	cfg.Record = record
	server := egress.Serve(cfg, policy)
	b.open[index] = server
	return server.SetCredentials(credentials)
}

// stop ends all connections by name of a slot, if it has a server.
func (b *byName) stop(index int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if server := b.open[index]; server != nil {
		server.Close()
		delete(b.open, index)
	}
}

// close stops all servers.
func (b *byName) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, server := range b.open {
		server.Close()
	}
	clear(b.open)
}

// listen opens the sockets in the namespace at path.
func (b *byName) listen(path string) (egress.Config, error) {
	cfg := egress.Config{
		Original: originalDestination,
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return dialIn(ctx, path, "tcp4", to.String(), byNameMark)
		},
		Exchange: b.upstream().Exchange,
		DialDNS: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialIn(ctx, path, network, address, byNameMark)
		},
		Closed: b.closed(),
		Shared: b.shared, Intercepts: b.intercepts, Roots: b.cfg.Roots,
		Log: b.cfg.Log,
	}
	var lc net.ListenConfig
	at := func(port int) string { return net.JoinHostPort(GatewayAddress, strconv.Itoa(port)) }
	err := netns.Do(path, func() (err error) {
		ctx := context.Background() // opening a socket does not wait
		if cfg.TCP, err = lc.Listen(ctx, "tcp4", at(namesPort)); err != nil {
			return err
		}
		if cfg.TCPDNS, err = lc.Listen(ctx, "tcp4", at(dnsPort)); err != nil {
			return errors.Join(err, cfg.TCP.Close())
		}
		if cfg.UDPDNS, err = lc.ListenPacket(ctx, "udp4", at(dnsPort)); err != nil {
			return errors.Join(err, cfg.TCP.Close(), cfg.TCPDNS.Close())
		}
		return nil
	})
	return cfg, err
}

// upstream returns the DNS servers of the host.
func (b *byName) upstream() egress.Upstream {
	up := egress.Upstream{Servers: egress.HostServers, Dial: new(net.Dialer).DialContext}
	if len(b.cfg.Resolvers) == 0 {
		return up
	}
	up.Servers = func() ([]netip.AddrPort, error) { return b.cfg.Resolvers, nil }
	up.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dialIn(ctx, b.cfg.HostNamespace, network, address, 0)
	}
	return up
}

// closed reports whether no guest may reach an address.
func (b *byName) closed() func(netip.Addr) bool {
	networks := b.cfg.closed()
	return func(addr netip.Addr) bool {
		return !addr.Is4() || slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(addr) })
	}
}

// originalDestination returns where a redirected connection was to go.
func originalDestination(conn *net.TCPConn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	const soOriginalDst = 80 // linux/netfilter_ipv4.h: a sockaddr_in, which is as long as this struct
	var sockaddr *unix.IPv6Mreq
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		sockaddr, optErr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst)
	}); err != nil || optErr != nil {
		return netip.AddrPort{}, fmt.Errorf("SO_ORIGINAL_DST: %w", errors.Join(err, optErr))
	}
	b := sockaddr.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])), nil
}
