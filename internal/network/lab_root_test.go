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

	"wrenn/internal/netns"
)

// patience is how long a test waits for what must happen on a busy machine.
const patience = 20 * time.Second

// The lab's addresses look public, private and dangerous. None of them leaves
// the namespaces of the test.
const (
	hostPublic   = "8.8.8.1"
	worldPublic  = "8.8.8.8"
	hostPrivate  = "192.168.77.1"
	worldPrivate = "192.168.77.7"
	metadata     = "169.254.169.254"
)

// lab is a host and the world it is connected to: two namespaces. The
// machine's own network has no part in it.
type lab struct {
	host, world string // paths
	cfg         Config
}

var labs atomic.Int32 // makes names unique within the test process

func newLab(t testing.TB) *lab {
	t.Helper()
	prefix := fmt.Sprintf("w%05dx%d", os.Getpid()%100000, labs.Add(1)%10)
	l := &lab{host: newNamespace(t, prefix+"host"), world: newNamespace(t, prefix+"world")}
	l.cfg = Config{
		Prefix:        prefix,
		HostNamespace: l.host,
		RunDir:        t.TempDir(),
		Log:           slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	world, err := netns.Open(l.world)
	must(t, err)
	defer world.Close()
	inside(t, l.host, func(nl *netlink.Handle) {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "out0"})
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(world.Fd())
		must(t, nl.LinkAdd(veth))
		setUp(t, nl, "lo")
		setUp(t, nl, "out0", hostPublic+"/24", hostPrivate+"/24")
	})
	inside(t, l.world, func(nl *netlink.Handle) {
		setUp(t, nl, "eth0", worldPublic+"/24", worldPrivate+"/24", metadata+"/32")
	})
	addRoute(t, l.host, metadata+"/32", worldPublic)
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newNamespace(t testing.TB, name string) string {
	t.Helper()
	path, err := netns.Create(name)
	must(t, err)
	t.Cleanup(func() {
		if err := netns.Delete(name); err != nil {
			t.Error(err)
		}
	})
	return path
}

func inside(t testing.TB, path string, f func(nl *netlink.Handle)) {
	t.Helper()
	nl, err := openNetlink(path)
	must(t, err)
	defer nl.Close()
	f(nl)
}

func setUp(t testing.TB, nl *netlink.Handle, name string, addrs ...string) {
	t.Helper()
	link, err := nl.LinkByName(name)
	must(t, err)
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		must(t, nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p.Addr(), p.Bits())}))
	}
	must(t, nl.LinkSetUp(link))
}

func addRoute(t testing.TB, path, dst, gateway string) {
	t.Helper()
	p := netip.MustParsePrefix(dst)
	inside(t, path, func(nl *netlink.Handle) {
		must(t, nl.RouteAdd(&netlink.Route{Dst: ipNet(p.Addr(), p.Bits()), Gw: net.ParseIP(gateway)}))
	})
}

// open opens a pool that the test's end closes; then nothing may be left.
func (l *lab) open(t testing.TB, change func(*Config)) *Pool {
	t.Helper()
	cfg := l.cfg
	if change != nil {
		change(&cfg)
	}
	p, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { l.close(t, p) })
	return p
}

// close closes the pool and fails the test if anything of it is left.
func (l *lab) close(t testing.TB, p *Pool) {
	t.Helper()
	if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	if left := l.left(t); len(left) != 0 {
		t.Errorf("left in the kernel: %v", left)
	}
}

// left names all namespaces, links and tables of the lab's prefix.
func (l *lab) left(t testing.TB) []string {
	t.Helper()
	left, err := netns.List(l.cfg.Prefix + "-")
	must(t, err)
	inside(t, l.host, func(nl *netlink.Handle) {
		links, err := nl.LinkList()
		must(t, err)
		for _, link := range links {
			if strings.HasPrefix(link.Attrs().Name, l.cfg.Prefix) {
				left = append(left, "link "+link.Attrs().Name)
			}
		}
	})
	must(t, batch(l.host, func(conn *nftables.Conn) error {
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
	p.host.nl.Close()
	p.lock.Close()
}

func acquire(t testing.TB, p *Pool, owner string) *Slot {
	t.Helper()
	s, err := p.Acquire(t.Context(), owner)
	must(t, err)
	t.Cleanup(func() {
		if err := s.Release(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return s
}

// counted returns how many packets the rules with the comment dropped.
func counted(t testing.TB, path, tableName, comment string) uint64 {
	t.Helper()
	var total uint64
	seen := false
	must(t, batch(path, func(conn *nftables.Conn) error {
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
		t.Fatalf("table %s has no counting rule %q", tableName, comment)
	}
	return total
}

// waitFor polls until ok.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
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
func serve(t testing.TB, path string, port int) (peers func() []string) {
	t.Helper()
	var mu sync.Mutex
	var heard []string
	hear := func(addr net.Addr) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, addr.(interface{ AddrPort() netip.AddrPort }).AddrPort().Addr().String())
	}
	var tcp net.Listener
	var udp net.PacketConn
	must(t, netns.Do(path, func() (err error) {
		address := fmt.Sprintf("0.0.0.0:%d", port)
		if tcp, err = new(net.ListenConfig).Listen(t.Context(), "tcp4", address); err != nil {
			return err
		}
		udp, err = new(net.ListenConfig).ListenPacket(t.Context(), "udp4", address)
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
	t.Cleanup(func() { tcp.Close(); udp.Close(); wg.Wait() })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string{}, heard...)
	}
}

// echo sends a line until it comes back: a datagram may be lost.
func echo(t testing.TB, conn net.Conn) {
	t.Helper()
	const line = "hello\n"
	buf := make([]byte, len(line))
	waitFor(t, "an echo from "+conn.RemoteAddr().String(), func() bool {
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		_, err := io.ReadFull(conn, buf)
		return err == nil && string(buf) == line
	})
}

// guest stands for a machine: a namespace with a TAP of its own, whose frames
// a pump carries to and from the slot's, as a VMM would.
type guest struct {
	path string
	tap  *os.File // the slot's end
	stop func()
}

func newGuest(t testing.TB, s *Slot) *guest {
	t.Helper()
	name := fmt.Sprintf("%sguest%d", s.pool.cfg.Prefix, s.Index())
	g := &guest{path: newNamespace(t, name)}
	g.tap = openTAP(t, s.Namespace(), s.TAP())
	card := openTAP(t, g.path, "eth0")
	inside(t, g.path, func(nl *netlink.Handle) {
		link, err := nl.LinkByName("eth0")
		must(t, err)
		must(t, nl.LinkSetHardwareAddr(link, mac(s.MAC())))
		setUp(t, nl, "lo")
		setUp(t, nl, "eth0", GuestAddress+"/30")
	})
	addRoute(t, g.path, "0.0.0.0/0", GatewayAddress)
	var wg sync.WaitGroup
	wg.Go(func() { pump(g.tap, card) })
	wg.Go(func() { pump(card, g.tap) })
	g.stop = sync.OnceFunc(func() { g.tap.Close(); card.Close(); wg.Wait() })
	t.Cleanup(g.stop)
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

func openTAP(t testing.TB, path, name string) *os.File {
	t.Helper()
	fd := -1
	must(t, netns.Do(path, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		return attachTAP(fd, name)
	}))
	return os.NewFile(uintptr(fd), name)
}
