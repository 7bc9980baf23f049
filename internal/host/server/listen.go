package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/framing"
	"wrenn.dev/internal/tunnel"
)

// Listen is where an agent serves.
type Listen struct {
	// Address is "unix:PATH", or a host and a port.
	Address string
	// Group may use the socket of a unix Address, besides root; "" is none.
	Group string
	// AnyUser allows a loopback address without TLS, at which every program on the
	// machine controls the sandboxes.
	AnyUser bool
	TLS     TLS
}

// TLS names the files, in PEM, of mutual TLS. All or none are set; ClientName
// does not count without them.
type TLS struct {
	Certificate string `toml:"certificate"` // the agent's, for the address that control planes know it by
	Key         string `toml:"key"`         // of Certificate
	ClientCA    string `toml:"client_ca"`   // signs the certificates of control planes
	// ClientName is the DNS name in the certificate of a control plane. A client with
	// a certificate of ClientCA for another name, such as another host, is refused.
	ClientName string `toml:"client_name"`
}

const unixScheme = "unix:"

// Check returns an Invalid error that says what to do when other users or machines
// could connect without mutual TLS: a client of an agent controls its sandboxes.
// Files of TLS that cannot be used are an error, too.
func (l Listen) Check() error {
	if given := l.TLS.given(); given != 0 && given != 3 {
		return wrenn.Errorf(wrenn.Invalid, "tls needs all of certificate, key and client_ca")
	}
	if path, ok := strings.CutPrefix(l.Address, unixScheme); ok {
		if !filepath.IsAbs(path) || len(path) > 107 { // sun_path of unix(7)
			return wrenn.Errorf(wrenn.Invalid, "listen %q: the socket needs an absolute path of at most 107 bytes", l.Address)
		}
		if l.TLS.given() != 0 {
			return wrenn.Errorf(wrenn.Invalid, "listen %q: a socket has no TLS; leave tls out, or listen on an address and a port", l.Address)
		}
		return nil
	}
	if l.Group != "" {
		return wrenn.Errorf(wrenn.Invalid, "listen %q: only a unix socket has a group", l.Address)
	}
	host, _, err := net.SplitHostPort(l.Address)
	if err != nil {
		return wrenn.Errorf(wrenn.Invalid, "listen %q: use unix:/path, or an address and a port such as 127.0.0.1:49980", l.Address)
	}
	if l.TLS.given() != 0 {
		if l.TLS.ClientName == "" {
			return wrenn.Errorf(wrenn.Invalid, "tls.client_name is empty: set it to the name in the certificates of control planes")
		}
		_, err := l.TLS.open(slog.New(slog.DiscardHandler)) // Open returns it again
		return err
	}
	ip, err := netip.ParseAddr(host)
	if host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return wrenn.Errorf(wrenn.Invalid, "listen %q: other machines could reach it, so mutual TLS is needed: set tls.certificate, tls.key and tls.client_ca, or listen on unix:/path or 127.0.0.1", l.Address)
	}
	if !l.AnyUser {
		return wrenn.Errorf(wrenn.Invalid, "listen %q: every user and program of this machine could control the sandboxes: listen on unix:/path, with socket_group for the control plane, or set tls; any_local_user = true allows it nevertheless", l.Address)
	}
	return nil
}

func (t TLS) given() int {
	n := 0
	for _, s := range []string{t.Certificate, t.Key, t.ClientCA} {
		if s != "" {
			n++
		}
	}
	return n
}

// Open listens. A socket that a dead agent left is replaced: the caller must make
// sure that only one agent runs. Certificates are read again when they change.
func (l Listen) Open(ctx context.Context, log *slog.Logger) (net.Listener, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	if path, ok := strings.CutPrefix(l.Address, unixScheme); ok {
		listener, err := listenUnix(ctx, path, l.Group)
		if err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
		return listener, nil
	}
	var identity *certs.Source
	if l.TLS.given() != 0 {
		var err error
		if identity, err = l.TLS.open(log); err != nil {
			return nil, err
		}
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", l.Address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if identity != nil {
		listener = tls.NewListener(listener, identity.Server(l.TLS.ClientName))
	}
	return listener, nil
}

func (t TLS) open(log *slog.Logger) (*certs.Source, error) {
	identity, err := certs.Open(certs.Files{Certificate: t.Certificate, Key: t.Key, CA: t.ClientCA}, log)
	if err != nil {
		return nil, &wrenn.Error{Code: wrenn.Invalid, Message: "tls cannot be used", Err: err}
	}
	return identity, nil
}

// listenUnix makes the socket under another name and moves it into place when its
// mode is set: before, no other user can connect.
func listenUnix(ctx context.Context, path, group string) (net.Listener, error) {
	staged := path + ".new"
	if err := os.Remove(staged); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", staged)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	err = permit(staged, group)
	if err == nil {
		err = os.Rename(staged, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(staged))
	}
	return l, nil
}

// permit lets the socket's owner and the group, if any, connect.
func permit(path, group string) error {
	if group == "" {
		return os.Chmod(path, 0o600)
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return wrenn.Errorf(wrenn.Invalid, "group %q does not exist on this machine", group)
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	return errors.Join(os.Chown(path, -1, id), os.Chmod(path, 0o660))
}

const (
	// streamWindow is how much may be in flight to a command or a file that does not
	// take it, in bytes.
	streamWindow = 1 << 20
	// connWindow is that of all streams of a connection. It is the largest possible:
	// stalled uploads fill it, and a full one stops every other call of the control plane.
	connWindow = 1 << 30
)

// grace is how long unary calls may take to end when the agent stops.
const grace = 10 * time.Second

// Serve serves on l, by HTTP/1.1 and HTTP/2, until ctx ends. Then streams end at
// once, with the advice to attach again, and other calls after a grace period. It
// closes l.
func Serve(ctx context.Context, cfg Config, l net.Listener) error {
	closing := make(chan struct{})
	mux := http.NewServeMux()
	agent := &server{cfg: cfg, closing: closing}
	path, handler, err := newHandler(agent)
	if err != nil {
		return err
	}
	mux.Handle(path, cfg.Memory.Handler(handler))
	ports := newTunnels(agent)
	mux.Handle(tunnel.HostPattern, ports)
	httpServer := newServer(mux, cfg.Log)
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		close(closing)
		ports.close()
		waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		err := httpServer.Shutdown(waiting)
		if err != nil {
			err = httpServer.Close() // calls that still run are cut
		}
		stopped <- err
	})
	err = httpServer.Serve(framing.Guard(httpServer, l))
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	return <-stopped
}

func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: handler, Protocols: protocols,
		// No timeout for a whole request: streams last as long as commands do.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 10_000, SendPingTimeout: 30 * time.Second,
			MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow,
		},
		// Refused clients and the reasons, port scanners included.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelInfo),
	}
}
