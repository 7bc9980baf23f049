//go:build root && vm

package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/testkit"
)

// Addresses of a world. They look public to sandboxes, and the host has a route to them
// only while the test runs.
const (
	worldGate   = "11.232.0.1" // the host's own
	worldServer = "11.232.0.2"
	worldProxy  = "11.232.0.3"
)

// world is a network that sandboxes take for the public internet: a namespace behind a
// link of the host. Nothing of it leaves the machine.
type world struct{ path string }

// newWorld makes a world, which the end of the test removes.
func newWorld(t *testing.T) *world {
	t.Helper()
	const name, link = "world-e2e", "world-e2e"
	path, err := netns.Create(name)
	testkit.Must(t, err)
	t.Cleanup(func() {
		if err := netns.Delete(name); err != nil {
			t.Error(err)
		}
	})
	namespace, err := netns.Open(path)
	testkit.Must(t, err)
	defer namespace.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: link})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(namespace.Fd())
	testkit.Must(t, netlink.LinkAdd(veth)) // it goes with the namespace
	testkit.Must(t, setLink(link, worldGate))
	testkit.Must(t, netns.Do(path, func() error {
		return errors.Join(setLink("lo"), setLink("eth0", worldServer, worldProxy))
	}))
	return &world{path: path}
}

// setLink gives a link of this thread's namespace addresses and sets it up.
func setLink(name string, addresses ...string) error {
	nl, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(netip.PrefixFrom(netip.MustParseAddr(a), 24).String())
		if err != nil {
			return err
		}
		if err := nl.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return nl.LinkSetUp(link)
}

// listen opens a TCP port, until the test ends.
func (w *world) listen(t *testing.T, address string) (l net.Listener) {
	t.Helper()
	testkit.Must(t, netns.Do(w.path, func() (err error) {
		l, err = new(net.ListenConfig).Listen(t.Context(), "tcp4", address)
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// packets opens a socket for packets, until the test ends.
func (w *world) packets(t *testing.T, network, address string) (conn net.PacketConn) {
	t.Helper()
	testkit.Must(t, netns.Do(w.path, func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(t.Context(), network, address)
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// count counts the datagrams that arrive at an address of the world, until the test ends.
func (w *world) count(t *testing.T, address string) *atomic.Int64 {
	t.Helper()
	n := new(atomic.Int64)
	conn := w.packets(t, "udp4", address)
	go func() {
		for buf := make([]byte, 64); ; {
			if _, _, err := conn.ReadFrom(buf); err != nil {
				return
			}
			n.Add(1)
		}
	}()
	return n
}

// dial connects from an address of the world to another one.
func (w *world) dial(from, to string) (conn net.Conn, err error) {
	err = netns.Do(w.path, func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err = d.DialContext(context.Background(), "tcp4", to)
		return err
	})
	return conn, err
}
