package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wrenn.dev"
)

// Bounds of connections to hosts with header rules.
const (
	handshakeTimeout = 10 * time.Second
	headerTimeout    = 30 * time.Second // of a request, and of a guest that is idle
	idleTimeout      = 5 * time.Minute
	maxHeaderBytes   = 64 << 10
	copyBytes        = 32 << 10
	// What HTTP/2 may hold of a connection whose other side is slow, each: a guest may have
	// slow servers, too.
	holdFromGuest  = 256 << 10
	holdFromTarget = 512 << 10
	maxStreamsH2   = 100
	// maxIntercepted is how many such connections a sandbox may have at a time.
	maxIntercepted = 128
	alpnHTTP2      = "h2"
	alpnHTTP1      = "http/1.1"
)

// Credentials are what header rules need and a guest never gets.
type Credentials struct {
	// Authority is that which the guest trusts. Without one, connections to hosts with
	// header rules are refused.
	Authority *Authority
	Secrets   map[string]string // by canonical name
}

// credentials are Credentials at work. They do not change.
type credentials struct {
	signer  *signer // nil without an authority
	secrets map[string]string
}

// SetCredentials replaces the credentials. Open connections use the new secrets from
// their next request on.
func (s *Server) SetCredentials(c Credentials) error {
	next := &credentials{secrets: c.Secrets}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.Authority == nil:
	case s.authority == *c.Authority:
		next.signer = s.credentials.signer
	default:
		var err error
		if next.signer, err = newSigner(c.Authority); err != nil {
			return err
		}
		s.authority = *c.Authority
	}
	s.credentials = next
	return nil
}

func (s *Server) currentCredentials() *credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.credentials
}

// interception is a connection whose TLS the agent ends, to add headers to its requests.
type interception struct {
	server *Server
	p      *passage
	alpn   []string     // that the guest offers, of those that the agent speaks
	proto  string       // that the target chose: one of alpn, or ""
	first  atomic.Value // upstream: the connection that chose it, until it is used
	failed error        // why there is none

	requests sync.WaitGroup
}

// upstream is a connection to the target.
type upstream struct{ conn *tls.Conn }

// intercept ends the guest's TLS, passes its requests on with the headers of the rule,
// and returns the bytes of its connection.
func (s *Server) intercept(o opening, p *passage) (sent, received int64, err error) {
	signer := s.currentCredentials().signer
	if signer == nil {
		return 0, 0, errors.New("its host has header rules, and the sandbox has no authority for them yet")
	}
	release, err := s.placeToIntercept()
	if err != nil {
		return 0, 0, err
	}
	defer release()
	i := &interception{server: s, p: p}
	for _, proto := range o.alpn {
		if proto == alpnHTTP2 || proto == alpnHTTP1 {
			i.alpn = append(i.alpn, proto)
		}
	}
	i.open()
	defer i.forget()
	guest := &replayed{Conn: p.guest, first: o.data}
	conn := tls.Server(guest, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: i.offered(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return signer.certificate(p.name) },
	})
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTimeout)
	defer cancel()
	if err = conn.HandshakeContext(ctx); err != nil {
		return guest.read.Load(), guest.written.Load(), fmt.Errorf("the guest refused the connection, or does not trust the sandbox's authority: %w", err)
	}
	i.serve(conn)
	return guest.read.Load(), guest.written.Load(), i.failed
}

// placeToIntercept takes a place of the sandbox and one of the host.
func (s *Server) placeToIntercept() (release func(), err error) {
	return takeBoth(s.intercepts, s.cfg.Intercepts,
		fmt.Sprintf("the sandbox has %d connections to hosts with header rules, which is the limit", maxIntercepted),
		"the sandboxes of this host have as many connections to hosts with header rules as it allows")
}

