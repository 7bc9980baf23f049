//go:build root && vm

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// kill deletes the hostile guest in the midst of what it does, and makes another one.
func (h *hostile) kill(t *testing.T) {
	t.Helper()
	h.works(t)
	h.checkMemory(t)
	testkit.Must(t, h.api.DeleteSandbox(t.Context(), h.id))
	h.id = h.made(t, "hostile").ID
}

// testSYNFlood floods the world with raw segments, of which few arrive and none is forged.
func (h *hostile) testSYNFlood(t *testing.T) {
	const perSecond, atOnce = 136, 680 // new connections of a sandbox: see docs/network.md
	conn := h.world.packets(t, "ip4:tcp", worldServer)
	var mu sync.Mutex // guards sources
	sources := map[string]int{}
	go func() {
		for buf := make([]byte, 64); ; {
			_, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			mu.Lock()
			sources[from.String()]++
			mu.Unlock()
		}
	}()
	arrived := func() int {
		mu.Lock()
		defer mu.Unlock()
		return sources[worldGate]
	}
	h.world.listen(t, worldServer+":80") // the kernel accepts
	path := h.put(t, "hostile_syn.py")
	began := time.Now()
	h.attack(t, fmt.Sprintf("setsid python3 %s %s 9 >/dev/null 2>&1 </dev/null &", path, worldServer))
	testkit.WaitUntil(t, "more arrives than may at once", func() bool { return arrived() > atOnce })
	r, err := h.neighbor.Exec(t.Context(), h.beside, client.Command{Cmd: "/bin/bash", Args: []string{"-c", "exec 3<>/dev/tcp/" + worldServer + "/80 && echo connected"}})
	if testkit.Must(t, err); string(r.Stdout) != "connected\n" {
		t.Errorf("the neighbor cannot connect during a flood: %s%s", r.Stdout, r.Stderr)
	}
	h.kill(t)
	most := atOnce + perSecond*int(time.Since(began).Seconds()+1)
	mu.Lock()
	defer mu.Unlock()
	delete(sources, worldServer) // its answers
	t.Logf("of the flood arrived %v in %s", sources, time.Since(began))
	// The neighbor's connection has packets, too; the flood gets a reset for each segment.
	if n := sources[worldGate]; n > most+100 {
		t.Errorf("%d segments arrived, more than %d", n, most)
	}
	if delete(sources, worldGate); len(sources) > 0 {
		t.Errorf("forged segments arrived from %v", sources)
	}
}

// evil is the name server of an attacker's domain. The first label of a name says which
// answer it gets.
type evil struct {
	closed []netip.Addr // of the host, and others that must not be reached
	asked  atomic.Int64
	others atomic.Int64 // questions for other domains
}

func (e *evil) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n := e.asked.Add(1)
	name := q.Question[0].Name
	if !strings.HasSuffix(name, ".evil.test.") {
		e.others.Add(1)
	}
	label, _, _ := strings.Cut(name, ".")
	_, stream := w.RemoteAddr().(*net.TCPAddr)
	if raw := hostileAnswer(label, q, stream); raw != nil {
		_, _ = w.Write(raw) // the agent may have left
		return
	}
	m := new(dns.Msg).SetReply(q)
	if q.Question[0].Qtype == dns.TypeA {
		for _, addr := range e.addresses(label, int(n)) {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: addr.AsSlice()})
		}
		if label == "alias" {
			m.Answer = append([]dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "localhost."}}, m.Answer...)
		}
	}
	_ = w.WriteMsg(m) // as above
}

// addresses returns those of a name, the nth time that something is asked.
func (e *evil) addresses(label string, n int) []netip.Addr {
	public := netip.MustParseAddr(worldServer)
	switch label {
	case "metadata":
		return []netip.Addr{netip.MustParseAddr("169.254.169.254")}
	case "loopback", "alias":
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	case "mixed":
		return append([]netip.Addr{public}, e.closed...)
	case "flip":
		return []netip.Addr{append(e.closed, public)[n%(len(e.closed)+1)]}
	}
	return e.closed
}

// hostileAnswer returns an answer that is hard to read, or nil.
func hostileAnswer(label string, q *dns.Msg, stream bool) []byte {
	m := new(dns.Msg).SetReply(q)
	head, err := m.Pack()
	if err != nil {
		return nil
	}
	switch label {
	case "loop": // an answer whose name points to itself
		at := len(head)
		head[7] = 1
		return append(head, 0xc0|byte(at>>8), byte(at), 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 1, 1, 1)
	case "chain": // names that each point to the one before, with a label more
		head[6], head[7] = 0x0f, 0xff
		for before := 12; len(head) < 16_000; {
			at := len(head)
			head = append(head, 1, 'a', 0xc0|byte(before>>8), byte(before), 0, 16, 0, 1, 0, 0, 0, 0, 0, 2, 1, 'a')
			before = at
		}
		if !stream {
			return head[:1200]
		}
		return head
	case "huge":
		if !stream {
			m.Truncated = true
			short, _ := m.Pack() // as head
			return short
		}
		name := q.Question[0].Name
		for n := range 3000 {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(11, 232, byte(n>>8), byte(n))})
		}
		m.Compress = true
		all, _ := m.Pack() // as head
		return all
	case "liar": // 65535 answers, of which none comes
		head[6], head[7] = 0xff, 0xff
		return head
	case "short":
		return head[:len(head)-3]
	}
	return nil
}

