// Package egress lets a guest reach hosts by name. It answers the guest's questions
// for names, and passes on TCP connections that name an allowed host, in the SNI of
// TLS or the Host of HTTP/1, to an address that it resolved itself. Where the guest
// wanted to connect to decides nothing but the port. Requests to hosts with header
// rules get headers, and the secrets in them, that the guest does not see. The package
// does not know network slots: its Config has the sockets and the way out.
//
// Everything that a guest sends is hostile: it is bounded in size, time and number.
package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"wrenn.dev"
)

// Bounds of one sandbox.
const (
	// MaxConnections is how many connections by name a sandbox may have at a time.
	// Each needs up to six descriptors of the agent.
	MaxConnections = 512
	maxQuestions   = 64               // that are being answered
	maxStreams     = 16               // of questions by TCP
	firstBytes     = 10 * time.Second // in which a client must say where it wants to go
	dialTimeout    = 15 * time.Second // to resolve a name and connect to it
	dialAttempt    = 5 * time.Second  // for one of several addresses
	askTimeout     = 5 * time.Second  // to answer a question
)

// Config is what a Server works with. All fields but Roots and Record are needed.
type Config struct {
	TCP    net.Listener   // of *net.TCPConn that were redirected from the guest
	UDPDNS net.PacketConn // questions of the guest
	TCPDNS net.Listener   // more of them
	// Original returns where a redirected connection was to go.
	Original func(*net.TCPConn) (netip.AddrPort, error)
	// Dial connects to an address by TCP, as the sandbox would. The result is a *net.TCPConn.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Exchange asks the DNS of the host.
	Exchange func(context.Context, *dns.Msg) (*dns.Msg, error)
	// DialDNS connects to a DNS server of the policy by udp or tcp, as the sandbox would.
	DialDNS func(ctx context.Context, network, address string) (net.Conn, error)
	// Closed reports whether no sandbox may reach an address.
	Closed func(netip.Addr) bool
	// Shared has room for the connections of all sandboxes of the host: a place is
	// sent to it and received again.
	Shared chan struct{}
	// Intercepts is the same as Shared for connections to hosts with header rules, which
	// need memory besides.
	Intercepts chan struct{}
	// Roots are the authorities of hosts with header rules; nil: those of this machine.
	Roots *x509.CertPool
	// Record gets what was decided. It must not block.
	Record func(wrenn.EgressEvent)
	Log    *slog.Logger
}

// Server serves one sandbox. Its methods are safe for concurrent use.
type Server struct {
	cfg        Config
	dns        []*dns.Server
	places     chan struct{} // one for each connection
	intercepts chan struct{} // one for each of those to a host with header rules
	asking     chan struct{} // one for each question
	ctx        context.Context
	stop       context.CancelFunc
	work       sync.WaitGroup
	mu         sync.Mutex // guards the fields below
	policy     wrenn.NetworkPolicy
	names      *resolver // by the DNS servers of the policy
	open       map[*passage]struct{}
	stopping   bool

	credentials *credentials
	authority   Authority // of the credentials
}

// Serve starts a server with a policy. The caller must Close it, which also closes
// the sockets of cfg.
func Serve(cfg Config, policy wrenn.NetworkPolicy) *Server {
	if cfg.Record == nil {
		cfg.Record = func(wrenn.EgressEvent) {}
	}
	s := &Server{
		cfg: cfg, policy: policy, open: map[*passage]struct{}{},
		credentials: &credentials{}, intercepts: make(chan struct{}, maxIntercepted),
		places: make(chan struct{}, MaxConnections), asking: make(chan struct{}, maxQuestions),
	}
	s.names = newResolver(s.exchange)
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.serveDNS()
	s.work.Go(s.accept)
	return s
}

// SetPolicy changes the policy. Connections that it allows continue, by their name or
// by the address that they lead to; the others end.
func (s *Server) SetPolicy(policy wrenn.NetworkPolicy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(policy.DNSServers, s.policy.DNSServers) {
		s.names = newResolver(s.exchange) // what the others said is forgotten
	}
	s.policy = policy
	for p := range s.open {
		if !p.allowedBy(policy) {
			p.abort()
		}
	}
}

// Close ends all connections and returns when nothing runs. Twice is allowed.
func (s *Server) Close() {
	s.stop()
	s.mu.Lock()
	s.stopping = true
	for p := range s.open {
		p.abort()
	}
	s.mu.Unlock()
	for _, server := range s.dns {
		_ = server.Shutdown() // it is an error only when it was not started or shut down before
	}
	_, _, _ = s.cfg.TCP.Close(), s.cfg.UDPDNS.Close(), s.cfg.TCPDNS.Close() // nothing is left to write
	s.work.Wait()
}

// current returns the policy.
func (s *Server) current() wrenn.NetworkPolicy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policy
}

// enter counts a connection as open, unless the policy changed and no longer allows it.
func (s *Server) enter(p *passage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || !p.allowedBy(s.policy) {
		return errors.New("the policy changed")
	}
	s.open[p] = struct{}{}
	return nil
}

func (s *Server) leave(p *passage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, p)
}

// accept takes connections until the listener is closed.
func (s *Server) accept() {
	for {
		conn, err := s.cfg.TCP.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the host has no descriptor left, or the guest reset the connection
			s.cfg.Log.Warn("cannot accept a sandbox's connection by name", slog.Any("err", err))
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(time.Second):
			}
			continue
		}
		s.begin(conn.(*net.TCPConn))
	}
}

// begin passes a connection on, if there is a place for it.
func (s *Server) begin(conn *net.TCPConn) {
	release, err := s.place()
	if err != nil {
		s.record(wrenn.EgressEvent{Protocol: wrenn.EgressTCP, Verdict: wrenn.EgressDenied, Reason: err.Error()})
		reset(conn)
		return
	}
	s.work.Go(func() {
		defer release()
		s.pass(conn)
	})
}

// place takes a place of the sandbox and one of the host.
func (s *Server) place() (release func(), err error) {
	return takeBoth(s.places, s.cfg.Shared,
		fmt.Sprintf("the sandbox has %d connections by name, which is the limit", MaxConnections),
		"the sandboxes of this host have as many connections by name as it allows")
}

// takeBoth takes a place of each, or fails with the text for the one that is full.
func takeBoth(own, shared chan struct{}, ownFull, sharedFull string) (release func(), err error) {
	select {
	case own <- struct{}{}:
	default:
		return nil, errors.New(ownFull)
	}
	select {
	case shared <- struct{}{}:
		return func() { <-shared; <-own }, nil
	default:
		<-own
		return nil, errors.New(sharedFull)
	}
}

func (s *Server) record(e wrenn.EgressEvent) {
	e.At = time.Now()
	s.cfg.Record(e)
}
