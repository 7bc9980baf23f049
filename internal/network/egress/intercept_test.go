package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

const secretValue = "s3cret-Value-that-no-guest-sees"

// target is a web server of example.com.
func target(t *testing.T, http2 bool) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/show", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Alt-Svc", `h3=":443"`)
		fmt.Fprintf(w, "%s %q %s", r.Proto, r.Header["Authorization"], r.URL.RequestURI())
	})
	mux.HandleFunc("/duplex", func(w http.ResponseWriter, r *http.Request) { // a line back for each line
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(http.StatusOK)
		control.Flush()
		lines := bufio.NewReader(r.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			io.WriteString(w, line)
			control.Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	})
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Got: %d\r\n\r\n", r.Header.Get("Upgrade"), len(r.Header.Get("Authorization")))
		io.Copy(conn, buf)
	})
	s := httptest.NewUnstartedServer(mux)
	s.EnableHTTP2, s.Config.ErrorLog = http2, silent
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// headersLab is a sandbox with a header rule for example.com, where a server listens,
// and a client that trusts the sandbox's authority alone.
type headersLab struct {
	*served
	authority *Authority
	client    *tls.Config
}

func newHeadersLab(t *testing.T, server *httptest.Server, denyByDefault bool, change ...func(*Config)) *headersLab {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	l := &headersLab{client: &tls.Config{ServerName: "example.com", RootCAs: x509.NewCertPool()}}
	l.served = serveWith(t, server.Listener.Addr().String(), 10, func(cfg *Config) {
		cfg.Roots = roots
		cfg.Original = func(*net.TCPConn) (netip.AddrPort, error) { return netip.MustParseAddrPort("203.0.113.9:443"), nil }
		for _, c := range change {
			c(cfg)
		}
	})
	var allow []string
	if denyByDefault {
		allow = []string{"example.com", "other.test"}
	}
	policy, err := wrenn.ParseNetworkPolicy(denyByDefault, allow, nil)
	testkit.Must(t, err)
	policy.Headers = []wrenn.HeaderRule{{
		Host:    wrenn.NetworkName{Domain: "example.com"},
		Headers: []wrenn.Header{{Name: "authorization", Text: "Bearer ${secrets.token}"}},
	}}
	testkit.Must(t, policy.Check())
	l.SetPolicy(policy)
	l.authority, err = NewAuthority("test")
	testkit.Must(t, err)
	l.client.RootCAs.AppendCertsFromPEM([]byte(l.authority.Certificate))
	l.set(t, secretValue)
	return l
}

// set gives the secret a value.
func (l *headersLab) set(t *testing.T, value string) {
	t.Helper()
	testkit.Must(t, l.SetCredentials(Credentials{Authority: l.authority, Secrets: map[string]string{"token": value}}))
}

// http returns a client whose connections lead to the server under test.
func (l *headersLab) http(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp4", l.address)
		},
		TLSClientConfig: l.client, ForceAttemptHTTP2: http2,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func get(t *testing.T, client *http.Client, change func(*http.Request)) (status int, body string, header http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://example.com/show?a=1;b&c=%2f", nil)
	testkit.Must(t, err)
	change(req)
	resp, err := client.Do(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	return resp.StatusCode, string(text), resp.Header
}

// A request to a host with a header rule gets the secret outside of the guest, by HTTP/1.1
// and HTTP/2, whether the policy denies by default or not. What the guest sends in its
// place does not count, and a changed secret is that of the next request.
func TestHeadersAreAdded(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		for _, deny := range []bool{false, true} {
			t.Run(fmt.Sprintf("http2 %v deny %v", http2, deny), func(t *testing.T) {
				l := newHeadersLab(t, target(t, http2), deny)
				client := l.http(t, http2)
				proto := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[http2]
				for _, value := range []string{secretValue, "another"} {
					l.set(t, value+"\n")
					_, got, header := get(t, client, func(r *http.Request) {
						r.Header.Set("Authorization", "the guest's")
						if !http2 {
							r.Header.Set("Connection", "Authorization") // a proxy removes what this names
						}
					})
					want := fmt.Sprintf("%s [%q] /show?a=1;b&c=%%2f", proto, "Bearer "+value)
					if diff := cmp.Diff(want, got); diff != "" {
						t.Error(diff)
					}
					if header.Get("Alt-Svc") != "" {
						t.Error("HTTP/3 is offered")
					}
				}
				for _, event := range l.verdicts() {
					if strings.Contains(event, secretValue) {
						t.Errorf("the log has the secret: %s", event)
					}
				}
			})
		}
	}
}

