//go:build root

package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network/egress"
	"wrenn.dev/internal/testkit"
)

const proxyPassword = "a-password-for-tests"

// newProxy serves a proxy in the world, which knows names that the zone does not have.
func (n *namesLab) newProxy(t *testing.T, addr string) *testkit.Proxy {
	t.Helper()
	inside(t, n.world, func(nl *netlink.Handle) { setUp(t, nl, "lo") }) // the proxy's way to other servers of the world
	p := &testkit.Proxy{User: "me", Password: proxyPassword, Dial: func(target string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(target)
		if err != nil {
			return nil, err
		}
		if _, err := netip.ParseAddr(host); err != nil {
			host = worldOther // wherever the name leads in the zone
		}
		return dial(context.Background(), n.world, "tcp4", net.JoinHostPort(host, port))
	}}
	var l net.Listener
	testkit.Must(t, netns.Do(n.world, func() (err error) {
		l, err = new(net.ListenConfig).Listen(t.Context(), "tcp4", addr)
		return err
	}))
	p.Serve(t, l)
	return p
}

// through returns the policy with a proxy, whose password the slot gets.
func (n *namesLab) through(t *testing.T, policy wrenn.NetworkPolicy, url string) wrenn.NetworkPolicy {
	t.Helper()
	proxy, err := wrenn.ParseEgressProxy(url)
	testkit.Must(t, err)
	if proxy.HasPassword {
		n.slot.SetCredentials(egress.Credentials{Secrets: map[string]string{wrenn.ProxyPasswordSecret: proxy.Password}})
		proxy.Password = ""
	}
	policy.Proxy = proxy
	return policy
}

// events are what a slot reported.
type events struct {
	mu   sync.Mutex // guards seen
	seen []wrenn.EgressEvent
}

func (e *events) record(one wrenn.EgressEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = append(e.seen, one)
}

func (e *events) all() []wrenn.EgressEvent {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.seen)
}

// TestProxy has all TCP that the policy allows go through a proxy, and nothing else leave.
func TestProxy(t *testing.T) {
	for _, scheme := range []string{"socks5", "http"} {
		t.Run(scheme, func(t *testing.T) {
			n := newNamesLab(t)
			serve(t, n.world, 7)
			proxy := n.newProxy(t, worldPublic+":1080")
			log := &events{}
			testkit.Must(t, n.slot.Observe(log.record))
			url := scheme + "://me:" + proxyPassword + "@" + worldPublic + ":1080"
			testkit.Must(t, n.slot.SetPolicy(t.Context(), n.through(t, wrenn.NetworkPolicy{}, url)))

			client := n.client(t, somewhere)
			for url, want := range map[string]string{
				"https://example.com/":         worldOther + ":443 example.com", // as the proxy resolves it
				"http://only.at.the.proxy/":    worldOther + ":80 only.at.the.proxy",
				"https://only.at.the.proxy/":   worldOther + ":443 only.at.the.proxy",
				"https://www.example.org:8443": worldOther + ":8443 www.example.org:8443",
			} {
				if status, body, err := n.get(t, client, url); err != nil || status != http.StatusOK || body != want {
					t.Errorf("%s: %d %q, %v, want %q", url, status, body, err, want)
				}
			}
			conn, err := dial(t.Context(), n.guest.path, "tcp4", worldPublic+":7") // says no name
			testkit.Must(t, err)
			defer conn.Close()
			echo(t, conn)

			asked := proxy.Asked()
			slices.Sort(asked)
			want := []string{worldPublic + ":7", "example.com:443", "only.at.the.proxy:443", "only.at.the.proxy:80", "www.example.org:8443"}
			slices.Sort(want)
			if diff := cmp.Diff(want, asked); diff != "" {
				t.Errorf("what the proxy was asked for (-want +got):\n%s", diff)
			}
			if m := n.ask(t, "udp4", "example.com.", dns.TypeA); !slices.Equal(addressesIn(m), []string{worldPublic}) {
				t.Errorf("a question for a name: %v", addressesIn(m))
			}
			n.wantNoDatagram(t, log)
			for _, e := range log.all() {
				if e.Name == "example.com" && e.Protocol == wrenn.EgressTLS && (e.Via != scheme+"://"+worldPublic+":1080" || e.Address.IsValid()) {
					t.Errorf("the log says %+v", e)
				}
				if strings.Contains(fmt.Sprintf("%+v", e), proxyPassword) {
					t.Errorf("the log has the password: %+v", e)
				}
			}
		})
	}
}

// wantNoDatagram sends a datagram to an open port, which must not leave.
func (n *namesLab) wantNoDatagram(t *testing.T, log *events) {
	t.Helper()
	conn, err := dial(t.Context(), n.guest.path, "udp4", worldPublic+":7")
	testkit.Must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "x")
	testkit.Must(t, err)
	testkit.WaitUntil(t, "the datagram is logged as denied", func() bool {
		return slices.ContainsFunc(log.all(), func(e wrenn.EgressEvent) bool {
			return e.Protocol == wrenn.EgressUDP && e.Port == 7 && e.Verdict == wrenn.EgressDenied && strings.Contains(e.Reason, "only TCP")
		})
	})
}

