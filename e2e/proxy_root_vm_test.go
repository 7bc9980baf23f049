//go:build root && vm

package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

const (
	proxyUser     = "me"
	proxyPassword = "a-password-of-a-proxy"
)

// outside is what the guest of a proxy test finds in the world: web servers that say
// where a request came from, one that counts datagrams, and proxies.
type outside struct {
	*world
	content     []byte           // of /content
	proxies     []*testkit.Proxy // without and with TLS
	ca          string           // of the proxy with TLS, for the name example.com
	stop        func()           // closes the proxies
	connections atomic.Int64     // that the web servers got
	datagrams   *atomic.Int64
}

func newOutside(t *testing.T, w *world) *outside {
	t.Helper()
	o := &outside{world: w, content: make([]byte, 1<<20)}
	_, err := rand.Read(o.content)
	testkit.Must(t, err)
	o.serveWeb(t)
	o.datagrams = w.count(t, worldServer+":7")
	o.serveProxies(t)
	return o
}

// serveWeb answers by HTTP and by TLS with the address that a request came from; /content
// is the content, and /sum the SHA-256 of what was sent.
func (o *outside) serveWeb(t *testing.T) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = io.WriteString(w, host) // the client sees what is missing
	})
	mux.HandleFunc("/content", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(o.content) }) // as above
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		_, _ = io.Copy(sum, r.Body) // as above
		fmt.Fprintf(w, "%x", sum.Sum(nil))
	})
	for port, secure := range map[int]bool{80: false, 443: true} {
		s := httptest.NewUnstartedServer(mux)
		s.Listener.Close()
		s.Listener = o.listen(t, fmt.Sprintf("%s:%d", worldServer, port))
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				o.connections.Add(1)
			}
		}
		if secure {
			s.StartTLS()
			o.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
		} else {
			s.Start()
		}
		t.Cleanup(s.Close)
	}
}

// serveProxies serves a proxy at port 1080, and one that speaks TLS at 1443. They find the
// web servers by any name.
func (o *outside) serveProxies(t *testing.T) {
	t.Helper()
	certificate := httptest.NewUnstartedServer(http.NotFoundHandler())
	certificate.StartTLS()
	certificate.Close()
	plain, encrypted := o.listen(t, worldProxy+":1080"), o.listen(t, worldProxy+":1443")
	for _, l := range []net.Listener{plain, tls.NewListener(encrypted, &tls.Config{Certificates: certificate.TLS.Certificates, MinVersion: tls.VersionTLS12})} {
		p := &testkit.Proxy{User: proxyUser, Password: proxyPassword, Dial: func(target string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(target)
			if err != nil {
				return nil, err
			}
			return o.dial(worldProxy, net.JoinHostPort(worldServer, port))
		}}
		p.Serve(t, l)
		o.proxies = append(o.proxies, p)
	}
	o.stop = func() { plain.Close(); encrypted.Close() }
}

// Commands of the guest. No name server knows the names.
var (
	// askedFrom prints the address that a connection came from which says no name.
	askedFrom = fmt.Sprintf(`exec 3<>/dev/tcp/%s/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; tail -n 1 <&3`, worldServer)
	curl      = fmt.Sprintf("curl -sS -k --max-time 60 --connect-to ::%s: ", worldServer)
	// sends datagrams, of which some may be lost.
	datagrams = fmt.Sprintf("for n in 1 2 3 4 5; do (echo >/dev/udp/%s/7) || true; done", worldServer)
)

// bash runs a script of bash in the hostile guest.
func (h *hostile) bash(t *testing.T, script string) string {
	t.Helper()
	return h.attack(t, "exec bash -c '"+strings.ReplaceAll(script, "'", `'\''`)+"'")
}

