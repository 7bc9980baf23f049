package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"wrenn.dev"
)

// passage is a connection that was allowed.
type passage struct {
	guest       *net.TCPConn
	server      net.Conn
	name        string             // that the guest said it wants; "" if none
	byName      bool               // it leads to an address of name, not to where it was to go
	to          netip.AddrPort     // without an address if the proxy finds that
	proxy       *wrenn.EgressProxy // that it goes through; nil if none
	intercepted bool               // a header rule is about it
	hidden      bool               // it hides what it wants, which may not be name
	answer      []byte             // what the server sent before the guest did
}

// allowedBy reports whether a policy allows the connection.
func (p *passage) allowedBy(policy wrenn.NetworkPolicy) bool {
	if !p.proxy.Equal(policy.Proxy) {
		return false
	}
	if !p.to.Addr().IsValid() {
		return policy.PassesNames() && policy.DecideName(p.name, p.to.Port()).Allowed
	}
	return policy.Decide(p.name, p.to.Addr(), p.to.Port()).Allowed
}

// abort ends both sides, as a lost connection would.
func (p *passage) abort() {
	reset(p.guest)
	reset(p.server)
}

func reset(conn net.Conn) {
	if tcp := tcpOf(conn); tcp != nil {
		_, _ = tcp.SetLinger(0), tcp.Close() // it may be closed already
		return
	}
	_ = conn.Close() // as above
}

// tcpOf returns the socket of a connection, also of one by TLS; nil if it has none.
func tcpOf(conn net.Conn) *net.TCPConn {
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	tcp, _ := conn.(*net.TCPConn)
	return tcp
}

// pass decides about a connection of the guest, and passes it on if it is allowed.
// It closes the connection.
func (s *Server) pass(conn *net.TCPConn) {
	defer func() { _ = conn.Close() }() // pass has written all
	stop := context.AfterFunc(s.ctx, func() { reset(conn) })
	defer stop()
	event := wrenn.EgressEvent{Protocol: wrenn.EgressTCP}
	o, p, err := s.connect(conn, &event)
	if err != nil {
		event.Verdict, event.Reason = verdictOf(err), err.Error()
		s.record(event)
		refuse(conn, o, event)
		return
	}
	defer s.leave(p)
	_ = conn.SetWriteBuffer(guestSendBuffer) // the connection works without, too
	event.Verdict = wrenn.EgressAllowed
	s.record(event)
	started := time.Now()
	if p.intercepted {
		var failed error
		if event.Sent, event.Received, failed = s.intercept(o, p); failed != nil {
			event.Reason = failed.Error()
		}
	} else {
		event.Sent, event.Received = p.relay(o.data)
	}
	event.Verdict, event.Took = wrenn.EgressEnded, time.Since(started)
	s.record(event)
}

// connect reads where a connection is to go and connects to that. It enters in
// event what it learns. The caller must leave the passage.
func (s *Server) connect(conn *net.TCPConn, event *wrenn.EgressEvent) (o opening, p *passage, err error) {
	original, err := s.cfg.Original(conn)
	if err != nil {
		return o, nil, fmt.Errorf("where it was to go is not known: %w", err)
	}
	event.Address, event.Port = original.Addr(), original.Port()
	policy := s.current()
	if policy.Proxy != nil {
		event.Via = policy.Proxy.String()
	}
	o, early, err := s.readOpening(conn, original, policy)
	event.Protocol, event.Name = o.protocol, o.name
	p, err = route(o, err, original, policy)
	if err != nil || p.byName {
		early.close()
	}
	if err != nil {
		return o, nil, err
	}
	p.guest, p.proxy = conn, policy.Proxy
	if !p.byName && early.server != nil {
		p.server, p.answer = early.server, early.answer
	} else if err := s.dial(p, original.Port(), policy); err != nil {
		return o, nil, err
	}
	event.Address = p.to.Addr()
	if err := errors.Join(s.enter(p), conn.SetReadDeadline(time.Time{})); err != nil {
		reset(p.server)
		return o, nil, err
	}
	return o, p, nil
}

// earlyServer is a connection to where the guest's was to go, made before it is known
// what the guest wants. Its zero value is none.
type earlyServer struct {
	server net.Conn
	answer []byte // what it sent
}

func (e earlyServer) close() {
	if e.server != nil {
		reset(e.server)
	}
}

// silence is how long the agent waits for the first byte of a client before it connects to
// a server that may speak first.
const silence = 500 * time.Millisecond

