//go:build root

package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/testkit"
)

// patience bounds the wait for an event on a busy machine.
const patience = 20 * time.Second

// The lab's addresses look public, private and dangerous. None of them leaves
// the namespaces of the test.
const (
	hostPublic   = "8.8.8.1"
	worldPublic  = "8.8.8.8"
	hostPrivate  = "192.168.77.1"
	worldPrivate = "192.168.77.7"
	metadata     = "169.254.169.254"
	azure        = "168.63.129.16"
)

// lab is a host and the world it is connected to: two namespaces. The
// machine's own network has no part in it.
type lab struct {
	host, world string // paths
	cfg         Config
}

var labs atomic.Int32 // makes names unique within the test process

func newLab(tb testing.TB) *lab {
	tb.Helper()
	prefix := fmt.Sprintf("w%05dx%d", os.Getpid()%100000, labs.Add(1)%10)
	l := &lab{host: newNamespace(tb, prefix+"host"), world: newNamespace(tb, prefix+"world")}
	l.cfg = Config{
		Prefix:        prefix,
		HostNamespace: l.host,
		RunDir:        tb.TempDir(),
		Log:           slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	world, err := netns.Open(l.world)
	testkit.Must(tb, err)
	defer world.Close()
	inside(tb, l.host, func(nl *netlink.Handle) {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "out0"})
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(world.Fd())
		testkit.Must(tb, nl.LinkAdd(veth))
		setUp(tb, nl, "lo")
		setUp(tb, nl, "out0", hostPublic+"/24", hostPrivate+"/24")
	})
	inside(tb, l.world, func(nl *netlink.Handle) {
		setUp(tb, nl, "eth0", worldPublic+"/24", worldPrivate+"/24", metadata+"/32")
	})
	addRoute(tb, l.host, metadata+"/32", worldPublic)
	return l
}

func newNamespace(tb testing.TB, name string) string {
	tb.Helper()
	path, err := netns.Create(name)
	testkit.Must(tb, err)
	tb.Cleanup(func() {
		if err := netns.Delete(name); err != nil {
			tb.Error(err)
		}
	})
	return path
}

func inside(tb testing.TB, path string, f func(nl *netlink.Handle)) {
	tb.Helper()
	nl, err := openNetlink(path)
	testkit.Must(tb, err)
	defer nl.Close()
	f(nl)
}

func setUp(tb testing.TB, nl *netlink.Handle, name string, addrs ...string) {
	tb.Helper()
	link, err := nl.LinkByName(name)
	testkit.Must(tb, err)
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		testkit.Must(tb, nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p.Addr(), p.Bits())}))
	}
	testkit.Must(tb, nl.LinkSetUp(link))
}

func addRoute(tb testing.TB, path, dst, gateway string) {
	tb.Helper()
	p := netip.MustParsePrefix(dst)
	inside(tb, path, func(nl *netlink.Handle) {
		testkit.Must(tb, nl.RouteAdd(&netlink.Route{Dst: ipNet(p.Addr(), p.Bits()), Gw: net.ParseIP(gateway)}))
	})
}

// open opens a pool. The end of the test closes it and checks that nothing is left.
func (l *lab) open(tb testing.TB, change func(*Config)) *Pool {
	tb.Helper()
	cfg := l.cfg
	if change != nil {
		change(&cfg)
	}
	p, err := Open(tb.Context(), cfg)
	testkit.Must(tb, err)
	tb.Cleanup(func() { l.close(tb, p) })
	return p
}

// close closes the pool and fails the test if any object of it is left.
func (l *lab) close(tb testing.TB, p *Pool) {
	tb.Helper()
	if err := p.Close(context.WithoutCancel(tb.Context())); err != nil {
		tb.Error(err)
	}
	if left := l.left(tb); len(left) != 0 {
		tb.Errorf("left in the kernel: %v", left)
	}
}

// left names all namespaces, links and tables of the lab's prefix.
func (l *lab) left(tb testing.TB) []string {
	tb.Helper()
	left, err := netns.List(l.cfg.Prefix + "-")
	testkit.Must(tb, err)
	inside(tb, l.host, func(nl *netlink.Handle) {
		links, err := nl.LinkList()
		testkit.Must(tb, err)
		for _, link := range links {
			if strings.HasPrefix(link.Attrs().Name, l.cfg.Prefix) {
				left = append(left, "link "+link.Attrs().Name)
			}
		}
	})
	testkit.Must(tb, batch(l.host, func(conn *nftables.Conn) error {
		tables, err := conn.ListTables()
		for _, table := range tables {
			left = append(left, "table "+table.Name)
		}
		return err
	}))
	return left
}

// abandon ends the pool as kill -9 of its agent would.
func (l *lab) abandon(p *Pool) {
	p.stop()
	p.filler.Wait()
	p.host.clocks.close()
	p.host.byName.close()
	p.host.observers.close()
	p.host.nl.Close()
	p.lock.Close()
}