// TestProxyKeepsPolicies has what a policy denies stay denied, and the proxy itself no way
// into closed networks.
func TestProxyKeepsPolicies(t *testing.T) {
	n := newNamesLab(t)
	proxy := n.newProxy(t, "0.0.0.0:1080")
	url := "socks5://me:" + proxyPassword + "@" + worldPublic + ":1080"
	client := n.client(t, somewhere)

	denied := policy(t, true, []string{"example.com"}, nil)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), n.through(t, denied, url)))
	if _, body, err := n.get(t, client, "http://example.com/"); err != nil || body != worldOther+":80 example.com" {
		t.Errorf("an allowed name: %q, %v", body, err)
	}
	if status, body, err := n.get(t, client, "http://other.test/"); err != nil || status != http.StatusForbidden {
		t.Errorf("a denied name: %d %q, %v", status, body, err)
	}
	// The name leads to an address that the policy denies, so the proxy must not get the name.
	byAddress := policy(t, true, []string{"example.com", "www.example.org"}, []string{worldOther})
	testkit.Must(t, n.slot.SetPolicy(t.Context(), n.through(t, byAddress, url)))
	if status, body, err := n.get(t, client, "http://www.example.org/"); err != nil || status != http.StatusForbidden {
		t.Errorf("a name of a denied address: %d %q, %v", status, body, err)
	}
	if _, body, err := n.get(t, client, "http://example.com/"); err != nil || body != worldPublic+":80 example.com" {
		t.Errorf("a name of an allowed address: %q, %v", body, err)
	}
	if diff := cmp.Diff([]string{"example.com:80", worldPublic + ":80"}, proxy.Asked()); diff != "" {
		t.Errorf("what the proxy was asked for (-want +got):\n%s", diff)
	}

	n.zone.set(map[string][]string{"proxy.example.org.": {worldPrivate}})
	team := policy(t, false, nil, []string{worldPublic})
	for name, tc := range map[string]struct {
		policy wrenn.NetworkPolicy
		url    string
		want   string
	}{
		"in a closed network":         {wrenn.NetworkPolicy{}, "http://" + worldPrivate + ":1080", "closed to all sandboxes"},
		"by name in a closed network": {wrenn.NetworkPolicy{}, "socks5://proxy.example.org:1080", "closed to all sandboxes"},
		"denied by the team":          {wrenn.NetworkPolicy{}.With(team, wrenn.NetworkPolicy{}), url, "the team's network policy does not allow the egress proxy"},
		"with another password":       {wrenn.NetworkPolicy{}, "http://me:wrong@" + worldPublic + ":1080", "status 407"},
		"that is not there":           {wrenn.NetworkPolicy{}, "socks5://" + worldPublic + ":1", "does not answer"},
	} {
		testkit.Must(t, n.slot.SetPolicy(t.Context(), n.through(t, tc.policy, tc.url)))
		if status, body, err := n.get(t, client, "http://other.test/"); err != nil || status < 400 || !strings.Contains(body, tc.want) {
			t.Errorf("a proxy %s: %d %q, %v, want %q", name, status, body, err, tc.want)
		}
	}
}

// TestProxyChanges ends connections that do not go the way of the policy any more.
func TestProxyChanges(t *testing.T) {
	n := newNamesLab(t)
	serve(t, n.world, 7)
	n.newProxy(t, worldPublic+":1080")
	direct, err := dial(t.Context(), n.guest.path, "tcp4", worldPublic+":7")
	testkit.Must(t, err)
	defer direct.Close()
	echo(t, direct)

	with := n.through(t, wrenn.NetworkPolicy{}, "socks5://me:"+proxyPassword+"@"+worldPublic+":1080")
	testkit.Must(t, n.slot.SetPolicy(t.Context(), with))
	before := counted(t, n.slot.Namespace(), slotTable, "denied by the sandbox's policy")
	_, err = io.WriteString(direct, "x")
	testkit.Must(t, err)
	testkit.WaitUntil(t, "what goes past the proxy is dropped", func() bool {
		return counted(t, n.slot.Namespace(), slotTable, "denied by the sandbox's policy") > before
	})
	proxied, err := dial(t.Context(), n.guest.path, "tcp4", worldPublic+":7")
	testkit.Must(t, err)
	defer proxied.Close()
	echo(t, proxied)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), with))
	echo(t, proxied) // nothing changed
	testkit.Must(t, n.slot.SetPolicy(t.Context(), wrenn.NetworkPolicy{}))
	if _, err := io.ReadAll(proxied); err == nil {
		t.Error("a connection through the proxy outlives it")
	}
}
