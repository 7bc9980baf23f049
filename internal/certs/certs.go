// Package certs keeps a program's certificates current: it reads them from PEM
// files, and again when the files have changed, so that a renewed certificate
// needs no restart.
//
// A peer's identity is a name in its certificate. Both sides require one: all
// hosts and all control planes may have certificates of the same authority, and a
// host still cannot pose as a control plane, nor as another host.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Files are the paths of PEM files.
type Files struct {
	Certificate string // the program's certificate, and the intermediate ones
	Key         string // of Certificate
	CA          string // the authority of the peers' certificates; "" to require none
}

// Source loads certificates from files. It is safe for concurrent use and needs
// no closing.
type Source struct {
	files Files
	log   *slog.Logger

	mu     sync.Mutex // guards the fields below
	read   stamps     // of the files that were last read, with or without an error
	loaded loaded
}

type loaded struct {
	pair *tls.Certificate
	ca   *x509.CertPool
}

// Open reads the files. The error names the file and the problem.
func Open(files Files, log *slog.Logger) (*Source, error) {
	s := &Source{files: files, log: log}
	var err error
	if s.read, err = stampsOf(files); err != nil {
		return nil, err
	}
	if s.loaded, err = load(files); err != nil {
		return nil, err
	}
	s.logDates(s.loaded.pair.Leaf)
	return s, nil
}

func load(files Files) (loaded, error) {
	pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return loaded{}, fmt.Errorf("certificate %s with key %s: %w", files.Certificate, files.Key, err)
	}
	if files.CA == "" {
		return loaded{pair: &pair}, nil
	}
	pem, err := os.ReadFile(files.CA)
	if err != nil {
		return loaded{}, fmt.Errorf("certificate authority: %w", err)
	}
	ca := x509.NewCertPool()
	if !ca.AppendCertsFromPEM(pem) {
		return loaded{}, fmt.Errorf("certificate authority: %s holds no certificate in PEM", files.CA)
	}
	return loaded{&pair, ca}, nil
}

// logDates logs when a certificate is valid, as an error if it is not valid now.
func (s *Source) logDates(leaf *x509.Certificate) {
	dates := []slog.Attr{
		slog.String("file", s.files.Certificate), slog.Time("not_before", leaf.NotBefore), slog.Time("not_after", leaf.NotAfter),
	}
	if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		s.log.LogAttrs(context.Background(), slog.LevelError, "certificate loaded, but it is expired or not valid yet: peers will refuse it", dates...)
		return
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "certificate loaded", dates...)
}

// current returns the certificates in the files. While the files cannot be used,
// as in the middle of a renewal, it returns the earlier certificates.
func (s *Source) current() loaded {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := stampsOf(s.files)
	if err == nil && now == s.read {
		return s.loaded
	}
	if err == nil {
		s.read = now // it tries again only after the next change
		var fresh loaded
		if fresh, err = load(s.files); err == nil {
			s.loaded = fresh
			s.logDates(fresh.pair.Leaf)
			return s.loaded
		}
	}
	s.log.LogAttrs(context.Background(), slog.LevelError, "cannot use changed certificates; keeping the earlier ones", slog.Any("err", err))
	return s.loaded
}

// Certificate is a tls.Config.GetCertificate, for servers that require no
// certificate of their clients.
func (s *Source) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current().pair, nil
}

// Server returns the configuration of a server that accepts clients with a
// certificate of the authority for the DNS name. Open connections stay when the
// files change.
func (s *Source) Server(client string) *tls.Config {
	fixed := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert,
		// A ticket would let a client in after its authority was removed.
		SessionTicketsDisabled: true,
		VerifyConnection:       func(state tls.ConnectionState) error { return isNamed(state, client) },
	}
	fixed.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := s.current()
		cfg := fixed.Clone()
		cfg.GetConfigForClient = nil
		cfg.Certificates, cfg.ClientCAs = []tls.Certificate{*now.pair}, now.ca
		return cfg, nil
	}
	return fixed
}

func isNamed(state tls.ConnectionState, name string) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the client sent no certificate")
	}
	if err := state.PeerCertificates[0].VerifyHostname(name); err != nil {
		return fmt.Errorf("the client's certificate is for another name: %w", err)
	}
	return nil
}

// Client returns the configuration for one new connection. The server must have a
// certificate of the authority for the name; "" means the name that is dialed.
func (s *Source) Client(server string) *tls.Config {
	now := s.current()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: server,
		Certificates: []tls.Certificate{*now.pair}, RootCAs: now.ca,
	}
}