func acquire(tb testing.TB, p *Pool, owner string) *Slot {
	tb.Helper()
	s, err := p.Acquire(tb.Context(), owner)
	testkit.Must(tb, err)
	tb.Cleanup(func() {
		if err := s.Release(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// counted returns how many packets the rules with the comment dropped.
func counted(tb testing.TB, path, tableName, comment string) uint64 {
	tb.Helper()
	var total uint64
	seen := false
	testkit.Must(tb, batch(path, func(conn *nftables.Conn) error {
		chains, err := conn.ListChains()
		if err != nil {
			return err
		}
		for _, chain := range chains {
			if chain.Table.Name != tableName {
				continue
			}
			rules, err := conn.GetRules(chain.Table, chain)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if c, ok := userdata.GetString(r.UserData, userdata.TypeComment); !ok || c != comment {
					continue
				}
				for _, e := range r.Exprs {
					if counter, ok := e.(*expr.Counter); ok {
						seen = true
						total += counter.Packets
					}
				}
			}
		}
		return nil
	}))
	if !seen {
		tb.Fatalf("table %s has no counting rule %q", tableName, comment)
	}
	return total
}

// dial connects from inside a namespace.
func dial(ctx context.Context, path, network, address string) (conn net.Conn, err error) {
	err = netns.Do(path, func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// serve runs TCP and UDP echo servers on a port of all addresses of a
// namespace, and returns the addresses of the clients they heard.
func serve(tb testing.TB, path string, port int) (peers func() []string) {
	tb.Helper()
	var mu sync.Mutex
	var heard []string
	hear := func(addr net.Addr) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, addr.(interface{ AddrPort() netip.AddrPort }).AddrPort().Addr().String())
	}
	var tcp net.Listener
	var udp net.PacketConn
	testkit.Must(tb, netns.Do(path, func() (err error) {
		address := fmt.Sprintf("0.0.0.0:%d", port)
		if tcp, err = new(net.ListenConfig).Listen(tb.Context(), "tcp4", address); err != nil {
			return err
		}
		udp, err = new(net.ListenConfig).ListenPacket(tb.Context(), "udp4", address)
		return err
	}))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			hear(conn.RemoteAddr())
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	})
	wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			hear(from)
			udp.WriteTo(buf[:n], from)
		}
	})
	tb.Cleanup(func() { tcp.Close(); udp.Close(); wg.Wait() })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string{}, heard...)
	}
}

// echo sends a line until it comes back: a datagram may be lost.
func echo(tb testing.TB, conn net.Conn) {
	tb.Helper()
	const line = "hello\n"
	buf := make([]byte, len(line))
	testkit.WaitUntil(tb, conn.RemoteAddr().String()+" echoes", func() bool {
		if _, err := io.WriteString(conn, line); err != nil {
			tb.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		_, err := io.ReadFull(conn, buf)
		return err == nil && string(buf) == line
	})
}

// guest stands for a machine: a namespace with another TAP, whose frames a pump
// carries to and from the slot's TAP, as a VMM would.
type guest struct {
	path string
	tap  *os.File // the slot's end
	card *os.File // the guest's
	stop func()
}

func newGuest(tb testing.TB, s *Slot) *guest {
	tb.Helper()
	name := fmt.Sprintf("%sguest%dx%d", s.pool.cfg.Prefix, s.Index(), labs.Add(1))
	g := &guest{path: newNamespace(tb, name)}
	g.tap = openTAP(tb, s.Namespace(), s.TAP())
	g.card = openTAP(tb, g.path, "eth0")
	inside(tb, g.path, func(nl *netlink.Handle) {
		link, err := nl.LinkByName("eth0")
		testkit.Must(tb, err)
		testkit.Must(tb, nl.LinkSetHardwareAddr(link, mac(s.MAC())))
		setUp(tb, nl, "lo")
		setUp(tb, nl, "eth0", GuestAddress+"/30")
	})
	addRoute(tb, g.path, "0.0.0.0/0", GatewayAddress)
	var wg sync.WaitGroup
	wg.Go(func() { pump(g.tap, g.card) })
	wg.Go(func() { pump(g.card, g.tap) })
	g.stop = sync.OnceFunc(func() { g.tap.Close(); g.card.Close(); wg.Wait() })
	tb.Cleanup(g.stop)
	return g
}

func pump(to, from *os.File) {
	frame := make([]byte, 1<<17)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		if _, err := to.Write(frame[:n]); err != nil && !errors.Is(err, unix.EIO) { // EIO: not up yet
			return
		}
	}
}

// attachTAP attaches an open /dev/net/tun to a TAP, with a VMM's flags.
func attachTAP(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

func openTAP(tb testing.TB, path, name string) *os.File {
	tb.Helper()
	fd := -1
	testkit.Must(tb, netns.Do(path, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		return attachTAP(fd, name)
	}))
	return os.NewFile(uintptr(fd), name)
}

// freeTestRange is a range other than the default one.
var freeTestRange = netip.MustParsePrefix("10.77.0.0/16")