// readOpening reads how the guest opens a connection. In some protocols the server
// speaks first. So where names are denied, and the address is not, it connects to the
// server and returns when either has spoken: a server that speaks first speaks neither TLS nor HTTP.
// Where only a proxy makes it read at all, it does so when the client has been silent for a while.
// The caller closes the earlyServer unless it uses it. The error is that of sniff.
func (s *Server) readOpening(conn *net.TCPConn, original netip.AddrPort, policy wrenn.NetworkPolicy) (opening, earlyServer, error) {
	var early earlyServer
	if err := conn.SetReadDeadline(time.Now().Add(firstBytes)); err != nil {
		return opening{protocol: wrenn.EgressTCP}, early, err
	}
	if !policy.DeniesNames() && policy.Proxy == nil || !policy.Decide("", original.Addr(), original.Port()).Allowed {
		o, err := sniff(conn)
		return o, early, err
	}
	if !policy.DeniesNames() {
		if first := readSoon(conn); len(first) > 0 {
			o, err := sniff(io.MultiReader(bytes.NewReader(first), conn))
			return o, early, err
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, dialAttempt)
	defer cancel()
	server, err := s.connectTo(ctx, original.String(), policy)
	if err != nil { // a name may lead elsewhere
		o, err := sniff(conn)
		return o, early, err
	}
	early.server = server
	return s.awaitFirst(conn, early)
}

// readSoon returns what the client says at once; nothing when it is silent or gone.
func readSoon(conn *net.TCPConn) []byte {
	buf := make([]byte, maxFirstBytes)
	if conn.SetReadDeadline(time.Now().Add(silence)) != nil {
		return nil
	}
	n, _ := conn.Read(buf) // an error is that of the next read
	if conn.SetReadDeadline(time.Now().Add(firstBytes)) != nil {
		return nil
	}
	return buf[:n]
}

// awaitFirst returns when the client or the early server has spoken.
func (s *Server) awaitFirst(conn *net.TCPConn, early earlyServer) (opening, earlyServer, error) {
	var work sync.WaitGroup
	work.Go(func() {
		buf := make([]byte, maxFirstBytes)
		n, _ := early.server.Read(buf) // an error is that of the next read
		early.answer = buf[:n]
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // ends sniff
	})
	o, err := sniff(conn)
	_ = early.server.SetReadDeadline(time.Unix(1, 0)) // ends the read; the connection fails later if this does
	work.Wait()
	_ = early.server.SetReadDeadline(time.Time{})
	return o, early, err
}

// route returns the way of a connection that was sniffed with that error: by its name
// if a header rule or the policy says so, else to where it was to go.
func route(o opening, sniffed error, original netip.AddrPort, policy wrenn.NetworkPolicy) (*passage, error) {
	if sniffed != nil && !errors.Is(sniffed, errEncrypted) {
		o.name = "" // it may not be what the connection wants
	}
	if _, ok := policy.HeaderRule(o.name, original.Port()); ok && o.protocol == wrenn.EgressTLS && o.name != "" {
		return &passage{name: o.name, byName: true, intercepted: true}, nil // its TLS ends here, so nothing in it is hidden
	}
	if sniffed == nil && policy.DecideName(o.name, original.Port()).ByName {
		return &passage{name: o.name, byName: true}, nil
	}
	d := policy.Decide("", original.Addr(), original.Port())
	if d.Allowed && o.name != "" {
		d = policy.Decide(o.name, original.Addr(), original.Port())
	}
	switch {
	case d.Allowed:
		return &passage{name: o.name, to: original, hidden: sniffed != nil}, nil
	case sniffed != nil:
		return nil, sniffed
	}
	return nil, errors.New(nameDecision(policy, o.name, d, original.Port()).Reason("this name at this port"))
}

// nameDecision returns the decision about a name if that denies it, else the one about
// its connection.
func nameDecision(policy wrenn.NetworkPolicy, name string, otherwise wrenn.NetworkDecision, port uint16) wrenn.NetworkDecision {
	if d := policy.DecideName(name, port); !d.Allowed {
		return d
	}
	return otherwise
}

// dial connects the passage to one of the addresses of its name, or to its address. Where
// the policy leaves names to its proxy, the proxy gets the name.
func (s *Server) dial(p *passage, port uint16, policy wrenn.NetworkPolicy) error {
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	defer cancel()
	if policy.Proxy != nil && p.name != "" && !p.hidden && policy.PassesNames() && policy.DecideName(p.name, port).Allowed {
		p.to = netip.AddrPortFrom(netip.Addr{}, port)
		server, err := s.connectTo(ctx, net.JoinHostPort(p.name, strconv.Itoa(int(port))), policy)
		p.server = server
		return err
	}
	addrs := []netip.Addr{p.to.Addr()}
	if p.byName {
		found, err := s.resolver().addresses(ctx, p.name)
		if err != nil {
			return err
		}
		if addrs = s.reachable(found, p.name, port, policy); len(addrs) == 0 {
			return errors.New(s.whyUnreachable(found, p.name, port, policy))
		}
	}
	var errs []error
	for _, addr := range addrs {
		p.to = netip.AddrPortFrom(addr, port)
		attempt, cancel := context.WithTimeout(ctx, dialAttempt)
		conn, err := s.connectTo(attempt, p.to.String(), policy)
		cancel()
		if err == nil {
			p.server = conn
			return nil
		}
		if policy.Proxy != nil && verdictOf(err) == wrenn.EgressDenied {
			return err
		}
		errs = append(errs, err)
	}
	return unreachableError{fmt.Errorf("its host does not answer: %w", errors.Join(errs...))}
}

// reachable returns the addresses of a name that are not closed to all sandboxes and
// that the policy allows to connections to that name: a name does not open what is
// denied by address.
func (s *Server) reachable(addrs []netip.Addr, name string, port uint16, policy wrenn.NetworkPolicy) []netip.Addr {
	var open []netip.Addr
	for _, addr := range addrs {
		if !s.cfg.Closed(addr) && policy.Decide(name, addr, port).Allowed {
			open = append(open, addr)
		}
	}
	return open
}

// whyUnreachable says why none of the addresses of a name is reachable.
func (s *Server) whyUnreachable(addrs []netip.Addr, name string, port uint16, policy wrenn.NetworkPolicy) string {
	for _, addr := range addrs {
		if !s.cfg.Closed(addr) {
			return "its name leads to no address that the sandbox may reach: " + policy.Decide(name, addr, port).Reason(addr.String())
		}
	}
	return "its name leads to no address that the sandbox may reach"
}

// guestSendBuffer is how much the kernel may hold for a guest that has not accepted it, of
// each connection, in bytes. The guest is on this machine, so more is of no use. By itself
// the buffer grows to several MiB, which a guest that does not read keeps for each of its
// connections. Downloads then took 1.5 times the CPU time of plain NAT, and 1.25 times with
// this; data that has left the caches before it is read would explain that.
const guestSendBuffer = 64 << 10

// relay copies in both directions until both have ended, and returns the bytes.
// First is what the guest has sent already. The end of one direction is passed on.
func (p *passage) relay(first []byte) (sent, received int64) {
	keepAlive := net.KeepAliveConfig{Enable: true} // with the defaults of Go: a dead peer is noticed
	_ = p.guest.SetKeepAliveConfig(keepAlive)      // a peer that is gone is noticed later without
	if tcp := tcpOf(p.server); tcp != nil {
		_ = tcp.SetKeepAliveConfig(keepAlive) // as above
	}
	n, err := p.server.Write(first)
	sent = int64(n)
	m, errAnswer := p.guest.Write(p.answer)
	if err != nil || errAnswer != nil {
		p.abort()
		return sent, int64(m)
	}
	var up int64
	var both sync.WaitGroup
	both.Go(func() { up = p.oneWay(p.server, p.guest) })
	both.Go(func() { received = p.oneWay(p.guest, p.server) })
	both.Wait()
	_ = p.server.Close() // both directions have ended
	return sent + up, int64(m) + received
}

// oneWay copies until from ends. The kernel moves the bytes (splice) where both are
// *net.TCPConn: all but those of a proxy by TLS.
func (p *passage) oneWay(to, from net.Conn) int64 {
	n, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		p.abort()
	}
	return n
}

