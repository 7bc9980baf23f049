package egress

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/crypto/cryptobyte"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// hello returns what a TLS client sends first.
func hello(tb testing.TB, config *tls.Config) []byte {
	tb.Helper()
	client, server := net.Pipe()
	ctx, cancel := context.WithCancel(tb.Context())
	defer cancel()
	go func() {
		_ = tls.Client(client, config).HandshakeContext(ctx) // it is cut off
		client.Close()
	}()
	var first bytes.Buffer
	o, err := sniff(io.TeeReader(server, &first))
	if err == nil && !bytes.Equal(o.data, first.Bytes()) {
		tb.Errorf("sniff read %d bytes and returned %d", first.Len(), len(o.data))
	}
	testkit.Must(tb, server.Close())
	return first.Bytes()
}

// echConfig returns a list of one configuration for ECH, RFC 9849 section 4.
func echConfig(tb testing.TB) []byte {
	tb.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	testkit.Must(tb, err)
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(encryptedClientHello)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(1)
			b.AddUint16(0x20) // DHKEM(X25519, HKDF-SHA256)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(1); b.AddUint16(1) })
			b.AddUint8(32)
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("example.com")) })
			b.AddUint16(0)
		})
	})
	list, err := b.Bytes()
	testkit.Must(tb, err)
	return list
}

func TestSniff(t *testing.T) {
	ech := &tls.Config{ServerName: "secret.test", EncryptedClientHelloConfigList: echConfig(t), MinVersion: tls.VersionTLS13}
	long := strings.Repeat("a", 100)
	for _, tc := range []struct {
		name, data string
		protocol   wrenn.EgressProtocol
		host, err  string
	}{
		{"TLS", string(hello(t, &tls.Config{ServerName: "Example.com"})), wrenn.EgressTLS, "example.com", ""},
		{"old TLS", string(hello(t, &tls.Config{ServerName: "example.com", MaxVersion: tls.VersionTLS12})), wrenn.EgressTLS, "example.com", ""},
		{"no SNI", string(hello(t, &tls.Config{InsecureSkipVerify: true})), wrenn.EgressTLS, "", "names no host"},
		{"ECH", string(hello(t, ech)), wrenn.EgressTLS, "example.com", "ECH"},
		{"half a ClientHello", string(hello(t, &tls.Config{ServerName: "example.com"})[:80]), wrenn.EgressTLS, "", "cannot be read"},
		{"no ClientHello", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", wrenn.EgressTLS, "", "cannot be read"},
		{"HTTP", "GET / HTTP/1.1\r\nHost: example.com:80\r\n\r\nmore", wrenn.EgressHTTP, "example.com", ""},
		{"old HTTP", "GET / HTTP/1.0\r\nhost: Example.COM.\r\n\r\n", wrenn.EgressHTTP, "example.com", ""},
		{"HTTP for a proxy", "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", wrenn.EgressHTTP, "example.com", ""},
		{"two hosts", "GET http://example.org/ HTTP/1.1\r\nHost: example.com\r\n\r\n", wrenn.EgressHTTP, "", "two hosts"},
		{"two headers", "GET / HTTP/1.1\r\nHost: example.com\r\nhost: example.org\r\n\r\n", wrenn.EgressHTTP, "", "2 Host headers"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", wrenn.EgressHTTP, "", "0 Host headers"},
		{"continued", "GET / HTTP/1.1\r\nHost: example.com\r\n .example.org\r\n\r\n", wrenn.EgressHTTP, "example.com .example.org", ""}, // no rule matches that
		{"CONNECT", "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", wrenn.EgressHTTP, "", "CONNECT"},
		{"half a header", "GET / HTTP/1.1\r\nHost: exam", wrenn.EgressHTTP, "", "cannot be read"},
		{"long header", "GET / HTTP/1.1\r\nHost: example.com\r\nA: " + strings.Repeat("a", maxFirstBytes), wrenn.EgressHTTP, "", "more than 16384 bytes"},
		{"long name", "GET / HTTP/1.1\r\nHost: " + long + "." + long + "." + long + "\r\n\r\n", wrenn.EgressHTTP, (long + "." + long + "." + long)[:253], "too long"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", wrenn.EgressTCP, "", "neither TLS nor HTTP/1"},
		{"SSH", "SSH-2.0-OpenSSH_9.2\r\n", wrenn.EgressTCP, "", "neither TLS nor HTTP/1"},
		{"zeros", "\x00\x00", wrenn.EgressTCP, "", "neither TLS nor HTTP/1"},
		{"nothing", "", wrenn.EgressTCP, "", "sent nothing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(tc.data), iotest.OneByteReader(strings.NewReader(tc.data))} {
				o, err := sniff(r)
				if o.protocol != tc.protocol || o.name != tc.host {
					t.Errorf("%s to %q, want %s to %q", o.protocol, o.name, tc.protocol, tc.host)
				}
				if tc.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
			}
		})
	}
}

// Whatever a client sends, no more than the bound is read, all of it is passed on,
// and a name is short.
func FuzzSniff(f *testing.F) {
	f.Add(hello(f, &tls.Config{ServerName: "example.com"}))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"))
	f.Add([]byte("GET http://[::1]:80/ HTTP/1.1\r\nHost: [::1]\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		o, err := sniff(r)
		if !bytes.HasPrefix(data, o.data) || len(o.data) > maxFirstBytes {
			t.Errorf("%d bytes were read", len(o.data))
		}
		if err == nil && len(data)-r.Len() != len(o.data) {
			t.Errorf("%d bytes were read, %d are passed on", len(data)-r.Len(), len(o.data))
		}
		if len(o.name) > 253 {
			t.Errorf("a name of %d bytes", len(o.name))
		}
	})
}
