package hostserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wrenn"
)

// Listen is where an agent answers.
type Listen struct {
	// Address is "unix:PATH", or a host and a port.
	Address string
	TLS     TLS
}

// TLS names the files, in PEM, of mutual TLS. All or none are set.
type TLS struct {
	Cert     string `toml:"cert"`      // the agent's certificate
	Key      string `toml:"key"`       // its key
	ClientCA string `toml:"client_ca"` // signs the certificates of control planes
}

const unixScheme = "unix:"

// Check returns an Invalid error that says what to do when the address would
// be open to others without mutual TLS: whoever reaches an agent owns its sandboxes.
func (l Listen) Check() error {
	if given := l.TLS.given(); given != 0 && given != 3 {
		return wrenn.Errorf(wrenn.Invalid, "tls needs all of cert, key and client_ca")
	}
	if path, ok := strings.CutPrefix(l.Address, unixScheme); ok {
		if !filepath.IsAbs(path) || len(path) > 107 { // sun_path of unix(7)
			return wrenn.Errorf(wrenn.Invalid, "listen %q: the socket needs an absolute path of at most 107 bytes", l.Address)
		}
		return nil
	}
	host, _, err := net.SplitHostPort(l.Address)
	if err != nil {
		return wrenn.Errorf(wrenn.Invalid, "listen %q: use unix:/path, or an address and a port such as 127.0.0.1:49980", l.Address)
	}
	ip, err := netip.ParseAddr(host)
	if l.TLS.given() == 0 && host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return wrenn.Errorf(wrenn.Invalid, "listen %q: other machines could reach it, so mutual TLS is needed: set tls.cert, tls.key and tls.client_ca, or listen on unix:/path or 127.0.0.1", l.Address)
	}
	return nil
}

func (t TLS) given() int {
	n := 0
	for _, s := range []string{t.Cert, t.Key, t.ClientCA} {
		if s != "" {
			n++
		}
	}
	return n
}

// Open listens. A socket that a dead agent left is replaced: the caller sees to
// it that there is one agent.
func (l Listen) Open(ctx context.Context) (net.Listener, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	path, isUnix := strings.CutPrefix(l.Address, unixScheme)
	var listener net.Listener
	var err error
	if isUnix {
		listener, err = listenUnix(ctx, path)
	} else {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp", l.Address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if l.TLS.given() == 0 {
		return listener, nil
	}
	config, err := l.TLS.config()
	if err != nil {
		_ = listener.Close() // the first error is the one that counts
		return nil, err
	}
	return tls.NewListener(listener, config), nil
}

// listenUnix makes the socket under another name and moves it into place with
// its mode: nobody can connect in between.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	staged := path + ".new"
	if err := os.Remove(staged); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", staged)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(staged, 0o600), os.Rename(staged, path)); err != nil {
		_ = l.Close() // the first error is the one that counts
		return nil, err
	}
	return l, nil
}

func (t TLS) config() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "tls.cert and tls.key cannot be used: %v", err)
	}
	pem, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, wrenn.Errorf(wrenn.Invalid, "tls.client_ca cannot be read: %v", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, wrenn.Errorf(wrenn.Invalid, "tls.client_ca %s holds no certificate", t.ClientCA)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2", "http/1.1"},
	}, nil
}

// grace is how long calls that are no streams have to end when the agent stops.
const grace = 10 * time.Second

// Serve answers on l, by HTTP/1.1 and HTTP/2, until ctx ends: then streams end
// at once, with the advice to attach again, and other calls have a while. It closes l.
func Serve(ctx context.Context, cfg Config, l net.Listener) error {
	closing := make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle(newHandler(cfg, closing))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler: mux, Protocols: protocols,
		// No timeout of whole requests: streams last as long as commands do.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 10_000, SendPingTimeout: 30 * time.Second},
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		close(closing)
		waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		err := server.Shutdown(waiting)
		if err != nil {
			err = server.Close() // what still runs is cut
		}
		stopped <- err
	})
	err := server.Serve(l)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	return <-stopped
}
