//go:build root

package network

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/testkit"
)

// somewhere is an address that exists nowhere: what a connection names decides.
const somewhere = "1.2.3.4"

// namesLab is a guest, and a world with a DNS server and web servers that say which
// address and port they serve.
type namesLab struct {
	*lab
	slot  *Slot
	guest *guest
	zone  *zone
	roots *x509.CertPool
}

func newNamesLab(t *testing.T) *namesLab {
	t.Helper()
	n := newNamesWorld(t)
	n.slot = acquire(t, n.open(t, nil), "a")
	n.guest = newGuest(t, n.slot)
	return n
}

// newNamesWorld is newNamesLab without slot and guest.
func newNamesWorld(tb testing.TB) *namesLab {
	tb.Helper()
	l := newLab(tb)
	inside(tb, l.world, func(nl *netlink.Handle) { setUp(tb, nl, "eth0", worldOther+"/32") })
	addRoute(tb, l.host, worldOther+"/32", worldPublic)
	n := &namesLab{lab: l, zone: newZone(tb, l.world, worldPublic), roots: x509.NewCertPool()}
	n.zone.set(map[string][]string{
		"example.com.": {worldPublic}, "www.example.org.": {worldOther}, "other.test.": {worldPublic},
		"inside.example.org.": {worldPrivate}, "metadata.example.org.": {metadata}, "self.example.org.": {hostPrivate},
		"mixed.example.org.": {worldPrivate, worldOther},
	})
	n.serveWeb(tb, false, 80)
	n.serveWeb(tb, true, 443)
	n.serveWeb(tb, true, 8443)
	l.cfg.Resolvers = []netip.AddrPort{netip.MustParseAddrPort(worldPublic + ":53")}
	return n
}

// zone is a DNS server whose names change.
type zone struct {
	mu    sync.Mutex
	names map[string][]string
	asked []string
}

func (z *zone) set(names map[string][]string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.names = names
}

func (z *zone) questions() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.asked)
}

func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	name := q.Question[0].Name
	z.asked = append(z.asked, name)
	addrs, ok := z.names[name]
	if !ok {
		m.Rcode = dns.RcodeNameError
	}
	switch q.Question[0].Qtype {
	case dns.TypeA:
		for _, a := range addrs {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(a)})
		}
	case dns.TypeTXT:
		m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: slices.Repeat([]string{strings.Repeat("x", 200)}, 10)})
	case dns.TypeHTTPS:
		m.Answer = append(m.Answer, &dns.HTTPS{SVCB: dns.SVCB{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeHTTPS, Class: dns.ClassINET, Ttl: 60}, Priority: 1, Target: "."}})
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		m.Truncate(dns.MinMsgSize)
	}
	w.WriteMsg(m)
}

func newZone(tb testing.TB, path, addr string) *zone {
	tb.Helper()
	z := &zone{}
	var udp net.PacketConn
	var tcp net.Listener
	testkit.Must(tb, netns.Do(path, func() (err error) {
		if udp, err = new(net.ListenConfig).ListenPacket(tb.Context(), "udp4", addr+":53"); err != nil {
			return err
		}
		tcp, err = new(net.ListenConfig).Listen(tb.Context(), "tcp4", addr+":53")
		return err
	}))
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: z}, {Listener: tcp, Handler: z}} {
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		var wg sync.WaitGroup
		wg.Go(func() { s.ActivateAndServe() })
		<-ready
		tb.Cleanup(func() { s.Shutdown(); wg.Wait() })
	}
	return z
}

// serveWeb serves HTTP on a port of every address of the world. It answers with the
// address that was connected to and the host that was asked for; /echo answers with
// the request's body.
func (n *namesLab) serveWeb(tb testing.TB, secure bool, port int) {
	tb.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Context().Value(http.LocalAddrContextKey), r.Host)
	})
	mux.HandleFunc("/zeros", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		for part := make([]byte, 1<<16); n > 0; n -= int64(len(part)) {
			if _, err := w.Write(part[:min(n, int64(len(part)))]); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/authorization", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("Authorization")) })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	s := httptest.NewUnstartedServer(mux)
	s.Listener.Close()
	testkit.Must(tb, netns.Do(n.world, func() (err error) {
		s.Listener, err = new(net.ListenConfig).Listen(tb.Context(), "tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		return err
	}))
	if secure {
		s.StartTLS()
		n.roots.AddCert(s.Certificate())
	} else {
		s.Start()
	}
	tb.Cleanup(s.Close)
}

// client is a program of the guest that connects to one address whatever it asks for.
// Its TLS checks that the server is example.com, whose certificate all have.
func (n *namesLab) client(tb testing.TB, to string) *http.Client {
	tb.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			return dial(ctx, n.guest.path, "tcp4", net.JoinHostPort(to, port))
		},
		TLSClientConfig: &tls.Config{RootCAs: n.roots, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: n.roots, DNSName: "example.com"})
			return err
		}},
	}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (n *namesLab) get(t *testing.T, c *http.Client, url string) (status int, body string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	testkit.Must(t, err)
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// ask sends a question from the guest to an address.
func (n *namesLab) ask(t *testing.T, network, name string, qtype uint16) *dns.Msg {
	t.Helper()
	conn, err := dial(t.Context(), n.guest.path, network, somewhere+":53")
	testkit.Must(t, err)
	defer conn.Close()
	client := dns.Client{Net: strings.TrimSuffix(network, "4"), Timeout: patience}
	m, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, qtype), &dns.Conn{Conn: conn})
	testkit.Must(t, err)
	return m
}