// unreachableError means that a host is allowed and cannot be reached.
type unreachableError struct{ error }

func (e unreachableError) Unwrap() error { return e.error }

func verdictOf(err error) wrenn.EgressVerdict {
	if _, ok := errors.AsType[unreachableError](err); ok {
		return wrenn.EgressFailed
	}
	return wrenn.EgressDenied
}

// refuse tells the client in its own protocol that the connection is denied or failed.
func refuse(conn *net.TCPConn, o opening, event wrenn.EgressEvent) {
	const answerTime = time.Second
	var answer []byte
	denied := event.Verdict == wrenn.EgressDenied
	switch {
	case o.protocol == wrenn.EgressTLS && denied:
		answer = []byte{21, 3, 1, 0, 2, 2, 49} // fatal alert access_denied of RFC 8446
	case o.protocol == wrenn.EgressHTTP && denied:
		answer = httpAnswer("403 Forbidden", fmt.Sprintf("This sandbox may not connect to %q, port %d: %s.\n", event.Name, event.Port, event.Reason))
	case o.protocol == wrenn.EgressHTTP:
		answer = httpAnswer("502 Bad Gateway", fmt.Sprintf("This sandbox cannot connect to %q, port %d: %s.\n", event.Name, event.Port, event.Reason))
	default:
		reset(conn)
		return
	}
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	if _, err := conn.Write(answer); err != nil || conn.CloseWrite() != nil {
		reset(conn)
		return
	}
	// To close a connection with unread bytes resets it, and the client loses the answer.
	_, _ = io.Copy(io.Discard, io.LimitReader(conn, 2*maxFirstBytes))
}

func httpAnswer(status, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}