// testEgressProxy has a guest reach the world through proxies of each kind, and not past them.
func (h *hostile) testEgressProxy(t *testing.T) {
	o := newOutside(t, h.world)
	if got := h.bash(t, askedFrom); got != worldGate {
		t.Fatalf("without a proxy the world was reached from %q", got)
	}
	h.bash(t, datagrams)
	testkit.WaitUntil(t, "a datagram arrives without a proxy", func() bool { return o.datagrams.Load() > 0 })

	withTLS := &client.EgressProxyTLS{ServerName: "example.com", CA: o.ca}
	sum := fmt.Sprintf("%x", sha256.Sum256(o.content))
	for _, proxy := range []client.EgressProxy{
		{Protocol: "socks5", Address: worldProxy + ":1080"},
		{Protocol: "http", Address: worldProxy + ":1080"},
		{Protocol: "socks5", Address: worldProxy + ":1443", TLS: withTLS},
		{Protocol: "http", Address: worldProxy + ":1443", TLS: withTLS},
	} {
		h.setProxy(t, proxy, proxyPassword)
		for script, want := range map[string]string{
			askedFrom: worldProxy,
			// Both directions: the server answers with what it got.
			curl + "https://site.test/content | " + curl + "--data-binary @- http://site.test/sum": sum,
		} {
			if got := h.bash(t, script); got != want {
				t.Errorf("through %s at %s: %s printed %q, want %q", proxy.Protocol, proxy.Address, script, got, want)
			}
		}
	}
	for n, p := range o.proxies {
		asked := p.Asked()
		// A client that takes 0.5 s to say a name is connected by address.
		for _, either := range [][]string{{"site.test:80", worldServer + ":80"}, {"site.test:443", worldServer + ":443"}} {
			if !slices.ContainsFunc(asked, func(a string) bool { return slices.Contains(either, a) }) {
				t.Errorf("proxy %d was asked for %q, not for one of %q", n, asked, either)
			}
		}
	}
	_, err := h.api.PauseSandbox(t.Context(), h.id)
	testkit.Must(t, err)
	_, err = h.api.ResumeSandbox(t.Context(), h.id)
	testkit.Must(t, err)
	if got := h.bash(t, askedFrom); got != worldProxy {
		t.Errorf("after a resume the world was reached from %q", got)
	}
	h.wantNotPast(t, o)
	_, err = h.api.SetNetwork(t.Context(), h.id, client.NetworkPolicy{})
	testkit.Must(t, err)
	if got := h.bash(t, askedFrom); got != worldGate {
		t.Errorf("after the proxy the world was reached from %q", got)
	}
}

func (h *hostile) setProxy(t *testing.T, proxy client.EgressProxy, password string) {
	t.Helper()
	proxy.Username, proxy.Password = proxyUser, password
	_, err := h.api.SetNetwork(t.Context(), h.id, client.NetworkPolicy{Proxy: &proxy})
	testkit.Must(t, err)
}

// wantNotPast has the guest try to reach the world when its proxy does not help.
func (h *hostile) wantNotPast(t *testing.T, o *outside) {
	t.Helper()
	plain := client.EgressProxy{Protocol: "socks5", Address: worldProxy + ":1080"}
	h.setProxy(t, plain, "another")
	connections, arrived := o.connections.Load(), o.datagrams.Load()
	try := func(when string) {
		t.Helper()
		h.bash(t, "! ("+askedFrom+" | grep .); ! "+curl+"-f https://site.test/; ! ping -q -c 1 -W 1 "+worldServer+" >&2")
		h.bash(t, datagrams)
		if n := o.connections.Load() - connections; n > 0 {
			t.Errorf("%s %d connections reached the world", when, n)
		}
	}
	try("with another password")
	o.stop()
	h.setProxy(t, plain, proxyPassword)
	try("without its proxy")
	testkit.WaitUntil(t, "the egress log has a denied datagram", func() bool {
		log, err := h.api.NetworkLog(t.Context(), h.id, client.NetworkLogOptions{})
		testkit.Must(t, err)
		return slices.ContainsFunc(log.Events, func(e client.NetworkEvent) bool {
			return e.Protocol == "udp" && e.Port == 7 && e.Verdict == "denied" && strings.Contains(e.Reason, "only TCP")
		})
	})
	if n := o.datagrams.Load() - arrived; n > 0 {
		t.Errorf("%d datagrams went past the proxy", n)
	}
	h.attack(t, "! grep -qs "+proxyPassword+" /proc/[0-9]*/environ")
	for name, part := range map[string]*child{"control plane": h.controlPlane, "host agent": h.agent.child} {
		if strings.Contains(part.out.String(), proxyPassword) {
			t.Errorf("the %s printed the password of the proxy", name)
		}
	}
}
