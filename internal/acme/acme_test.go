package acme_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"wrenn.dev/internal/acme"
	"wrenn.dev/internal/config"
	"wrenn.dev/internal/testkit"
)

const (
	domain  = "sandbox.example.com"
	keyName = "wrenn."
)

var key = base64.StdEncoding.EncodeToString([]byte("the key of a test, 32 bytes long"))

// zone is a DNS server for example.com that takes updates by RFC 2136, signed by key.
type zone struct {
	address string

	mu      sync.Mutex // guards what follows
	records map[string][]dns.RR
	updates int
	refused int
	refuse  bool

	file string // has further records, a name and a text in each line; "" has none
}

// fromFile returns the TXT records of the name that are in the file.
func (z *zone) fromFile(name string) (found []dns.RR) {
	text, _ := os.ReadFile(z.file) // there may be none
	for line := range strings.Lines(string(text)) {
		if of, value, _ := strings.Cut(strings.TrimSpace(line), " "); strings.EqualFold(of, name) {
			found = append(found, &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{value}})
		}
	}
	return found
}

func newZone(t *testing.T) *zone {
	t.Helper()
	z := &zone{records: map[string][]dns.RR{}}
	packets, l := samePort(t)
	z.address = l.Addr().String()
	for _, s := range []*dns.Server{{PacketConn: packets}, {Listener: l}} {
		started := make(chan struct{})
		s.Handler, s.TsigSecret, s.NotifyStartedFunc = z, map[string]string{keyName: key}, func() { close(started) }
		s.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept } // also updates
		go func() { _ = s.ActivateAndServe() }()                                        // ends with the test
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return z
}

// samePort listens at a port that is free for UDP and for TCP.
func samePort(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		testkit.Must(t, err)
		packets, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return packets, l
		}
		l.Close()
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

// ServeDNS implements dns.Handler.
func (z *zone) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	answer := new(dns.Msg).SetReply(m)
	answer.Authoritative = true
	switch q := m.Question[0]; {
	case m.Opcode == dns.OpcodeUpdate:
		if m.IsTsig() == nil || w.TsigStatus() != nil || z.refuse {
			z.refused++
			answer.Rcode = dns.RcodeRefused
			break
		}
		z.updates++
		z.update(m.Ns)
		answer.SetTsig(keyName, dns.HmacSHA256, 300, int64(m.IsTsig().TimeSigned))
	case q.Qtype == dns.TypeSOA && q.Name == "example.com.":
		soa, _ := dns.NewRR("example.com. 1 IN SOA ns.example.com. root.example.com. 1 1 1 1 1")
		answer.Answer = append(answer.Answer, soa)
	case q.Qtype == dns.TypeTXT:
		answer.Answer = append(z.fromFile(q.Name), z.records[strings.ToLower(q.Name)]...)
	}
	_ = w.WriteMsg(answer) // the client may have left
}

// update is for a caller that holds mu.
func (z *zone) update(changes []dns.RR) {
	for _, rr := range changes {
		name := strings.ToLower(rr.Header().Name)
		if rr.Header().Class == dns.ClassINET {
			z.records[name] = append(z.records[name], rr)
		} else {
			delete(z.records, name)
		}
	}
}

// authority serves ACME as Let's Encrypt does, and asks z for the records. Its
// certificates are valid for so many seconds; 0 is 90 days. It returns its URL, the file
// with what signs the server, and the store of its roots.
func authority(t *testing.T, z *zone, seconds uint64) (url, file string, issued *x509.CertPool) {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	store := db.NewMemoryStore()
	issuer := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "the only one", ValidityPeriod: seconds}})
	front := wfe.New(quiet, store, va.New(quiet, 0, 0, true, z.address, store), issuer, nil, true, false, 1, 1)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)
	file = write(t, "authority.pem", pemOf(server.Certificate()))
	issued = x509.NewCertPool()
	issued.AddCert(issuer.GetRootCert(0).Cert)
	return server.URL + wfe.DirectoryPath, file, issued
}

func pemOf(cert *x509.Certificate) string {
	return "-----BEGIN CERTIFICATE-----\n" + base64.StdEncoding.EncodeToString(cert.Raw) + "\n-----END CERTIFICATE-----\n"
}

