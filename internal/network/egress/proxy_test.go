package egress

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// throughTLS starts a proxy that speaks TLS with the certificate of example.com, and returns
// its address and its authority.
func throughTLS(t *testing.T, target string) (proxy *testkit.Proxy, address, ca string) {
	t.Helper()
	certificate := httptest.NewUnstartedServer(http.NotFoundHandler())
	certificate.StartTLS()
	defer certificate.Close()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	testkit.Must(t, err)
	proxy = &testkit.Proxy{User: "me", Password: "secret", Dial: func(string) (net.Conn, error) {
		return new(net.Dialer).DialContext(context.Background(), "tcp4", target)
	}}
	proxy.Serve(t, tls.NewListener(l, &tls.Config{Certificates: certificate.TLS.Certificates, MinVersion: tls.VersionTLS12}))
	return proxy, l.Addr().String(), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate().Raw}))
}

// TestProxyByTLS verifies the proxy's certificate, and passes both directions and their ends on.
func TestProxyByTLS(t *testing.T) {
	proxy, address, ca := throughTLS(t, echoServer(t))
	s := serve(t, address, 10)
	for protocol, scheme := range map[wrenn.ProxyProtocol]string{wrenn.ProxySOCKS5: "socks5s", wrenn.ProxyHTTP: "https"} {
		p, err := wrenn.ParseEgressProxy(scheme + "://me:secret@192.0.2.9:1080")
		testkit.Must(t, err)
		for _, server := range []wrenn.ProxyTLS{{ServerName: "example.com", CA: ca}, {ServerName: "example.com"}, {CA: ca, ServerName: "other.test"}} {
			p.TLS = &server
			testkit.Must(t, s.SetCredentials(Credentials{Secrets: map[string]string{wrenn.ProxyPasswordSecret: "secret"}}))
			s.SetPolicy(wrenn.NetworkPolicy{Proxy: p})
			conn := s.connect(t, request)
			if server.CA == "" || server.ServerName != "example.com" {
				answer, err := io.ReadAll(conn)
				if err != nil || !strings.Contains(string(answer), "502 Bad Gateway") || !strings.Contains(string(answer), "certificate") {
					t.Errorf("%s, %q: %q, %v", protocol, server.ServerName, answer, err)
				}
				continue
			}
			wantEcho(t, conn, request)
			testkit.Must(t, conn.(*net.TCPConn).CloseWrite())
			if rest, err := io.ReadAll(conn); err != nil || len(rest) != 0 {
				t.Errorf("%s, after the end: %q, %v", protocol, rest, err)
			}
		}
	}
	if asked := proxy.Asked(); len(asked) != 2 || asked[0] != "example.com:80" {
		t.Errorf("the proxy was asked for %q", asked)
	}
}

// TestProxyWithoutPassword refuses connections until the password has come, and never
// connects without the proxy.
func TestProxyWithoutPassword(t *testing.T) {
	s := serve(t, echoServer(t), 10)
	p, err := wrenn.ParseEgressProxy("socks5://me:secret@192.0.2.9:1080")
	testkit.Must(t, err)
	s.SetPolicy(wrenn.NetworkPolicy{Proxy: p})
	answer, err := io.ReadAll(s.connect(t, request))
	if err != nil || !strings.Contains(string(answer), "password of its egress proxy") {
		t.Errorf("%q, %v", answer, err)
	}
	select {
	case to := <-s.dialed:
		t.Errorf("connected to %s", to)
	default:
	}
}

// TestProxyIsDialed at no address that is closed.
func TestProxyIsDialed(t *testing.T) {
	s := serveWith(t, echoServer(t), 10, func(c *Config) {
		c.Closed = func(addr netip.Addr) bool { return addr == netip.MustParseAddr("192.0.2.1") }
	})
	p, err := wrenn.ParseEgressProxy("http://proxy.test:1080") // which is at 192.0.2.1
	testkit.Must(t, err)
	s.SetPolicy(wrenn.NetworkPolicy{Proxy: p})
	answer, err := io.ReadAll(s.connect(t, request))
	if err != nil || !strings.Contains(string(answer), "403 Forbidden") || !strings.Contains(string(answer), "closed to all sandboxes") {
		t.Errorf("%q, %v", answer, err)
	}
	select {
	case to := <-s.dialed:
		t.Errorf("connected to %s", to)
	default:
	}
}

// TestProxyGetsNoHiddenName has a connection whose ECH hides its host go where it was to go.
func TestProxyGetsNoHiddenName(t *testing.T) {
	target := echoServer(t)
	proxy := &testkit.Proxy{Dial: func(string) (net.Conn, error) {
		return new(net.Dialer).DialContext(context.Background(), "tcp4", target)
	}}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	testkit.Must(t, err)
	proxy.Serve(t, l)
	s := serve(t, l.Addr().String(), 10)
	p, err := wrenn.ParseEgressProxy("http://192.0.2.9:3128")
	testkit.Must(t, err)
	s.SetPolicy(wrenn.NetworkPolicy{Proxy: p})
	first := hello(t, &tls.Config{ServerName: "secret.test", EncryptedClientHelloConfigList: echConfig(t), MinVersion: tls.VersionTLS13})
	wantEcho(t, s.connect(t, string(first)), string(first))
	if asked := proxy.Asked(); len(asked) != 1 || asked[0] != "203.0.113.9:80" {
		t.Errorf("the proxy was asked for %q", asked)
	}
}
