package tunnel

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
)

// Protocol is what a request upgrades to: the bytes of a connection and nothing
// else. It is the Upgrade header of the request and of the answer.
const Protocol = "wrenn-tunnel"

// maxAnswer bounds the header of an answer, and the body of one that refuses.
const maxAnswer = 16 << 10

// Asks reports whether the request asks for a tunnel.
func Asks(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), Protocol)
}

// Accept answers a request for a tunnel by 101 and returns the connection, which
// the caller closes. When it fails nothing was answered, or the client has left.
func Accept(w http.ResponseWriter) (net.Conn, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("a tunnel needs HTTP/1.1: %w", err)
	}
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n")
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return WithRead(conn, buffered.Reader), nil
}

// Refusal is an answer other than 101.
type Refusal struct {
	Status int
	Body   []byte // at most 16 KiB
}

func (r *Refusal) Error() string { return "the tunnel was refused with " + http.StatusText(r.Status) }

// Ask sends a request for a tunnel on a fresh connection and returns the tunnel,
// which the caller closes. By a Unix socket it may be the TCP socket of the other end,
// see ShareHeader. A server that refuses is a *Refusal. When Ask fails,
// as it does when the request's context ends, it has closed conn.
func Ask(conn net.Conn, req *http.Request) (net.Conn, error) {
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", Protocol)
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return ask(conn, req)
	}
	req.Header.Set(ShareHeader, "1")
	r := &receiver{UnixConn: local}
	tunnel, err := ask(r, req)
	socket, broken := r.socket()
	switch {
	case err != nil || broken != nil:
		if socket != nil {
			_ = socket.Close() // it is of no use
		}
		_ = conn.Close() // twice is allowed
		return nil, cmp.Or(err, broken)
	case socket != nil:
		return newShared(socket, local), nil
	case tunnel == net.Conn(r):
		return local, nil
	default:
		return tunnel, nil
	}
}

func ask(conn net.Conn, req *http.Request) (net.Conn, error) {
	resp, tunnel, err := Exchange(conn, req, maxAnswer)
	if err == nil && tunnel == nil {
		defer resp.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // the status alone is enough to go on
		err = &Refusal{Status: resp.StatusCode, Body: body}
	}
	if err != nil {
		_ = conn.Close() // it is of no use; twice is allowed
		return nil, err
	}
	return tunnel, nil
}

// Exchange sends a request to upgrade conn and reads the head of the answer, of at
// most maxHead bytes. After 101 upgraded is the connection behind the head; it is nil
// after any other answer, whose body is still to be read. When the request's context
// ends before Exchange returns, it fails and has closed conn.
func Exchange(conn net.Conn, req *http.Request, maxHead int64) (resp *http.Response, upgraded net.Conn, err error) {
	stop := context.AfterFunc(req.Context(), func() { _ = conn.Close() }) // ends a read
	resp, upgraded, err = exchange(conn, req, maxHead)
	if !stop() {
		err = errors.Join(err, context.Cause(req.Context()))
	}
	return resp, upgraded, err
}

func exchange(conn net.Conn, req *http.Request, maxHead int64) (*http.Response, net.Conn, error) {
	if err := req.Write(conn); err != nil {
		return nil, nil, err
	}
	head := &io.LimitedReader{R: conn, N: maxHead}
	reader := bufio.NewReaderSize(head, 2<<10)
	resp, err := http.ReadResponse(reader, req)
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer to a request for an upgrade: %w", err)
	}
	head.N = math.MaxInt64 // the limit was of the head
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return resp, nil, nil
	}
	return resp, WithRead(conn, reader), nil
}

// WithRead returns conn with what a reader of it has buffered in front.
func WithRead(conn net.Conn, reader *bufio.Reader) net.Conn {
	early, _ := reader.Peek(reader.Buffered()) // cannot fail: they are buffered
	if len(early) == 0 {
		return conn
	}
	return &prefixed{Conn: conn, early: append([]byte(nil), early...)}
}

// prefixed is a connection of which some bytes have been read already.
type prefixed struct {
	net.Conn

	early []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.early) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.early)
	p.early = p.early[n:]
	return n, nil
}

// CloseWrite ends the direction to the peer, where the connection can.
func (p *prefixed) CloseWrite() error { return closeWrite(p.Conn) }

// NetConn is the connection below.
func (p *prefixed) NetConn() net.Conn { return p.Conn }

// HostPath is the path of a request to a host's agent for a tunnel to a port of a
// sandbox.
func HostPath(sandbox string, port uint16) string {
	return fmt.Sprintf("/tunnel/%s/%d", sandbox, port)
}

// HostPattern is the pattern of HostPath for http.ServeMux.
const HostPattern = "GET /tunnel/{sandbox}/{port}"

// The bytes of a tunnel cannot say why it was cut. Its caller gives it a name, in
// NameHeader, and asks for HostPath with CutParam=name after the cut. The answer is
// a Refused, without a code when the program or the caller itself has ended it.
const (
	NameHeader = "Wrenn-Tunnel-Name"
	CutParam   = "cut"
)

// Refused is the JSON body of a host agent's Refusal, and of its answer to a question
// for a cut.
type Refused struct {
	Code    string `json:"code"` // as wire.ToResult gives it
	Message string `json:"message"`
}
