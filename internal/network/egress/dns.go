package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"wrenn.dev"
)

// passedOn are the types of records that are passed on as they are. Addresses are
// filtered, and HTTPS and SVCB have no answer: they have the keys of ECH.
var passedOn = []uint16{dns.TypeCNAME, dns.TypeTXT, dns.TypeMX, dns.TypeSRV, dns.TypeNS, dns.TypeSOA, dns.TypeCAA}

// withoutAnswer are the types that names of a sandbox never have.
var withoutAnswer = []uint16{dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB}

const dnsPort = 53

// largestDatagram is how long an answer by UDP may be, to a client that allows that:
// longer ones are fragmented, https://www.dnsflagday.net/2020.
const largestDatagram = 1232

// serveDNS starts the servers.
func (s *Server) serveDNS() {
	const idle = 8 * time.Second
	handler := dns.HandlerFunc(s.answer)
	udp := &dns.Server{PacketConn: s.cfg.UDPDNS, Handler: handler, UDPSize: dns.MinMsgSize}
	tcp := &dns.Server{
		Listener: netutil.LimitListener(s.cfg.TCPDNS, maxStreams), Handler: handler,
		ReadTimeout: askTimeout, WriteTimeout: askTimeout, IdleTimeout: func() time.Duration { return idle },
	}
	s.dns = []*dns.Server{udp, tcp}
	var started []chan struct{}
	for _, server := range s.dns {
		ready := make(chan struct{})
		started = append(started, ready)
		server.NotifyStartedFunc = func() { close(ready) }
		s.work.Go(func() { _ = server.ActivateAndServe() }) // it ends when its socket is closed
	}
	for _, ready := range started {
		<-ready
	}
}

// answer answers a question of the guest.
func (s *Server) answer(w dns.ResponseWriter, question *dns.Msg) {
	answer := new(dns.Msg).SetReply(question)
	select {
	case s.asking <- struct{}{}:
		s.fill(answer, question)
		<-s.asking
	default:
		answer.Rcode = dns.RcodeServerFailure
	}
	size := dns.MinMsgSize
	if _, stream := w.RemoteAddr().(*net.TCPAddr); stream {
		size = dns.MaxMsgSize
	} else if opt := question.IsEdns0(); opt != nil {
		size = min(max(int(opt.UDPSize()), size), largestDatagram)
	}
	if question.IsEdns0() != nil {
		answer.SetEdns0(largestDatagram, false)
	}
	answer.Truncate(size)
	_ = w.WriteMsg(answer) // the guest asks again
}

// fill writes the answer to a question.
func (s *Server) fill(answer, question *dns.Msg) {
	ctx, cancel := context.WithTimeout(s.ctx, askTimeout)
	defer cancel()
	answer.RecursionAvailable = true
	q := question.Question[0] // the library accepts nothing else than one
	name := wrenn.CanonicalName(q.Name)
	policy := s.current()
	switch d := policy.DecideName(name, 0); {
	case !d.Allowed:
		answer.Rcode = dns.RcodeRefused
		s.record(wrenn.EgressEvent{
			Protocol: wrenn.EgressDNS, Name: name, Port: 53,
			Verdict: wrenn.EgressDenied, Reason: d.Reason("this name"),
		})
	case q.Qclass != dns.ClassINET:
		answer.Rcode = dns.RcodeRefused
	case q.Qtype == dns.TypeA:
		s.fillAddresses(ctx, answer, q.Name, name, policy)
	case slices.Contains(withoutAnswer, q.Qtype):
	case slices.Contains(passedOn, q.Qtype):
		s.fillFrom(ctx, answer, name, q)
	default:
		answer.Rcode = dns.RcodeNotImplemented
	}
}

// fillAddresses answers with the addresses that the sandbox may reach.
func (s *Server) fillAddresses(ctx context.Context, answer *dns.Msg, asked, name string, policy wrenn.NetworkPolicy) {
	f, err := s.resolver().find(ctx, name)
	if err != nil {
		answer.Rcode = dns.RcodeServerFailure
		s.record(wrenn.EgressEvent{Protocol: wrenn.EgressDNS, Name: name, Port: 53, Verdict: verdictOf(err), Reason: err.Error()})
		return
	}
	answer.Rcode = f.rcode
	for _, addr := range s.reachable(f.addrs, name, 0, policy) {
		answer.Answer = append(answer.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: asked, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(max(1, time.Until(f.until).Seconds()))},
			A:   addr.AsSlice(),
		})
	}
	if len(answer.Answer) == 0 && len(f.addrs) > 0 {
		answer.Rcode = dns.RcodeRefused
		s.record(wrenn.EgressEvent{
			Protocol: wrenn.EgressDNS, Name: name, Port: 53, Address: f.addrs[0],
			Verdict: wrenn.EgressDenied, Reason: s.whyUnreachable(f.addrs, name, 0, policy),
		})
	}
}

// fillFrom answers with the records of the type that were asked for.
func (s *Server) fillFrom(ctx context.Context, answer *dns.Msg, name string, q dns.Question) {
	got, err := s.exchange(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(name), q.Qtype))
	if err != nil {
		answer.Rcode = dns.RcodeServerFailure
		return
	}
	answer.Rcode = got.Rcode
	for _, rr := range got.Answer {
		if rr.Header().Rrtype == q.Qtype || rr.Header().Rrtype == dns.TypeCNAME {
			answer.Answer = append(answer.Answer, rr)
		}
	}
}

// exchange asks the DNS servers of the policy, or those of the host if it has none.
func (s *Server) exchange(ctx context.Context, question *dns.Msg) (*dns.Msg, error) {
	policy := s.current()
	if len(policy.DNSServers) == 0 {
		return s.cfg.Exchange(ctx, question)
	}
	return Upstream{Servers: func() ([]netip.AddrPort, error) { return s.servers(policy) }, Dial: s.cfg.DialDNS}.Exchange(ctx, question)
}

// servers returns the DNS servers of a policy that the sandbox may reach.
func (s *Server) servers(policy wrenn.NetworkPolicy) (servers []netip.AddrPort, err error) {
	why := errors.New("the DNS servers of the network policy are closed to all sandboxes")
	for _, addr := range policy.DNSServers {
		switch d := policy.DecideServer(addr); {
		case s.cfg.Closed(addr):
		case !d.Allowed:
			why = errors.New(d.Reason("the DNS server " + addr.String()))
		default:
			servers = append(servers, netip.AddrPortFrom(addr, dnsPort))
		}
	}
	if len(servers) == 0 {
		return nil, why
	}
	return servers, nil
}

// resolver returns what finds the addresses of names.
func (s *Server) resolver() *resolver {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names
}