// open connects to the target, so that the guest gets a protocol that it speaks.
func (i *interception) open() {
	ctx, cancel := context.WithTimeout(i.server.ctx, handshakeTimeout)
	defer cancel()
	conn, err := i.handshake(ctx, i.p.server, i.alpn)
	if err != nil {
		i.failed = unreachableError{err}
		return
	}
	i.proto = conn.ConnectionState().NegotiatedProtocol
	i.first.Store(upstream{conn})
}

// offered returns the protocols for the guest: the one of the target, if both speak one.
func (i *interception) offered() []string {
	switch {
	case i.failed != nil:
		return i.alpn
	case i.proto == "" && len(i.alpn) > 0:
		return []string{alpnHTTP1}
	case i.proto == "":
		return nil
	}
	return []string{i.proto}
}

// handshake speaks TLS to the target. Its certificate must be valid for the name that
// the guest connected to, by the roots of the host. It closes conn if it fails.
func (i *interception) handshake(ctx context.Context, conn net.Conn, alpn []string) (*tls.Conn, error) {
	out := tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: i.p.name, NextProtos: alpn, RootCAs: i.server.cfg.Roots})
	if err := out.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("no TLS with its host: %w", err), conn.Close())
	}
	return out, nil
}

// dial returns the connection that is open already, or another one.
func (i *interception) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if first, ok := i.first.Swap(upstream{}).(upstream); ok && first.conn != nil {
		return first.conn, nil
	}
	s := i.server
	again := &passage{name: i.p.name, byName: true}
	if err := s.dial(again, i.p.to.Port(), s.current()); err != nil {
		return nil, err
	}
	var alpn []string
	if i.proto != "" {
		alpn = []string{i.proto}
	}
	return i.handshake(ctx, again.server, alpn)
}

// forget closes the connection that was not used.
func (i *interception) forget() {
	if first, ok := i.first.Swap(upstream{}).(upstream); ok && first.conn != nil {
		_ = first.conn.Close() // nothing was sent
	}
}

// serve answers the requests of a connection until it ends.
func (i *interception) serve(conn *tls.Conn) {
	transport := &http.Transport{
		DialTLSContext: i.dial,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("secrets are sent over TLS alone")
		},
		ForceAttemptHTTP2: true, DisableCompression: true, IdleConnTimeout: idleTimeout, ExpectContinueTimeout: time.Second,
		MaxResponseHeaderBytes: 256 << 10, ResponseHeaderTimeout: 0, // a model may think for long
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: holdFromTarget, MaxReceiveBufferPerStream: holdFromTarget},
	}
	defer transport.CloseIdleConnections()
	proxy := &httputil.ReverseProxy{
		Rewrite: i.rewrite, Transport: transport, FlushInterval: -1, BufferPool: buffers, ErrorLog: silent,
		ModifyResponse: func(r *http.Response) error {
			r.Header.Del("Alt-Svc") // HTTP/3 would go past the rules
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("This sandbox cannot connect to %q: %v.", i.p.name, err), http.StatusBadGateway)
		},
	}
	l := newSingle(conn)
	server := &http.Server{
		Handler: i.handler(proxy), ErrorLog: silent, MaxHeaderBytes: maxHeaderBytes,
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreamsH2, MaxReceiveBufferPerConnection: holdFromGuest, MaxReceiveBufferPerStream: holdFromGuest},
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				l.end()
			}
		},
	}
	_ = server.Serve(l) // it ends with its one connection
	i.requests.Wait()
	_ = conn.Close() // it is closed unless it was hijacked
}

// handler checks what the guest asks for before next passes it on.
func (i *interception) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.requests.Add(1)
		defer i.requests.Done()
		headers, status, err := i.headers(r)
		if err != nil {
			http.Error(w, fmt.Sprintf("This sandbox's request to %q was not passed on: %v.", i.p.name, err), status)
			return
		}
		_ = http.NewResponseController(w).EnableFullDuplex()      // HTTP/2 always is
		w.Header()["Content-Type"], w.Header()["Date"] = nil, nil // only those of the answer
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), headersKey{}, headers)))
	})
}

type headersKey struct{}