// serveDNS serves on an address of the world.
func (w *world) serveDNS(t *testing.T, address string, handler dns.Handler) {
	t.Helper()
	for _, s := range []*dns.Server{{PacketConn: w.packets(t, "udp4", address), Handler: handler}, {Listener: w.listen(t, address), Handler: handler}} {
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		var work sync.WaitGroup
		work.Go(func() { _ = s.ActivateAndServe() }) // until Shutdown
		<-ready
		t.Cleanup(func() { _ = s.Shutdown(); work.Wait() })
	}
}

// testDNS has a guest, which may reach the names of an attacker's domain, use them to
// reach the host, to tire the agent, to ask other name servers and to send data.
func (h *hostile) testDNS(t *testing.T) {
	e, elsewhere := &evil{}, &evil{}
	for _, a := range append(h.trap.addresses(t), "127.0.0.1", "169.254.0.22", "10.232.0.1") {
		e.closed = append(e.closed, netip.MustParseAddr(a))
	}
	h.world.serveDNS(t, worldServer+":53", e)
	h.world.serveDNS(t, worldProxy+":53", elsewhere)
	_, err := h.api.SetNetwork(t.Context(), h.id, client.NetworkPolicy{Default: client.DenyByDefault, Allow: []string{"*.evil.test"}, DNSServers: []string{worldServer}})
	testkit.Must(t, err)
	path := h.put(t, "hostile_dns.py")
	if got := h.attack(t, fmt.Sprintf("python3 %s %d %s", path, h.trap.port, worldProxy)); got != "" {
		t.Errorf("the guest succeeded: %s", got)
	}
	h.trap.check(t)
	if n := elsewhere.asked.Load(); n > 0 {
		t.Errorf("another name server got %d questions", n)
	}
	if n := e.others.Load(); n > 0 {
		t.Errorf("%d questions for names that are not allowed were passed on", n)
	}
	if e.asked.Load() == 0 {
		t.Error("the sandbox's own name server was never asked")
	}
	h.testTunnel(t, e, path)
}

// testTunnel sends data in questions, as fast as it can.
func (h *hostile) testTunnel(t *testing.T, e *evil, path string) {
	t.Helper()
	const perSecond, atOnce = 100, 200 // questions: see docs/network.md
	before, began := e.asked.Load(), time.Now()
	h.attack(t, fmt.Sprintf("setsid python3 %s flood >/dev/null 2>&1 </dev/null &", path))
	testkit.WaitUntil(t, "more is asked than may be at once", func() bool { return e.asked.Load()-before > atOnce })
	h.kill(t)
	asked, took := e.asked.Load()-before, time.Since(began)
	t.Logf("%d questions were passed on in %s", asked, took)
	if most := atOnce + perSecond*int64(took.Seconds()+1); asked > most {
		t.Errorf("%d questions were passed on, more than %d", asked, most)
	}
}

// testFreeze deletes a guest that hangs while it is to stop its processes for a checkpoint
// or a pause.
func (h *hostile) testFreeze(t *testing.T) {
	asked := h.world.count(t, worldServer+":9")
	for what, save := range map[string]func(context.Context) error{
		"checkpoint": func(ctx context.Context) error { _, err := h.api.CreateCheckpoint(ctx, h.id, ""); return err },
		"pause":      func(ctx context.Context) error { _, err := h.api.PauseSandbox(ctx, h.id); return err },
	} {
		h.replaceEnvd(t, worldServer+" hang")
		before := asked.Load()
		ended := make(chan error, 1)
		try := func() { go func() { ended <- save(t.Context()) }() }
		try()
		testkit.WaitUntil(t, "the guest is asked to stop its processes", func() bool {
			select {
			case err := <-ended:
				if err == nil {
					t.Fatalf("a %s succeeded, and the guest was not asked", what)
				}
				try() // nothing answered in envd's place yet
			default:
			}
			return asked.Load() > before
		})
		h.works(t)
		testkit.Must(t, h.api.DeleteSandbox(t.Context(), h.id))
		if err := <-ended; err == nil {
			t.Errorf("a %s of a guest that hangs succeeded", what)
		}
		h.id = h.made(t, "hostile").ID
	}
}
