package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of what is known of names, for one sandbox.
const (
	maxNames    = 256
	maxPerName  = 16
	shortestTTL = 5 * time.Second // also of a name that does not exist
	longestTTL  = 5 * time.Minute
)

// resolver finds the addresses of names and keeps them for a while, so that a guest
// that has asked for a name connects to it without another question.
type resolver struct {
	exchange func(context.Context, *dns.Msg) (*dns.Msg, error)

	mu    sync.Mutex // guards known
	known map[string]found
}

// found is what is known of a name.
type found struct {
	addrs []netip.Addr // IPv4
	rcode int          // of the answer: success, or that the name does not exist
	until time.Time
}

func newResolver(exchange func(context.Context, *dns.Msg) (*dns.Msg, error)) *resolver {
	return &resolver{exchange: exchange, known: map[string]found{}}
}

// addresses returns the IPv4 addresses of a canonical name, at least one.
func (r *resolver) addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	f, err := r.find(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case len(f.addrs) == 0:
		return nil, unreachableError{errors.New("its name has no IPv4 address")}
	}
	return f.addrs, nil
}

// Resolve returns the IPv4 addresses of a canonical name, at least one, by one question
// to exchange.
func Resolve(ctx context.Context, exchange func(context.Context, *dns.Msg) (*dns.Msg, error), name string) ([]netip.Addr, error) {
	return newResolver(exchange).addresses(ctx, name)
}

// find returns what is known of a canonical name.
func (r *resolver) find(ctx context.Context, name string) (found, error) {
	if f, ok := r.kept(name); ok {
		return f, nil
	}
	question := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	answer, err := r.exchange(ctx, question)
	if err != nil {
		return found{}, unreachableError{fmt.Errorf("its name cannot be resolved: %w", err)}
	}
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return found{}, unreachableError{fmt.Errorf("its name cannot be resolved: the server answers %s", dns.RcodeToString[answer.Rcode])}
	}
	f := foundIn(answer)
	r.keep(name, f)
	return f, nil
}

// foundIn returns the addresses of an answer, whatever aliases led to them.
func foundIn(answer *dns.Msg) found {
	ttl := longestTTL
	f := found{rcode: answer.Rcode}
	for _, rr := range answer.Answer {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		a, ok := rr.(*dns.A)
		if !ok || len(f.addrs) == maxPerName {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
			f.addrs = append(f.addrs, addr)
		}
	}
	if len(f.addrs) == 0 {
		ttl = shortestTTL
	}
	f.until = time.Now().Add(max(ttl, shortestTTL))
	return f
}

func (r *resolver) kept(name string) (found, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.known[name]
	return f, ok && time.Now().Before(f.until)
}

func (r *resolver) keep(name string, f found) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other := range r.known { // any one: what is still needed is asked for again
		if len(r.known) < maxNames {
			break
		}
		delete(r.known, other)
	}
	r.known[name] = f
}

// Upstream asks DNS servers.
type Upstream struct {
	// Servers returns the addresses to ask, in order.
	Servers func() ([]netip.AddrPort, error)
	// Dial connects by udp or tcp.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Exchange returns the first answer of a server, by TCP if it is long.
func (u Upstream) Exchange(ctx context.Context, question *dns.Msg) (*dns.Msg, error) {
	servers, err := u.Servers()
	if err != nil {
		return nil, err
	}
	errs := []error{}
	for _, server := range servers {
		answer, err := u.ask(ctx, "udp", server, question)
		if err == nil && answer.Truncated {
			answer, err = u.ask(ctx, "tcp", server, question)
		}
		if err == nil && answer.Rcode == dns.RcodeServerFailure {
			err = fmt.Errorf("%s cannot answer", server)
		}
		if err == nil {
			return answer, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("the host has no DNS server")
	}
	return nil, errors.Join(errs...)
}

// ask asks one server once.
func (u Upstream) ask(ctx context.Context, network string, server netip.AddrPort, question *dns.Msg) (*dns.Msg, error) {
	const oneTry = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, oneTry)
	defer cancel()
	conn, err := u.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // the answer was read
	client := dns.Client{Net: network, Timeout: oneTry}
	answer, _, err := client.ExchangeWithConnContext(ctx, question, &dns.Conn{Conn: conn})
	return answer, err
}

// HostServers returns the servers of the host's /etc/resolv.conf.
func HostServers() ([]netip.AddrPort, error) {
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil, fmt.Errorf("DNS servers of the host: %w", err)
	}
	var servers []netip.AddrPort
	for _, text := range config.Servers {
		if addr, err := netip.ParseAddr(text); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, 53))
		}
	}
	return servers, nil
}