func addressesIn(m *dns.Msg) []string {
	got := []string{}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			got = append(got, a.A.String())
		}
	}
	return got
}

func TestQuestionsForNames(t *testing.T) {
	n := newNamesLab(t)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, true, []string{"example.com:443", "*.example.org"}, nil)))
	for _, network := range []string{"udp4", "tcp4"} {
		for _, tc := range []struct {
			name  string
			qtype uint16
			rcode int
			want  []string
		}{
			{"Example.COM.", dns.TypeA, dns.RcodeSuccess, []string{worldPublic}},
			{"www.example.org.", dns.TypeA, dns.RcodeSuccess, []string{worldOther}},
			{"example.com.", dns.TypeAAAA, dns.RcodeSuccess, []string{}},
			{"example.com.", dns.TypeHTTPS, dns.RcodeSuccess, []string{}}, // with the keys of ECH
			{"none.example.org.", dns.TypeA, dns.RcodeNameError, []string{}},
			{"example.org.", dns.TypeA, dns.RcodeRefused, []string{}},
			{"other.test.", dns.TypeA, dns.RcodeRefused, []string{}},
			{"secret.other.test.", dns.TypeTXT, dns.RcodeRefused, []string{}},
			{"inside.example.org.", dns.TypeA, dns.RcodeRefused, []string{}},
			{"metadata.example.org.", dns.TypeA, dns.RcodeRefused, []string{}},
			{"mixed.example.org.", dns.TypeA, dns.RcodeSuccess, []string{worldOther}},
			{"example.com.", dns.TypeANY, dns.RcodeNotImplemented, []string{}},
		} {
			m := n.ask(t, network, tc.name, tc.qtype)
			if got := addressesIn(m); m.Rcode != tc.rcode || !slices.Equal(got, tc.want) {
				t.Errorf("%s: %s %s: %s, %v, want %s, %v", network, tc.name, dns.TypeToString[tc.qtype], dns.RcodeToString[m.Rcode], got, dns.RcodeToString[tc.rcode], tc.want)
			}
		}
	}
	if m := n.ask(t, "udp4", "example.com.", dns.TypeTXT); !m.Truncated {
		t.Error("a long answer by UDP is not truncated")
	}
	if m := n.ask(t, "tcp4", "example.com.", dns.TypeTXT); len(m.Answer) != 1 {
		t.Errorf("a long answer by TCP has %d records", len(m.Answer))
	}
	for _, asked := range n.zone.questions() {
		if strings.HasSuffix(asked, "other.test.") || asked == "example.org." {
			t.Errorf("the denied name %s was passed on", asked)
		}
	}
}

// What a connection names decides where it leads, not where the guest sent it.
func TestConnectionsByName(t *testing.T) {
	n := newNamesLab(t)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, true, []string{"example.com:443", "*.example.org"}, nil)))
	client := n.client(t, somewhere)
	for url, want := range map[string]string{
		"https://example.com/":           worldPublic + ":443 example.com",
		"http://www.example.org/":        worldOther + ":80 www.example.org",
		"https://www.example.org/":       worldOther + ":443 www.example.org",
		"https://www.example.org:8443/":  worldOther + ":8443 www.example.org:8443",
		"https://mixed.example.org:443/": worldOther + ":443 mixed.example.org:443",
	} {
		if status, body, err := n.get(t, client, url); err != nil || status != http.StatusOK || body != want {
			t.Errorf("%s: %d %q, %v, want %q", url, status, body, err, want)
		}
	}
	for url, want := range map[string]string{
		"https://example.com:8443/":     "access denied",
		"https://other.test/":           "access denied",
		"https://inside.example.org/":   "access denied",
		"https://metadata.example.org/": "access denied",
		"https://self.example.org/":     "access denied",
		"https://" + somewhere + "/":    "access denied", // without a server name
		"http://other.test/":            `may not connect to "other.test", port 80: the sandbox's network policy does not allow this name`,
		"http://metadata.example.org/":  "leads to no address that the sandbox may reach",
	} {
		status, body, err := n.get(t, client, url)
		if err != nil {
			body = err.Error()
		} else if status != http.StatusForbidden {
			t.Errorf("%s: status %d", url, status)
		}
		if !strings.Contains(body, want) {
			t.Errorf("%s: %q, want %q", url, body, want)
		}
	}
}

