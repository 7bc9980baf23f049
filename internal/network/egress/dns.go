package egress

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"wrenn"
)

// passedOn are the types of records that are passed on as they are. Addresses are
// filtered, and HTTPS and SVCB have no answer: they have the keys of ECH.
var passedOn = []uint16{dns.TypeCNAME, dns.TypeTXT, dns.TypeMX, dns.TypeSRV, dns.TypeNS, dns.TypeSOA, dns.TypeCAA}

// withoutAnswer are the types that names of a sandbox never have.
var withoutAnswer = []uint16{dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB}

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
	switch {
	case !policy.AllowsName(name, 0):
		answer.Rcode = dns.RcodeRefused
		s.record(wrenn.EgressEvent{
			Protocol: wrenn.EgressDNS, Name: name, Port: 53,
			Verdict: wrenn.EgressDenied, Reason: "the network policy does not allow this name",
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
	f, err := s.names.find(ctx, name)
	if err != nil {
		answer.Rcode = dns.RcodeServerFailure
		s.record(wrenn.EgressEvent{Protocol: wrenn.EgressDNS, Name: name, Port: 53, Verdict: verdictOf(err), Reason: err.Error()})
		return
	}
	answer.Rcode = f.rcode
	for _, addr := range s.reachable(f.addrs, policy) {
		answer.Answer = append(answer.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: asked, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(max(1, time.Until(f.until).Seconds()))},
			A:   addr.AsSlice(),
		})
	}
	if len(answer.Answer) == 0 && len(f.addrs) > 0 {
		answer.Rcode = dns.RcodeRefused
		s.record(wrenn.EgressEvent{
			Protocol: wrenn.EgressDNS, Name: name, Port: 53, Address: f.addrs[0],
			Verdict: wrenn.EgressDenied, Reason: "its name leads to no address that the sandbox may reach",
		})
	}
}

// fillFrom answers with the records of the type that were asked for.
func (s *Server) fillFrom(ctx context.Context, answer *dns.Msg, name string, q dns.Question) {
	got, err := s.cfg.Exchange(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(name), q.Qtype))
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
