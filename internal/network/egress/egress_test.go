package egress

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// served is a server whose guest is a client on this machine.
type served struct {
	*Server
	address string // of redirected connections
	dns     string
	asked   chan string
	dialed  chan netip.AddrPort

	mu     sync.Mutex
	events []wrenn.EgressEvent
}

func (s *served) verdicts() (text []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		text = append(text, strings.TrimSpace(string(e.Verdict)+" "+string(e.Protocol)+" "+e.Name+" "+e.Reason))
	}
	return text
}

// serve starts a server that allows example.com, which is at 192.0.2.1; connections
// to that lead to target.
func serve(t *testing.T, target string, shared int) *served {
	t.Helper()
	return serveWith(t, target, shared, func(*Config) {})
}

// serveWith is serve with another configuration.
func serveWith(t *testing.T, target string, shared int, change func(*Config)) *served {
	t.Helper()
	s := &served{asked: make(chan string, 100), dialed: make(chan netip.AddrPort, 100)}
	cfg := Config{
		Original: func(*net.TCPConn) (netip.AddrPort, error) { return netip.MustParseAddrPort("203.0.113.9:80"), nil },
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			s.dialed <- to
			return new(net.Dialer).DialContext(ctx, "tcp4", target)
		},
		Exchange: func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
			s.asked <- q.Question[0].Name
			m := new(dns.Msg).SetReply(q)
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 1)}}
			return m, nil
		},
		Closed: func(netip.Addr) bool { return false },
		Shared: make(chan struct{}, shared), Intercepts: make(chan struct{}, shared),
		Record: func(e wrenn.EgressEvent) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, e)
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	var lc net.ListenConfig
	var err error
	cfg.TCP, err = lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	testkit.Must(t, err)
	cfg.TCPDNS, err = lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	testkit.Must(t, err)
	cfg.UDPDNS, err = lc.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	testkit.Must(t, err)
	s.address, s.dns = cfg.TCP.Addr().String(), cfg.UDPDNS.LocalAddr().String()
	policy, err := wrenn.ParseNetworkPolicy(true, []string{"example.com", "*.example.com"}, nil)
	testkit.Must(t, err)
	change(&cfg)
	s.Server = Serve(cfg, policy)
	t.Cleanup(func() { s.Close(); s.Close() })
	return s
}

const request = "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"

func (s *served) connect(t *testing.T, first string) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp4", s.address)
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, first)
	testkit.Must(t, err)
	return conn
}

// echoServer sends back what it gets.
func echoServer(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	testkit.Must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	return l.Addr().String()
}

func wantEcho(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v", got, err)
	}
}

// What waits for a guest is bounded: its buffer does not grow by itself, also where the
// agent ends its TLS.
func TestGuestSendBuffer(t *testing.T) {
	accepted := make(chan *net.TCPConn, 1)
	noting := func(cfg *Config) {
		original := cfg.Original
		cfg.Original = func(conn *net.TCPConn) (netip.AddrPort, error) {
			accepted <- conn
			return original(conn)
		}
	}
	s := serveWith(t, echoServer(t), 10, noting)
	conn := s.connect(t, request)
	wantEcho(t, conn, request) // so the relay works
	wantSendBuffer(t, <-accepted)

	l := newHeadersLab(t, target(t, false), false, noting)
	if status, _, _ := get(t, l.http(t, false), func(*http.Request) {}); status != http.StatusOK {
		t.Fatalf("a request with a header rule was answered by %d", status)
	}
	wantSendBuffer(t, <-accepted)
}

func wantSendBuffer(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	testkit.Must(t, err)
	var got int
	var failed error
	testkit.Must(t, raw.Control(func(fd uintptr) {
		got, failed = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	}))
	testkit.Must(t, failed)
	if want := 2 * guestSendBuffer; got != want { // the kernel doubles it, for its own needs
		t.Errorf("the buffer has %d bytes, want %d", got, want)
	}
}