// headers returns the headers for a request, or why it is not passed on.
func (i *interception) headers(r *http.Request) (headers map[string]string, status int, err error) {
	switch {
	case i.failed != nil:
		return nil, http.StatusBadGateway, i.failed
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		return nil, http.StatusMethodNotAllowed, fmt.Errorf("%s is not allowed to hosts with header rules", r.Method)
	case !i.isTarget(r.Host) || r.URL.IsAbs() && !i.isTarget(r.URL.Host):
		return nil, http.StatusMisdirectedRequest, errors.New("it names another host than the connection")
	}
	rule, ok := i.server.current().HeaderRule(i.p.name, i.p.to.Port())
	if !ok { // no longer
		return nil, 0, nil
	}
	secrets := i.server.currentCredentials().secrets
	headers = map[string]string{}
	for _, h := range rule.Headers {
		text, missing := h.Fill(secrets)
		if missing != "" {
			return nil, http.StatusBadGateway, fmt.Errorf("its header rule needs the secret %q, which does not exist or has not reached the sandbox's host yet", missing)
		}
		if text = strings.Trim(text, " \t\r\n"); !wrenn.ValidHeaderText(text) {
			return nil, http.StatusBadGateway, fmt.Errorf("header %s of its rule would have control characters: a secret in it has several lines", h.Name)
		}
		headers[h.Name] = text
	}
	return headers, 0, nil
}

// isTarget reports whether host or host:port is where the connection leads.
func (i *interception) isTarget(text string) bool {
	host, port, hasPort := strings.Cut(text, ":")
	return wrenn.CanonicalName(host) == i.p.name && (!hasPort || port == strconv.Itoa(int(i.p.to.Port())))
}

// rewrite makes the request that is passed on: the guest's, with the headers.
func (i *interception) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.RawQuery = "https", net.JoinHostPort(i.p.name, strconv.Itoa(int(i.p.to.Port()))), r.In.URL.RawQuery
	r.Out.Host = r.In.Host
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} { // the guest's own
		if values, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = slices.Clone(values)
		}
	}
	headers, _ := r.In.Context().Value(headersKey{}).(map[string]string)
	for name, text := range headers {
		r.Out.Header.Set(name, text)
	}
}

// silent drops what the libraries log: it may have parts of requests.
var silent = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)

// buffers are those of copies.
var buffers = &bufferPool{sync.Pool{New: func() any { return new([copyBytes]byte) }}}

type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte { return b.pool.Get().(*[copyBytes]byte)[:] }

func (b *bufferPool) Put(p []byte) { b.pool.Put((*[copyBytes]byte)(p)) }

// replayed is a connection of which something was read already. It counts its bytes.
type replayed struct {
	net.Conn
	first         []byte
	read, written atomic.Int64
}

func (c *replayed) Read(p []byte) (n int, err error) {
	if len(c.first) > 0 {
		n = copy(p, c.first)
		c.first = c.first[n:]
	} else {
		n, err = c.Conn.Read(p)
	}
	c.read.Add(int64(n))
	return n, err
}

func (c *replayed) Write(p []byte) (n int, err error) {
	n, err = c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// single is a listener of one connection. Its second Accept waits for end.
type single struct {
	conn  chan net.Conn
	ended chan struct{}
	end   func()
	addr  net.Addr
}

func newSingle(conn net.Conn) *single {
	s := &single{conn: make(chan net.Conn, 1), ended: make(chan struct{}), addr: conn.LocalAddr()}
	s.conn <- conn
	s.end = sync.OnceFunc(func() { close(s.ended) })
	return s
}

// Accept returns the connection, and net.ErrClosed once it has ended.
func (s *single) Accept() (net.Conn, error) {
	select {
	case conn := <-s.conn:
		return conn, nil
	case <-s.ended:
		return nil, net.ErrClosed
	}
}

// Close does nothing: the connection closes itself.
func (s *single) Close() error { return nil }

// Addr returns the address that the connection was made to.
func (s *single) Addr() net.Addr { return s.addr }