func TestNamesThatDoNotExist(t *testing.T) {
	n := newNamesLab(t)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, true, []string{"*.example.org"}, nil)))
	status, body, err := n.get(t, n.client(t, somewhere), "http://none.example.org/")
	if err != nil || status != http.StatusBadGateway || !strings.Contains(body, "no IPv4 address") {
		t.Errorf("%d %q, %v", status, body, err)
	}
}

// A name does not open an address that the policy denies, and an address that it
// allows needs no name.
func TestNamesAndAddresses(t *testing.T) {
	n := newNamesLab(t)
	serve(t, n.world, 7)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, true, []string{"*.example.org", worldPublic}, []string{"9.0.0.0/8"})))
	if _, body, err := n.get(t, n.client(t, somewhere), "http://www.example.org/"); err != nil || !strings.Contains(body, "leads to no address") {
		t.Errorf("a name of a denied address: %q, %v", body, err)
	}
	conn, err := dial(t.Context(), n.guest.path, "tcp4", worldPublic+":7") // not of TLS, nor of HTTP
	testkit.Must(t, err)
	defer conn.Close()
	echo(t, conn)
	datagram, err := dial(t.Context(), n.guest.path, "udp4", worldPublic+":7")
	testkit.Must(t, err)
	defer datagram.Close()
	echo(t, datagram)
	knock(t, n.guest.path, "udp4", worldOther+":443", func() uint64 { // QUIC
		return counted(t, n.slot.Namespace(), slotTable, "denied by the sandbox's policy")
	})
	knock(t, n.guest.path, "tcp4", worldPrivate+":80", func() uint64 {
		return counted(t, n.slot.Namespace(), slotTable, "to a closed network")
	})
	if err := dialTCP(t, n.guest.path, GatewayAddress, namesPort); err == nil {
		t.Error("the guest reaches the agent's port without a redirect")
	}
}

func TestOtherProtocolsHaveNoName(t *testing.T) {
	n := newNamesLab(t)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, true, []string{"example.com"}, nil)))
	for name, first := range map[string]string{
		"SSH":     "SSH-2.0-OpenSSH_9.2\r\n",
		"binary":  "\x00\x00\x00\x08\x04\xd2\x16\x2f",
		"CONNECT": "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"HTTP/2":  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"2 hosts": "GET / HTTP/1.1\r\nHost: example.com\r\nHost: other.test\r\n\r\n",
	} {
		conn, err := dial(t.Context(), n.guest.path, "tcp4", somewhere+":80")
		testkit.Must(t, err)
		_, err = io.WriteString(conn, first)
		testkit.Must(t, err)
		conn.SetReadDeadline(time.Now().Add(patience))
		answer, err := io.ReadAll(conn)
		if len(answer) == 0 && !errors.Is(err, syscall.ECONNRESET) || len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 403 ")) {
			t.Errorf("%s: %q, %v", name, answer, err)
		}
		conn.Close()
	}
}

// A change ends what it denies, and nothing else.
func TestNamesChangeUnderOpenConnections(t *testing.T) {
	n := newNamesLab(t)
	ctx := t.Context()
	testkit.Must(t, n.slot.SetPolicy(ctx, policy(t, true, []string{"example.com", "*.example.org"}, nil)))
	stays, ends := n.hold(t, "example.com"), n.hold(t, "www.example.org")
	testkit.Must(t, n.slot.SetPolicy(ctx, policy(t, true, []string{"example.com"}, nil)))
	stays.echo(t)
	ends.SetReadDeadline(time.Now().Add(patience))
	if _, err := ends.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection to a name that is not allowed any more: %v", err)
	}
	testkit.Must(t, n.slot.SetPolicy(ctx, policy(t, false, nil, []string{worldOther}))) // its address stays allowed
	stays.echo(t)
	if status, _, err := n.get(t, n.client(t, worldPublic), "http://any.test/"); err != nil || status != http.StatusOK {
		t.Errorf("without names: %d, %v", status, err)
	}
	testkit.Must(t, n.slot.SetPolicy(ctx, policy(t, true, nil, nil)))
	stays.SetReadDeadline(time.Now().Add(patience))
	if _, err := stays.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection after everything was denied: %v", err)
	}
}

// held is a request whose body goes on, so that its connection stays open.
type held struct {
	net.Conn
	answer *bufio.Reader
}

func (n *namesLab) hold(t *testing.T, host string) *held {
	t.Helper()
	return n.holdAt(t, somewhere, host)
}

