// Package certs keeps a program's certificates current: it reads them from PEM
// files, and again when the files have changed, so that nothing is restarted for
// a certificate that was renewed.
//
// Who somebody is, is a name in their certificate. Both sides ask for one: all
// hosts and all control planes may have certificates of one authority, and a host
// still cannot pass for a control plane, nor for another host.
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

// Files are in PEM.
type Files struct {
	Certificate string // what we show, with what leads from it to the authority
	Key         string // of Certificate
	CA          string // signs the certificates of the others; "" when we ask for none
}

// Source is what the files say. It is safe for concurrent use; nothing has to be closed.
type Source struct {
	files Files
	log   *slog.Logger

	mu     sync.Mutex // guards what follows
	read   stamps     // when the files were read last, well or not
	loaded loaded
}

type loaded struct {
	pair *tls.Certificate
	ca   *x509.CertPool
}

// Open reads the files. The error names the file and what is wrong with it.
func Open(files Files, log *slog.Logger) (*Source, error) {
	s := &Source{files: files, log: log}
	var err error
	if s.read, err = stampsOf(files); err != nil {
		return nil, err
	}
	if s.loaded, err = load(files); err != nil {
		return nil, err
	}
	s.sayWhen(s.loaded.pair.Leaf)
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

// sayWhen logs until when a certificate is good, louder when that is over.
func (s *Source) sayWhen(leaf *x509.Certificate) {
	dates := []slog.Attr{
		slog.String("file", s.files.Certificate), slog.Time("not_before", leaf.NotBefore), slog.Time("not_after", leaf.NotAfter),
	}
	if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		s.log.LogAttrs(context.Background(), slog.LevelError, "certificate read, but others will refuse it: it is expired, or not valid yet", dates...)
		return
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "certificate read", dates...)
}

// current returns what the files say now. While they cannot be used, as in the
// middle of a renewal, it is what they said before.
func (s *Source) current() loaded {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := stampsOf(s.files)
	if err == nil && now == s.read {
		return s.loaded
	}
	if err == nil {
		s.read = now // not tried again before they change again
		var fresh loaded
		if fresh, err = load(s.files); err == nil {
			s.loaded = fresh
			s.sayWhen(fresh.pair.Leaf)
			return s.loaded
		}
	}
	s.log.LogAttrs(context.Background(), slog.LevelError, "changed certificates cannot be used; the earlier ones stay in use", slog.Any("err", err))
	return s.loaded
}

// Certificate is a tls.Config.GetCertificate, for servers that let everybody in.
func (s *Source) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current().pair, nil
}

// Server lets in who has a certificate of the authority for the DNS name given.
// The connections that there are stay when the files change.
func (s *Source) Server(client string) *tls.Config {
	fixed := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert,
		// A ticket would outlive the authority that its owner was let in by.
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
		return errors.New("the client shows no certificate")
	}
	if err := state.PeerCertificates[0].VerifyHostname(name); err != nil {
		return fmt.Errorf("the client is somebody else: %w", err)
	}
	return nil
}

// Client returns what a connection that is to be made now shows and trusts. The
// server must have a certificate of the authority for the name given; "" is the
// host that is dialed.
func (s *Source) Client(server string) *tls.Config {
	now := s.current()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: server,
		Certificates: []tls.Certificate{*now.pair}, RootCAs: now.ca,
	}
}