func write(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	testkit.Must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// run opens a source of the certificate and serves by it until stop.
func run(t *testing.T, cfg acme.Config) (address string, stop func()) {
	t.Helper()
	s, err := acme.Open(cfg, domain, slog.New(slog.NewTextHandler(t.Output(), nil)))
	testkit.Must(t, err)
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{GetCertificate: s.Certificate}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.StartTLS()
	server.TLS.Certificates = nil // httptest's own
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return server.Listener.Addr().String(), func() {
		cancel()
		testkit.Must(t, <-ended)
		server.Close()
	}
}

// hello makes a handshake as a client of a sandbox's port.
func hello(address string, trust *x509.CertPool) error {
	conn, err := tls.Dial("tcp", address, &tls.Config{ServerName: "8080-iaaaaaaaaaaaaaaaaaaaa." + domain, RootCAs: trust})
	if err != nil {
		return err
	}
	return conn.Close()
}

// with is the configuration for an authority and a zone.
func with(t *testing.T, z *zone, directory, file string) acme.Config {
	t.Helper()
	return acme.Config{
		DNS: "rfc2136", State: t.TempDir(), Directory: directory, CA: file, Resolvers: []string{z.address},
		RFC2136: acme.RFC2136{Server: z.address, KeyName: strings.TrimSuffix(keyName, "."), KeyFile: write(t, "key", key+"\n")},
	}
}

func TestCertificate(t *testing.T) {
	z := newZone(t)
	directory, file, trust := authority(t, z, 0)
	cfg := with(t, z, directory, file)
	var problems config.Problems
	cfg.Check(&problems)
	t.Cleanup(acme.SetFirstPause(time.Millisecond))
	z.refuse = true
	address, stop := run(t, cfg)
	testkit.WaitUntil(t, "an update was refused", func() bool {
		z.mu.Lock()
		defer z.mu.Unlock()
		return z.refused > 0
	})
	if err := hello(address, trust); err == nil {
		t.Error("there is a certificate that no authority gave")
	}
	z.mu.Lock()
	z.refuse = false
	z.mu.Unlock()
	testkit.WaitNoError(t, "there is a certificate", func() error { return hello(address, trust) })
	stop()
	z.mu.Lock()
	if z.updates < 2 || len(z.records) != 0 {
		t.Errorf("%d updates, and these records are left: %v", z.updates, z.records)
	}
	z.refuse = true
	z.mu.Unlock()
	// The next run has it from the last one.
	address, stop = run(t, cfg)
	defer stop()
	testkit.WaitNoError(t, "the certificate is loaded", func() error { return hello(address, trust) })
}

// TestExec: the record is set and removed by a program.
func TestExec(t *testing.T) {
	z := newZone(t)
	dir := t.TempDir()
	z.file = filepath.Join(dir, "records")
	program := write(t, "hook", `#!/bin/sh
case $1 in
set) echo "$2 $3" >>`+z.file+` ;;
remove) grep -vxF "$2 $3" `+z.file+` >`+z.file+`.new; mv `+z.file+`.new `+z.file+`; echo "$2" >>`+z.file+`.removed ;;
esac
`)
	testkit.Must(t, os.Chmod(program, 0o700))
	directory, file, trust := authority(t, z, 0)
	cfg := with(t, z, directory, file)
	cfg.DNS, cfg.Exec = "exec", acme.Exec{Program: program}
	address, stop := run(t, cfg)
	testkit.WaitNoError(t, "there is a certificate", func() error { return hello(address, trust) })
	stop()
	removed, err := os.ReadFile(z.file + ".removed")
	testkit.Must(t, err)
	if left, err := os.ReadFile(z.file); err != nil || len(left) > 0 || !strings.HasPrefix(string(removed), "_acme-challenge."+domain+".") {
		t.Errorf("left: %q, %v; removed: %q", left, err, removed)
	}
}

// TestNoQuestions: without an address of email nothing is asked on the terminal, where
// certmagic would wait for the answer.
func TestNoQuestions(t *testing.T) {
	z := newZone(t)
	directory, file, trust := authority(t, z, 0)
	printed, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	testkit.Must(t, err)
	defer printed.Close()
	before := os.Stdout
	os.Stdout = printed
	t.Cleanup(func() { os.Stdout = before })
	address, stop := run(t, with(t, z, directory, file))
	testkit.WaitNoError(t, "there is a certificate", func() error { return hello(address, trust) })
	stop()
	if text, err := os.ReadFile(printed.Name()); err != nil || len(text) > 0 {
		t.Errorf("printed %q, %v", text, err)
	}
}

// TestRenewal: a certificate that is about to expire is replaced, and handshakes get the
// new one without a restart.
func TestRenewal(t *testing.T) {
	z := newZone(t)
	directory, file, trust := authority(t, z, 6)
	t.Cleanup(acme.SetFirstPause(time.Millisecond))
	t.Cleanup(acme.SetRenewalCheck(100 * time.Millisecond))
	address, stop := run(t, with(t, z, directory, file))
	defer stop()
	serials := map[string]bool{}
	testkit.WaitUntil(t, "a handshake has a second certificate", func() bool {
		conn, err := tls.Dial("tcp", address, &tls.Config{ServerName: "api." + domain, RootCAs: trust})
		if err != nil { // there is none yet, or a busy machine let it expire
			return false
		}
		defer conn.Close()
		serials[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		return len(serials) > 1
	})
}

// TestWithoutAnAuthority: the listener stays up.
func TestWithoutAnAuthority(t *testing.T) {
	cfg := acme.Config{
		DNS: "rfc2136", State: t.TempDir(), Directory: "https://127.0.0.1:1/dir",
		RFC2136: acme.RFC2136{Server: "127.0.0.1:1", KeyName: keyName, KeyFile: write(t, "key", key)},
	}
	address, stop := run(t, cfg)
	defer stop()
	for range 3 {
		if err := hello(address, nil); err == nil || !strings.Contains(err.Error(), "tls") {
			t.Errorf("a handshake without a certificate: %v", err)
		}
	}
}

func TestOpenNamesTheProblem(t *testing.T) {
	empty := write(t, "empty", "\n")
	for want, cfg := range map[string]acme.Config{
		`dns "godaddy": use cloudflare, rfc2136 or exec`: {DNS: "godaddy"},
		"exec.program: set it to the path":               {DNS: "exec", Exec: acme.Exec{Program: "hook"}},
		"make it executable":                             {DNS: "exec", Exec: acme.Exec{Program: empty}},
		"cloudflare.token_file: set it":                  {DNS: "cloudflare"},
		"is empty":                                       {DNS: "cloudflare", Cloudflare: acme.Cloudflare{TokenFile: empty}},
		"rfc2136: set server, key_name and key_file":     {DNS: "rfc2136"},
		"has no certificate in PEM":                      {DNS: "cloudflare", Cloudflare: acme.Cloudflare{TokenFile: write(t, "token", "x")}, CA: empty},
	} {
		if _, err := acme.Open(cfg, domain, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