// Requests that would send a secret elsewhere, or that lack one, are not passed on.
func TestHeadersAreWithheld(t *testing.T) {
	server := target(t, false)
	l := newHeadersLab(t, server, false)
	client := l.http(t, false)
	for _, test := range []struct {
		name   string
		change func(*http.Request)
		status int
		text   string
	}{
		{"other host", func(r *http.Request) { r.Host = "other.test" }, http.StatusMisdirectedRequest, "another host"},
		{"other port", func(r *http.Request) { r.Host = "example.com:8443" }, http.StatusMisdirectedRequest, "another host"},
		{"trace", func(r *http.Request) { r.Method = http.MethodTrace }, http.StatusMethodNotAllowed, "TRACE"},
	} {
		if status, text, _ := get(t, client, test.change); status != test.status || !strings.Contains(text, test.text) {
			t.Errorf("%s: %d %s", test.name, status, text)
		}
	}
	testkit.Must(t, l.SetCredentials(Credentials{Authority: l.authority}))
	if status, text, _ := get(t, client, func(*http.Request) {}); status != http.StatusBadGateway || !strings.Contains(text, `secret "token"`) {
		t.Errorf("without the secret: %d %s", status, text)
	}
	l.set(t, "two\nlines")
	if status, text, _ := get(t, client, func(*http.Request) {}); status != http.StatusBadGateway || strings.Contains(text, "two") {
		t.Errorf("with lines: %d %s", status, text)
	}
}

// A target whose certificate is not valid gets no request.
func TestTargetIsVerified(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		l := newHeadersLab(t, target(t, http2), false, func(cfg *Config) { cfg.Roots = x509.NewCertPool() })
		status, text, _ := get(t, l.http(t, http2), func(*http.Request) {})
		if status != http.StatusBadGateway || !strings.Contains(text, "unknown authority") {
			t.Errorf("%d %s", status, text)
		}
	}
}

// Without an authority the guest gets no connection, and no secret leaves.
func TestNoAuthority(t *testing.T) {
	l := newHeadersLab(t, target(t, false), false)
	testkit.Must(t, l.SetCredentials(Credentials{Secrets: map[string]string{"token": secretValue}}))
	conn := l.connect(t, "")
	if err := tls.Client(conn, l.client).HandshakeContext(t.Context()); err == nil {
		t.Error("a handshake without an authority")
	}
}

// Connections that no header rule is about are passed on as they are: other hosts, and
// what is not TLS, if the policy allows their address.
func TestOthersAreNotIntercepted(t *testing.T) {
	server := target(t, false)
	l := newHeadersLab(t, server, false)
	conn := tls.Client(l.connect(t, ""), &tls.Config{ServerName: "other.test", InsecureSkipVerify: true})
	testkit.Must(t, conn.HandshakeContext(t.Context()))
	if !conn.ConnectionState().PeerCertificates[0].Equal(server.Certificate()) {
		t.Error("the guest does not see the certificate of the host")
	}
	if to := <-l.dialed; to != netip.MustParseAddrPort("203.0.113.9:443") {
		t.Errorf("connected to %s, not to where the guest wanted", to)
	}
	plain := serveWith(t, echoServer(t), 10, func(cfg *Config) {
		cfg.Original = func(*net.TCPConn) (netip.AddrPort, error) { return netip.MustParseAddrPort("203.0.113.9:443"), nil }
	})
	plain.SetPolicy(l.current())
	wantEcho(t, plain.connect(t, "SSH-2.0-x\r\n"), "SSH-2.0-x\r\n")
	wantEcho(t, plain.connect(t, request), request)
}

// Requests and answers stream in both directions at once, as gRPC needs it, and trailers
// arrive.
func TestStreamsAreIntercepted(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		l := newHeadersLab(t, target(t, http2), false)
		body, input := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://example.com/duplex", body)
		testkit.Must(t, err)
		resp, err := l.http(t, http2).Do(req)
		testkit.Must(t, err)
		defer resp.Body.Close()
		lines := bufio.NewReader(resp.Body)
		for n := range 3 {
			line := fmt.Sprintf("line %d\n", n)
			io.WriteString(input, line)
			if got, err := lines.ReadString('\n'); err != nil || got != line {
				t.Fatalf("got %q, %v", got, err)
			}
		}
		input.Close()
		_, err = io.Copy(io.Discard, lines)
		testkit.Must(t, err)
		if resp.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("trailers %v", resp.Trailer)
		}
	}
}

// A WebSocket's handshake gets the header, and its bytes pass in both directions.
func TestUpgradesAreIntercepted(t *testing.T) {
	l := newHeadersLab(t, target(t, false), false)
	conn := tls.Client(l.connect(t, ""), l.client)
	testkit.Must(t, conn.HandshakeContext(t.Context()))
	io.WriteString(conn, "GET /upgrade HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	testkit.Must(t, err)
	defer resp.Body.Close()
	if want := fmt.Sprint(len("Bearer " + secretValue)); resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("X-Got") != want {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	io.WriteString(conn, "ping\n")
	if got, err := r.ReadString('\n'); err != nil || got != "ping\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A change of the policy or the end of the server ends connections that are intercepted.
func TestInterceptedConnectionsEnd(t *testing.T) {
	l := newHeadersLab(t, target(t, false), false)
	conn := tls.Client(l.connect(t, ""), l.client)
	testkit.Must(t, conn.HandshakeContext(t.Context()))
	policy, err := wrenn.ParseNetworkPolicy(true, nil, nil)
	testkit.Must(t, err)
	l.SetPolicy(policy)
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection continues")
	}
}
