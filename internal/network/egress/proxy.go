package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"golang.org/x/net/proxy"

	"wrenn.dev"
)

// maxProxyAnswer bounds what a proxy answers to CONNECT.
const maxProxyAnswer = 16 << 10

// connectTo connects to a host, "ADDRESS:PORT", or to "NAME:PORT" if the policy has a
// proxy: then through that. The result, which the caller closes, is a *net.TCPConn, or
// a *tls.Conn to a proxy that speaks TLS.
func (s *Server) connectTo(ctx context.Context, target string, policy wrenn.NetworkPolicy) (net.Conn, error) {
	if policy.Proxy == nil {
		to, err := netip.ParseAddrPort(target)
		if err != nil {
			return nil, err
		}
		return s.cfg.Dial(ctx, to)
	}
	password := ""
	if policy.Proxy.HasPassword {
		var ok bool
		if password, ok = s.currentCredentials().secrets[wrenn.ProxyPasswordSecret]; !ok {
			return nil, unreachableError{errors.New("the password of its egress proxy has not reached the sandbox's host yet")}
		}
	}
	conn, err := s.dialProxy(ctx, policy)
	if err != nil {
		return nil, err
	}
	through, err := throughProxy(ctx, conn, policy.Proxy, password, target)
	if err != nil {
		reset(conn)
		return nil, unreachableError{fmt.Errorf("the egress proxy %s does not connect: %w", policy.Proxy, err)}
	}
	return through, nil
}

// dialProxy connects to the proxy of the policy: never in a closed network, and only
// where each layer of the policy allows it.
func (s *Server) dialProxy(ctx context.Context, policy wrenn.NetworkPolicy) (net.Conn, error) {
	p := policy.Proxy
	var addrs []netip.Addr
	if addr, err := netip.ParseAddr(p.Host); err == nil {
		addrs = []netip.Addr{addr}
	} else if addrs, err = s.resolver().addresses(ctx, p.Host); err != nil {
		return nil, unreachableError{fmt.Errorf("egress proxy %s: %w", p, err)}
	}
	why := fmt.Errorf("the egress proxy %s is in a network that is closed to all sandboxes", p)
	var errs []error
	for _, addr := range addrs {
		if s.cfg.Closed(addr) {
			continue
		}
		if d := policy.DecideProxy(addr); !d.Allowed {
			why = errors.New(d.Reason("the egress proxy " + p.String()))
			continue
		}
		conn, err := s.cfg.Dial(ctx, netip.AddrPortFrom(addr, p.Port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, why
	}
	return nil, unreachableError{fmt.Errorf("the egress proxy %s does not answer: %w", p, errors.Join(errs...))}
}

// throughProxy asks the proxy at the other end of conn to connect to target, and returns the
// connection to that. The caller closes conn when it fails.
func throughProxy(ctx context.Context, conn net.Conn, p *wrenn.EgressProxy, password, target string) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	socket := conn
	stop := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(time.Unix(1, 0)) }) // ends what waits for the proxy
	defer stop()
	if p.TLS != nil {
		config, err := tlsOf(p)
		if err != nil {
			return nil, err
		}
		encrypted := tls.Client(conn, config)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = encrypted
	}
	ask := askSOCKS5
	if p.Protocol == wrenn.ProxyHTTP {
		ask = askHTTP
	}
	if err := ask(ctx, conn, p, password, target); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return conn, socket.SetDeadline(time.Time{})
}

func tlsOf(p *wrenn.EgressProxy) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: p.TLS.ServerName}
	if config.ServerName == "" {
		config.ServerName = p.Host
	}
	if p.TLS.CA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(p.TLS.CA)) {
			return nil, errors.New("its authorities have no certificate")
		}
	}
	return config, nil
}

// askSOCKS5 asks for target, which may be a name, by RFC 1928 and RFC 1929.
func askSOCKS5(ctx context.Context, conn net.Conn, p *wrenn.EgressProxy, password, target string) error {
	var auth *proxy.Auth
	if p.Username != "" {
		auth = &proxy.Auth{User: p.Username, Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", p.Address(), auth, connected{conn})
	if err != nil {
		return err
	}
	_, err = dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", target) // its result wraps conn
	return err
}

// connected is a dialer whose connection exists already.
type connected struct{ net.Conn }

// Dial returns the connection.
func (c connected) Dial(_, _ string) (net.Conn, error) { return c.Conn, nil }

// DialContext returns the connection.
func (c connected) DialContext(context.Context, string, string) (net.Conn, error) { return c.Conn, nil }

// askHTTP asks for target by CONNECT. It reads no byte after the answer's header.
func askHTTP(_ context.Context, conn net.Conn, p *wrenn.EgressProxy, password, target string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{}}
	if p.Username != "" {
		req.SetBasicAuth(p.Username, password)
		req.Header.Set("Proxy-Authorization", req.Header.Get("Authorization"))
		req.Header.Del("Authorization")
	}
	req.Header.Set("User-Agent", "") // none is sent
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(oneByte{conn}, maxProxyAnswer)), req)
	if err != nil {
		return errors.New("it does not answer by HTTP")
	}
	_ = resp.Body.Close() // it is that of a tunnel
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("it answers CONNECT with status %d", resp.StatusCode)
	}
	return nil
}

// oneByte reads byte by byte, so that a buffer above has nothing of what follows.
type oneByte struct{ io.Reader }

func (r oneByte) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return r.Reader.Read(p[:1])
}
