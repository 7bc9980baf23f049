//go:build root

package network

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

var errNoDrops = errors.New("no packet was dropped")

// bucket returns the token bucket of a link, nil if it has none.
func bucket(t *testing.T, nl *netlink.Handle, name string) *netlink.Tbf {
	t.Helper()
	link, err := nl.LinkByName(name)
	testkit.Must(t, err)
	all, err := nl.QdiscList(link)
	testkit.Must(t, err)
	for _, q := range all {
		if b, ok := q.(*netlink.Tbf); ok {
			return b
		}
	}
	return nil
}

// TestPacketsAreBounded: a guest that sends more packets than its rate loses some, and so
// does one that is sent more; others arrive.
func TestPacketsAreBounded(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	pool := l.open(t, func(c *Config) { c.PacketsPerSecond = minPackets })
	s := acquire(t, pool, "a")
	g := newGuest(t, s)
	conn, err := dial(t.Context(), g.path, "udp4", worldPublic+":80")
	testkit.Must(t, err)
	defer conn.Close()
	echo(t, conn)
	testkit.WaitNoError(t, "packets beyond the rate are dropped", func() error {
		for range 1000 {
			_, _ = conn.Write([]byte("x")) // as below
		}
		if counted(t, s.Namespace(), slotTable, "too many packets") == 0 {
			return errNoDrops
		}
		return nil
	})
	echo(t, conn)
	testkit.WantCode(t, Config{PacketsPerSecond: 1}.Check(), wrenn.Invalid, "packets a second")
}

// TestRateIsBounded: a guest that sends more than its rate loses packets, and so does
// one that receives more.
func TestRateIsBounded(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	pool := l.open(t, func(c *Config) { c.MbitPerSecond = 8 })
	s := acquire(t, pool, "a")
	g := newGuest(t, s)
	m := &maker{host: pool.host, cfg: pool.host.cfg, index: s.Index()}
	defer m.close()
	inner, err := m.inside()
	testkit.Must(t, err)
	for name, nl := range map[string]*netlink.Handle{uplink: inner, m.cfg.name(m.index): m.host.nl} {
		if b := bucket(t, nl, name); b == nil || b.Rate != 1_000_000 {
			t.Errorf("%s has %v", name, b)
		}
	}
	conn, err := dial(t.Context(), g.path, "tcp4", worldPublic+":80") // slow, not cut
	testkit.Must(t, err)
	conn.Close()
	flood, err := dial(t.Context(), g.path, "udp4", worldPublic+":9")
	testkit.Must(t, err)
	defer flood.Close()
	testkit.WaitNoError(t, "packets beyond the rate are dropped", func() error {
		for range 1000 {
			_, _ = flood.Write(make([]byte, 1400)) // an answer of ICMP makes one fail
		}
		if drops := bucket(t, inner, uplink).Attrs().Statistics.Queue.Drops; drops == 0 {
			return errNoDrops
		}
		return nil
	})
	pool.host.cfg.MbitPerSecond, m.cfg.MbitPerSecond = 0, 0
	testkit.Must(t, m.setRate())
	testkit.Must(t, m.setRate()) // without one
	if b := bucket(t, inner, uplink); b != nil {
		t.Errorf("a slot without a rate has %v", b)
	}
}
