package certs_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"wrenn.dev/internal/certs"
	"wrenn.dev/internal/certs/certstest"
)

func open(t *testing.T, files certs.Files) *certs.Source {
	t.Helper()
	s, err := certs.Open(files, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// meet makes a connection and returns the errors of both sides.
func meet(t *testing.T, server, client *tls.Config) (ofServer, ofClient error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() { done <- welcome(tls.NewListener(l, server)) }()
	plain, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_ = plain.SetDeadline(time.Now().Add(time.Minute)) // a TCP connection always can
	// In TLS 1.3 a client learns that it is refused only after its own handshake is done.
	_, ofClient = io.ReadAll(tls.Client(plain, client))
	plain.Close()
	return <-done, ofClient
}

func welcome(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute)) // a TCP connection always can
	_, err = io.WriteString(conn, "welcome")
	return err
}

const controlPlane = "control-plane"

func TestPeers(t *testing.T) {
	ours, theirs := certstest.New(t), certstest.New(t)
	host := ours.Issue(t, certstest.Want{Names: []string{"host-1", "10.0.0.1"}})
	good := ours.Issue(t, certstest.Want{Names: []string{controlPlane}, Client: true})
	past := time.Now().Add(-time.Hour)
	trusting := func(files certs.Files, ca *certstest.Authority) certs.Files { files.CA = ca.File; return files }
	for _, tc := range []struct {
		name         string
		host, client certs.Files
		dialed       string
		server       string // the error's, "" is none
		clientSays   string
	}{
		{"good, by name", host, good, "host-1", "", ""},
		{"good, by address", host, good, "10.0.0.1", "", ""},
		{"another host at the address", host, good, "host-2", "remote error", "not host-2"},
		{"a host of another authority", trusting(theirs.Issue(t, certstest.Want{Names: []string{"host-1"}}), ours), good, "host-1", "remote error", "unknown authority"},
		{"a host with an expired certificate", ours.Issue(t, certstest.Want{Names: []string{"host-1"}, Until: past}), good, "host-1", "remote error", "expired"},
		{"a control plane that poses as a host", ours.Issue(t, certstest.Want{Names: []string{"host-1"}, Client: true}), good, "host-1", "remote error", "incompatible key usage"},
		{"a client of another authority", host, trusting(theirs.Issue(t, certstest.Want{Names: []string{controlPlane}, Client: true}), ours), "host-1", "unknown authority", "remote error"},
		{"a client with an expired certificate", host, ours.Issue(t, certstest.Want{Names: []string{controlPlane}, Client: true, Until: past}), "host-1", "expired", "remote error"},
		{"another host as a client", host, ours.Issue(t, certstest.Want{Names: []string{"host-2"}, Client: true}), "host-1", "another name", "remote error"},
		{"a host that poses as the control plane", host, ours.Issue(t, certstest.Want{Names: []string{controlPlane}}), "host-1", "incompatible key usage", "remote error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server, client := meet(t, open(t, tc.host).Server(controlPlane), open(t, tc.client).Client(tc.dialed))
			says(t, "server", server, tc.server)
			says(t, "client", client, tc.clientSays)
		})
	}
	t.Run("a client without a certificate", func(t *testing.T) {
		client := open(t, good).Client("host-1")
		client.Certificates = nil
		server, _ := meet(t, open(t, host).Server(controlPlane), client)
		says(t, "server", server, "didn't provide a certificate")
	})
	t.Run("an old version of TLS", func(t *testing.T) {
		client := open(t, good).Client("host-1")
		client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		server, _ := meet(t, open(t, host).Server(controlPlane), client)
		says(t, "server", server, "unsupported versions")
	})
}

func says(t *testing.T, who string, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("the %s says %v, want %q", who, err, want)
	}
}

// The next connection uses a renewed certificate, on both sides, without a restart.
func TestRenewal(t *testing.T) {
	old, renewed := certstest.New(t), certstest.New(t)
	host := old.Issue(t, certstest.Want{Names: []string{"host-1"}})
	client := old.Issue(t, certstest.Want{Names: []string{controlPlane}, Client: true})
	server, caller := open(t, host), open(t, client)
	config := server.Server(controlPlane) // made once, as a listener does
	works := func() bool {
		ofServer, ofClient := meet(t, config, caller.Client("host-1"))
		return ofServer == nil && ofClient == nil
	}
	if !works() {
		t.Fatal("they do not meet to begin with")
	}
	renewed.Renew(t, host, certstest.Want{Names: []string{"host-1"}})
	if works() {
		t.Error("the host's new certificate is not shown")
	}
	replace(t, client.CA, renewed.File)
	renewed.Renew(t, client, certstest.Want{Names: []string{controlPlane}, Client: true})
	if !works() {
		t.Error("the new authority and the client's new certificate are not in use")
	}
}

func replace(t *testing.T, path, by string) {
	t.Helper()
	text, err := os.ReadFile(by)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Half of a renewal changes nothing, and is logged once.
func TestIncompleteRenewal(t *testing.T) {
	ca := certstest.New(t)
	files := ca.Issue(t, certstest.Want{Names: []string{"a"}})
	var log bytes.Buffer
	s, err := certs.Open(files, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	shown := func() string {
		pair, err := s.Certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	before := shown()
	other := ca.Issue(t, certstest.Want{Names: []string{"b"}})
	for _, step := range []struct {
		name string
		do   func()
		same bool
	}{
		{"the certificate without its key", func() { replace(t, files.Certificate, other.Certificate) }, true},
		{"its key comes", func() { replace(t, files.Key, other.Key) }, false},
	} {
		step.do()
		for range 3 {
			if (shown() == before) != step.same {
				t.Errorf("%s: shown is %s, was %s", step.name, shown(), before)
			}
		}
	}
	if n := strings.Count(log.String(), "cannot use changed certificates"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
}

func TestOpenNamesTheFile(t *testing.T) {
	ca := certstest.New(t)
	good, other := ca.Issue(t, certstest.Want{}), ca.Issue(t, certstest.Want{})
	for name, files := range map[string]certs.Files{
		"no certificate": {Certificate: "/no/such.crt", Key: good.Key},
		"no key":         {Certificate: good.Certificate, Key: "/no/such.key"},
		"another's key":  {Certificate: good.Certificate, Key: other.Key},
		"no authority":   {Certificate: good.Certificate, Key: good.Key, CA: "/no/such.ca"},
		"a key as one":   {Certificate: good.Certificate, Key: good.Key, CA: good.Key},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := certs.Open(files, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), "/") {
				t.Errorf("Open() = %v, want one that names the file", err)
			}
		})
	}
}

func TestExpiredCertificateIsLogged(t *testing.T) {
	files := certstest.New(t).Issue(t, certstest.Want{Until: time.Now().Add(-time.Minute)})
	var log bytes.Buffer
	if _, err := certs.Open(files, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), files.Certificate) {
		t.Errorf("log: %s", &log)
	}
}
