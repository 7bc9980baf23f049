//go:build root

package network

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/testkit"
)

// Each layer of a policy must allow a connection, and the log names the one that does not.
func TestLayers(t *testing.T) {
	_, s, g := policyLab(t, nil)
	var events seen
	testkit.Must(t, s.Observe(events.record))
	denied := func() uint64 { return counted(t, s.Namespace(), slotTable, "denied by the sandbox's policy") }
	team, template := policy(t, true, []string{worldPublic, worldOther}, nil), policy(t, false, nil, []string{worldOther})
	testkit.Must(t, s.SetPolicy(t.Context(), policy(t, true, []string{"0.0.0.0/0"}, nil).With(team, template)))
	stays := reaches(t, g, worldPublic)
	for _, network := range []string{"tcp4", "udp4"} {
		knock(t, g.path, network, worldOther+":80", denied)
		events.want(t, wrenn.EgressDenied, wrenn.EgressProtocol(network[:3]), worldOther+":80", "the template's network policy does not allow this address (deny "+worldOther+")")
	}
	knock(t, g.path, "udp4", somewhere+":80", denied)
	events.want(t, wrenn.EgressDenied, wrenn.EgressUDP, somewhere+":80", "the team's network policy does not allow this address (default deny)")

	testkit.Must(t, s.SetPolicy(t.Context(), policy(t, false, nil, nil).With(wrenn.NetworkPolicy{}, template)))
	echo(t, stays)
	testkit.Must(t, s.SetPolicy(t.Context(), policy(t, false, nil, nil).With(wrenn.NetworkPolicy{}, wrenn.NetworkPolicy{})))
	reaches(t, g, worldOther)
}

// A name that one layer allows and another denies is denied; so is one that a layer
// allows at an address that another denies.
func TestLayersOfNames(t *testing.T) {
	n := newNamesLab(t)
	team := policy(t, true, []string{"*.example.org", "example.com"}, nil)
	template := policy(t, false, nil, []string{"www.example.org"})
	testkit.Must(t, n.slot.SetPolicy(t.Context(), wrenn.NetworkPolicy{}.With(team, template)))
	client := n.client(t, somewhere)
	for url, want := range map[string]string{
		"http://example.com/":       worldPublic + ":80 example.com",
		"http://www.example.org/":   "the template's network policy does not allow this name at this port (deny www.example.org)",
		"http://other.test/":        "the team's network policy does not allow this name at this port (default deny)",
		"http://mixed.example.org/": worldOther + ":80 mixed.example.org",
	} {
		if _, body, err := n.get(t, client, url); err != nil || !strings.Contains(body, want) {
			t.Errorf("%s: %q, %v, want %q", url, body, err, want)
		}
	}
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, false, nil, []string{worldOther}).With(team, template)))
	if _, body, err := n.get(t, client, "http://mixed.example.org/"); err != nil || !strings.Contains(body, "the sandbox's network policy does not allow "+worldOther) {
		t.Errorf("a name at a denied address: %q, %v", body, err)
	}
}

