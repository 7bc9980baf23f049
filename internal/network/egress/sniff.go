package egress

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"wrenn.dev"
)

// maxFirstBytes bounds what is read to learn where a client wants to go.
const maxFirstBytes = 16 << 10

// The numbers of RFC 9849 and RFC 8446.
const (
	encryptedClientHello = 0xfe0d
	recordHandshake      = 22
)

// opening is how a client opens a connection.
type opening struct {
	protocol wrenn.EgressProtocol
	name     string   // the host that it wants to reach, canonical
	data     []byte   // all that was read
	alpn     []string // the protocols that a TLS client offers
}

// sniff reads the beginning of a connection, at most maxFirstBytes, and returns
// where it is to go. The error says why that is not known; protocol and data are
// valid then, too.
func sniff(r io.Reader) (opening, error) {
	var data bytes.Buffer
	r = io.TeeReader(io.LimitReader(r, maxFirstBytes), &data)
	first := make([]byte, 1)
	if _, err := io.ReadFull(r, first); err != nil {
		return opening{protocol: wrenn.EgressTCP}, fmt.Errorf("the client sent nothing: %w", err)
	}
	r = io.MultiReader(bytes.NewReader(first), r)
	o := opening{protocol: wrenn.EgressTCP}
	var err error
	switch c := first[0]; {
	case c == recordHandshake:
		o.protocol = wrenn.EgressTLS
		o.name, o.alpn, err = readHello(r)
	case c >= 'A' && c <= 'Z':
		o.name, err = readHost(r)
		if !errors.Is(err, errUnknown) {
			o.protocol = wrenn.EgressHTTP
		}
	default:
		err = errUnknown
	}
	o.data = data.Bytes()
	const maxName = 253 // of RFC 1035
	if len(o.name) > maxName {
		o.name, err = o.name[:maxName], cmp.Or(err, errors.New("the name of its host is too long"))
	}
	return o, err
}

var errUnknown = errors.New("it is neither TLS nor HTTP/1: allow its address instead of its name")

// errEncrypted comes with the name that can be seen.
var errEncrypted = errors.New("its TLS ClientHello has an encrypted part (ECH), which may name another host: switch ECH off in the client")

// readHello returns the server name of a TLS ClientHello, and the protocols that it offers.
func readHello(r io.Reader) (name string, alpn []string, err error) {
	done := errors.New("read")
	var hello *tls.ClientHelloInfo
	err = tls.Server(readOnly{r}, &tls.Config{
		MinVersion: tls.VersionTLS10, // the server decides
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = h
			return nil, done
		},
	}).Handshake() //nolint:noctx // the connection has a deadline
	switch {
	case hello == nil:
		return "", nil, fmt.Errorf("its TLS ClientHello cannot be read: %w", err)
	case slices.Contains(hello.Extensions, encryptedClientHello):
		err = errEncrypted
	case hello.ServerName == "":
		err = errors.New("its TLS ClientHello names no host (SNI): connect to a name, or allow the address")
	default:
		err = nil
	}
	return wrenn.CanonicalName(hello.ServerName), hello.SupportedProtos, err
}

// readOnly is a connection to read a ClientHello from; what is written is lost.
type readOnly struct{ io.Reader }

func (readOnly) Write(b []byte) (int, error)      { return len(b), nil }
func (readOnly) Close() error                     { return nil }
func (readOnly) LocalAddr() net.Addr              { return nil }
func (readOnly) RemoteAddr() net.Addr             { return nil }
func (readOnly) SetDeadline(time.Time) error      { return nil }
func (readOnly) SetReadDeadline(time.Time) error  { return nil }
func (readOnly) SetWriteDeadline(time.Time) error { return nil }

// readHost returns the host of an HTTP/1 request.
func readHost(r io.Reader) (name string, err error) {
	text := textproto.NewReader(bufio.NewReader(r))
	line, err := text.ReadLine()
	if err != nil {
		return "", fmt.Errorf("its first line cannot be read: %w", err)
	}
	parts := strings.Split(line, " ")
	if len(parts) != 3 || !strings.HasPrefix(parts[2], "HTTP/1.") {
		return "", errUnknown
	}
	if parts[0] == "CONNECT" {
		return "", errors.New("it is a request to a proxy (CONNECT)")
	}
	header, err := text.ReadMIMEHeader()
	if err != nil {
		return "", fmt.Errorf("the header of its request cannot be read, or has more than %d bytes: %w", maxFirstBytes, err)
	}
	hosts := header["Host"]
	if len(hosts) != 1 {
		return "", fmt.Errorf("its request has %d Host headers instead of one", len(hosts))
	}
	name = hostOf(hosts[0])
	if !strings.HasPrefix(parts[1], "/") && parts[1] != "*" {
		target, err := url.Parse(parts[1])
		if err != nil || hostOf(target.Host) != name {
			return "", errors.New("its request names two hosts")
		}
	}
	return name, nil
}

// hostOf returns the canonical name in host or host:port.
func hostOf(text string) string {
	host, _, _ := strings.Cut(text, ":")
	return wrenn.CanonicalName(host)
}