// holdAt is hold of a connection that the guest makes to an address.
func (n *namesLab) holdAt(t *testing.T, addr, host string) *held {
	t.Helper()
	conn, err := dial(t.Context(), n.guest.path, "tcp4", addr+":80")
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	h := &held{Conn: conn, answer: bufio.NewReader(conn)}
	_, err = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
	testkit.Must(t, err)
	h.read(t)
	return h
}

func (h *held) read(t *testing.T) {
	t.Helper()
	h.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(h.answer, nil)
	testkit.Must(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	testkit.Must(t, errors.Join(err, resp.Body.Close()))
}

func (h *held) echo(t *testing.T) {
	t.Helper()
	_, err := io.WriteString(h.Conn, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
	testkit.Must(t, err)
	h.read(t)
}

// Much data in both directions, and the end of one direction, pass unchanged.
func TestBulkByName(t *testing.T) {
	n := newNamesLab(t)
	serve(t, n.world, 9000)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, true, []string{"example.com:9000"}, nil)))
	conn, err := dial(t.Context(), n.guest.path, "tcp4", somewhere+":9000")
	testkit.Must(t, err)
	defer conn.Close()
	data := make([]byte, 4<<20)
	rand.Read(data)
	data = append([]byte("PUT / HTTP/1.1\r\nHost: example.com\r\n\r\n"), data...)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := conn.Write(data)
		if err = errors.Join(err, conn.(*net.TCPConn).CloseWrite()); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(conn) // the server echoes until the end
	wg.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d came back, or other ones: %v", len(got), len(data), err)
	}
}

// Another agent serves the names of a slot that it adopts.
func TestNamesOfAnAdoptedSlot(t *testing.T) {
	n := newNamesWorld(t)
	ctx := t.Context()
	dead, err := Open(ctx, n.cfg)
	testkit.Must(t, err)
	slot, err := dead.Acquire(ctx, "a")
	testkit.Must(t, err)
	n.guest = newGuest(t, slot)
	named := policy(t, true, []string{"example.com"}, nil)
	testkit.Must(t, slot.SetPolicy(ctx, named))
	n.hold(t, "example.com")
	n.abandon(dead)
	p := n.open(t, nil)
	adopted, err := p.Adopt(ctx, slot.Ref())
	testkit.Must(t, err)
	testkit.Must(t, adopted.SetPolicy(ctx, named))
	n.hold(t, "example.com")
	n.guest.stop()
	testkit.Must(t, adopted.Release(ctx))
}

// The next owner of a slot has no names of the last one.
func TestNamesEndWithTheSlot(t *testing.T) {
	n := newNamesWorld(t)
	p := n.open(t, func(c *Config) { c.Ready, c.Max = 1, 1 })
	waitReady(t, p, 1)
	first := acquire(t, p, "first")
	n.guest = newGuest(t, first)
	testkit.Must(t, first.SetPolicy(t.Context(), policy(t, true, []string{"example.com"}, nil)))
	old := n.hold(t, "example.com")
	if !listens(t, first.Namespace(), namesPort) {
		t.Error("no server listens")
	}
	n.guest.stop()
	testkit.Must(t, first.Release(t.Context()))
	second := acquire(t, p, "second")
	n.guest = newGuest(t, second)
	if status, _, err := n.get(t, n.client(t, worldPublic), "http://any.test/"); err != nil || status != http.StatusOK {
		t.Errorf("the next owner is answered %d, %v", status, err)
	}
	if listens(t, second.Namespace(), namesPort) {
		t.Error("the server of the last owner is left")
	}
	old.Close()
}

// listens reports whether a socket of the namespace listens at a port, by TCP.
func listens(t *testing.T, path string, port int) bool {
	t.Helper()
	var sockets []byte
	testkit.Must(t, netns.Do(path, func() (err error) {
		sockets, err = os.ReadFile("/proc/thread-self/net/tcp")
		return err
	}))
	return strings.Contains(string(sockets), fmt.Sprintf(":%04X 00000000:0000 0A", port))
}

func dialTCP(t *testing.T, path, address string, port int) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	conn, err := dial(ctx, path, "tcp4", net.JoinHostPort(address, fmt.Sprint(port)))
	if err == nil {
		conn.Close()
	}
	return err
}

// A VMM that was taken over sends nothing from its slot.
func TestTheSlotItselfSendsNothing(t *testing.T) {
	n := newNamesLab(t)
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, true, []string{"example.com"}, nil)))
	if err := dialTCP(t, n.slot.Namespace(), worldPublic, 80); err == nil {
		t.Error("a process of the slot reaches the world")
	}
	if dropped := counted(t, n.slot.Namespace(), slotTable, "from the slot"); dropped == 0 {
		t.Error("no packet was dropped")
	}
}