// Where names are denied all else works as without: other names, no name, other
// protocols, those in which the server speaks first, UDP.
func TestDeniedNames(t *testing.T) {
	n := newNamesLab(t)
	serve(t, n.world, 7)
	greeting := "220 ready\r\n"
	n.greet(t, 25, greeting)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, false, nil, []string{"*.example.org", "example.com:8443"})))
	client := n.client(t, worldPublic)
	for url, want := range map[string]string{
		"https://example.com/":      worldPublic + ":443 example.com",
		"http://any.test/":          worldPublic + ":80 any.test", // where the guest sent it
		"https://www.example.org/":  "access denied",
		"https://example.com:8443/": "access denied",
		"http://www.example.org/":   "does not allow this name at this port (deny *.example.org)",
	} {
		_, body, err := n.get(t, client, url)
		if err != nil {
			body = err.Error()
		}
		if !strings.Contains(body, want) {
			t.Errorf("%s: %q, want %q", url, body, want)
		}
	}
	conn, err := dial(t.Context(), n.guest.path, "tcp4", worldPublic+":7")
	testkit.Must(t, err)
	defer conn.Close()
	echo(t, conn)
	first, err := dial(t.Context(), n.guest.path, "tcp4", worldPublic+":25")
	testkit.Must(t, err)
	defer first.Close()
	first.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(greeting))
	if _, err := io.ReadFull(first, got); err != nil || string(got) != greeting {
		t.Errorf("a server that speaks first: %q, %v", got, err)
	}
	echo(t, first)
	datagram, err := dial(t.Context(), n.guest.path, "udp4", worldPublic+":7")
	testkit.Must(t, err)
	defer datagram.Close()
	echo(t, datagram)
	for name, want := range map[string]int{"www.example.org.": dns.RcodeRefused, "example.com.": dns.RcodeSuccess, "other.test.": dns.RcodeSuccess} {
		if answer := n.ask(t, "udp4", name, dns.TypeA); answer == nil || answer.Rcode != want {
			t.Errorf("%s: %v, want %s", name, answer, dns.RcodeToString[want])
		}
	}
	knock(t, n.guest.path, "tcp4", worldPrivate+":80", func() uint64 {
		return counted(t, n.slot.Namespace(), slotTable, "to a closed network")
	})

	held := n.holdAt(t, worldPublic, "example.com")
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, false, nil, []string{"other.test"})))
	held.echo(t)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, false, nil, []string{"example.com"})))
	held.SetReadDeadline(time.Now().Add(patience))
	if _, err := held.Read(make([]byte, 1)); err == nil {
		t.Error("a connection to a name that is denied now stays open")
	}
}

// greet serves a greeting at a port of the world, and then echoes.
func (n *namesLab) greet(t *testing.T, port int, greeting string) {
	t.Helper()
	var l net.Listener
	testkit.Must(t, netns.Do(n.world, func() (err error) {
		l, err = new(net.ListenConfig).Listen(t.Context(), "tcp4", net.JoinHostPort(worldPublic, strconv.Itoa(port)))
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.WriteString(conn, greeting)
				io.Copy(conn, conn)
			}()
		}
	}()
}

// The DNS servers of a policy are asked in place of the host's, if each layer allows
// them and they are in no closed network.
func TestDNSServers(t *testing.T) {
	n := newNamesLab(t)
	newZone(t, n.world, worldOther).set(map[string][]string{"example.com.": {worldOther}})
	own := policy(t, true, []string{"example.com"}, nil)
	get := func(servers ...string) (int, string) {
		t.Helper()
		p := own
		for _, s := range servers {
			p.DNSServers = append(p.DNSServers, netip.MustParseAddr(s))
		}
		testkit.Must(t, n.slot.SetPolicy(t.Context(), p))
		client := n.client(t, somewhere)
		defer client.CloseIdleConnections()
		status, body, err := n.get(t, client, "http://example.com/")
		testkit.Must(t, err)
		return status, body
	}
	if _, body := get(); body != worldPublic+":80 example.com" {
		t.Errorf("by the host's: %q", body)
	}
	if _, body := get(worldOther); body != worldOther+":80 example.com" {
		t.Errorf("by the policy's: %q", body)
	}
	if answer := n.ask(t, "udp4", "example.com.", dns.TypeA); answer == nil || len(answer.Answer) != 1 || !strings.Contains(answer.Answer[0].String(), worldOther) {
		t.Errorf("a question of the guest: %v", answer)
	}
	if status, body := get(worldPrivate); status != http.StatusBadGateway || !strings.Contains(body, "closed to all sandboxes") {
		t.Errorf("in a closed network: %d %q", status, body)
	}
	own.Deny = []netip.Prefix{netip.MustParsePrefix(worldOther + "/32")}
	if status, body := get(worldOther); status != http.StatusBadGateway || !strings.Contains(body, "does not allow the DNS server "+worldOther) {
		t.Errorf("that is denied: %d %q", status, body)
	}
	own = own.With(policy(t, false, []string{"example.com"}, []string{"example.net"}), policy(t, false, nil, []string{"9.0.0.0/8"}))
	own.Deny = nil
	if status, body := get(worldOther); status != http.StatusBadGateway || !strings.Contains(body, "the template's network policy") {
		t.Errorf("that the template denies: %d %q", status, body)
	}
}
