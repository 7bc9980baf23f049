package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"wrenn.dev/client"
	"wrenn.dev/internal/netns"
)

// The addresses of a server that guests take for one of the public internet, and of the
// host's link to it. The host has a route to them only during the measurement.
const (
	serverNetwork = "11.233.0.2/24"
	serverAddress = "11.233.0.2"
	gateNetwork   = "11.233.0.1/24"
)

// byName compares the downloads of a real guest from a host that its policy allows by name with
// those by plain NAT.
func byName(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := newStack(ctx, b, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	if err := s.serveZeros(ctx, b.prefix+"web"); err != nil {
		return nil, err
	}
	box, err := s.box(ctx)
	if err != nil {
		return nil, err
	}
	fetch := func(policy client.NetworkPolicy) func(context.Context) (sample, error) {
		return func(ctx context.Context) (sample, error) {
			if _, err := s.api.SetNetwork(ctx, box.ID, policy); err != nil {
				return nil, err
			}
			url := fmt.Sprintf("http://zeros.test/?mib=%d", b.fileMiB)
			r, err := s.api.Exec(ctx, box.ID, client.Command{Cmd: "curl", Args: []string{
				"-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download} %{time_total}", "--connect-to", "::" + serverAddress + ":", url,
			}, Timeout: 10 * time.Minute})
			if err != nil {
				return nil, err
			}
			size, took, _ := strings.Cut(string(r.Stdout), " ")
			if want := strconv.Itoa(b.fileMiB << 20); r.ExitCode != 0 || size != want {
				return nil, fmt.Errorf("the guest got %q of %s bytes: %s", size, want, r.Stderr)
			}
			t, err := strconv.ParseFloat(took, 64)
			return sample{float64(b.fileMiB) / t}, err
		}
	}
	named := client.NetworkPolicy{Default: client.DenyByDefault, Allow: []string{"zeros.test"}, DNSServers: []string{serverAddress}}
	figures, err := pairs(ctx, b.rounds, fetch(named), fetch(client.NetworkPolicy{}))
	if err != nil {
		return nil, err
	}
	f := figures[0]
	return []row{{fmt.Sprintf("a guest's download of %d MiB from a host allowed by name; bare: by plain NAT", b.fileMiB), mibs(f.ours), mibs(f.bare), f.ratio, ">= 0.8"}}, nil
}

// serveZeros makes a namespace that the host has a link to, and serves zeros by HTTP there, and
// its address for every name by DNS. Both end with the stack.
func (s *stack) serveZeros(ctx context.Context, name string) error {
	path, err := netns.Create(name)
	if err != nil {
		return err
	}
	s.undo.Add(func(context.Context) error { return netns.Delete(name) })
	if err := linkTo(path, name); err != nil {
		return err
	}
	var web net.Listener
	names := &dns.Server{Handler: dns.HandlerFunc(answerServer)}
	if err := netns.Do(path, func() (err error) {
		if web, err = new(net.ListenConfig).Listen(ctx, "tcp4", serverAddress+":80"); err != nil {
			return err
		}
		s.undo.Add(func(context.Context) error { return closedAlready(web.Close()) })
		names.PacketConn, err = new(net.ListenConfig).ListenPacket(ctx, "udp4", serverAddress+":53")
		return err
	}); err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(zeros), ReadHeaderTimeout: time.Minute}
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(web) })        // until Close
	work.Go(func() { _ = names.ActivateAndServe() }) // as above
	s.undo.Add(func(context.Context) error {
		err := errors.Join(server.Close(), names.PacketConn.Close())
		work.Wait()
		return err
	})
	return nil
}

// closedAlready returns nil for the error of a second Close.
func closedAlready(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// linkTo makes a link of this name to the namespace, with the addresses of both ends. It goes
// with the namespace.
func linkTo(path, name string) error {
	namespace, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer namespace.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: name})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(namespace.Fd())
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := setLink(name, gateNetwork); err != nil {
		return err
	}
	return netns.Do(path, func() error { return setLink("eth0", serverNetwork) })
}

// setLink gives a link of this thread's namespace an address and sets it up.
func setLink(name, network string) error {
	nl, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer nl.Close()
	link, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(network)
	if err != nil {
		return err
	}
	return errors.Join(nl.AddrAdd(link, addr), nl.LinkSetUp(link))
}

// zeros answers with as many MiB of zeros as the query says.
func zeros(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.URL.Query().Get("mib"))
	for part := make([]byte, 1<<20); n > 0; n-- {
		if _, err := w.Write(part); err != nil {
			return
		}
	}
}

// answerServer answers that the server has each name.
func answerServer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(serverAddress)}}
	_ = w.WriteMsg(m) // it is asked again
}