func TestPassage(t *testing.T) {
	s := serve(t, echoServer(t), 10)
	conn := s.connect(t, request)
	wantEcho(t, conn, request)
	testkit.Must(t, conn.(*net.TCPConn).CloseWrite())
	if rest, err := io.ReadAll(conn); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	if to := <-s.dialed; to.String() != "192.0.2.1:80" {
		t.Errorf("connected to %s", to)
	}
	testkit.WaitUntil(t, "the end is recorded", func() bool { return len(s.verdicts()) == 2 })
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.events[1]; e.Verdict != wrenn.EgressEnded || e.Sent != int64(len(request)) || e.Received != int64(len(request)) || e.Name != "example.com" {
		t.Errorf("recorded %+v", e)
	}
}

// A name is asked for once while its answer holds, also when many ask.
func TestNamesAreKept(t *testing.T) {
	s := serve(t, echoServer(t), 10)
	client := dns.Client{Timeout: 20 * time.Second}
	for range 3 {
		m, _, err := client.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion("EXAMPLE.com.", dns.TypeA), s.dns)
		testkit.Must(t, err)
		if len(m.Answer) != 1 || m.Answer[0].Header().Name != "EXAMPLE.com." || m.Answer[0].Header().Ttl > 60 {
			t.Errorf("answer %v", m)
		}
	}
	wantEcho(t, s.connect(t, request), request)
	if n := len(s.asked); n != 1 {
		t.Errorf("%d questions to the host's server", n)
	}
	for i := range 2 * maxNames {
		name := strings.Repeat("a", i%50+1) + strings.Repeat("b", i/50+1) + ".example.com"
		s.names.keep(name, found{until: time.Now().Add(time.Hour)})
	}
	if n := len(s.names.known); n > maxNames {
		t.Errorf("%d names are kept", n)
	}
}

// The connections of all sandboxes have a bound, and a place is free again at the end.
func TestConnectionsAreBounded(t *testing.T) {
	s := serve(t, echoServer(t), 1)
	first := s.connect(t, request)
	wantEcho(t, first, request)
	second, err := new(net.Dialer).DialContext(t.Context(), "tcp4", s.address)
	if err == nil { // else the reset was early
		_, err = second.Read(make([]byte, 1))
		second.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection over the limit: %v", err)
	}
	testkit.Must(t, first.Close())
	testkit.WaitUntil(t, "the place is free", func() bool { return len(s.cfg.Shared) == 0 })
	wantEcho(t, s.connect(t, request), request)
}

func TestCloseEndsConnections(t *testing.T) {
	s := serve(t, echoServer(t), 10)
	open, silent := s.connect(t, request), s.connect(t, "")
	wantEcho(t, open, request)
	s.Close()
	for _, conn := range []net.Conn{open, silent} {
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// The host does not answer: the client learns why.
func TestUnreachableHost(t *testing.T) {
	s := serve(t, "127.0.0.1:1", 10)
	answer, err := io.ReadAll(s.connect(t, request))
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 502 ") || !strings.Contains(string(answer), "does not answer") {
		t.Errorf("%q, %v", answer, err)
	}
	if got := s.verdicts(); len(got) != 1 || !strings.HasPrefix(got[0], "failed http example.com its host does not answer") {
		t.Errorf("recorded %q", got)
	}
}

func TestUpstream(t *testing.T) {
	dead, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	testkit.Must(t, err)
	testkit.Must(t, dead.Close())
	s := serve(t, "127.0.0.1:1", 10) // is itself a server
	up := Upstream{
		Servers: func() ([]netip.AddrPort, error) {
			return []netip.AddrPort{netip.MustParseAddrPort(dead.LocalAddr().String()), netip.MustParseAddrPort(s.dns)}, nil
		},
		Dial: new(net.Dialer).DialContext,
	}
	m, err := up.Exchange(t.Context(), new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
	if err != nil || len(m.Answer) != 1 {
		t.Errorf("Exchange() = %v, %v", m, err)
	}
}
