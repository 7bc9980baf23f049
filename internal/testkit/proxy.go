package testkit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Proxy is a proxy for TCP connections, by SOCKS5 (RFC 1928, RFC 1929) and by CONNECT.
type Proxy struct {
	// User and Password are what clients must have; "" is none.
	User, Password string
	// Dial connects to HOST:PORT, as the client gave it.
	Dial func(target string) (net.Conn, error)

	mu    sync.Mutex // guards asked
	asked []string
}

// Serve serves on l until the test ends.
func (p *Proxy) Serve(tb testing.TB, l net.Listener) {
	tb.Helper()
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
}

// Asked returns the targets that clients asked for, in order.
func (p *Proxy) Asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

func (p *Proxy) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	first, err := r.Peek(1)
	if err != nil {
		return
	}
	var server net.Conn
	if first[0] == 5 {
		server, err = p.socks(r, conn)
	} else {
		server, err = p.connect(r, conn)
	}
	if err != nil {
		return
	}
	defer server.Close()
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(server, r) // the other side sees the end
		if half, ok := server.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	})
	_, _ = io.Copy(conn, server) // as above
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	up.Wait()
}

func (p *Proxy) dial(target string) (net.Conn, error) {
	p.mu.Lock()
	p.asked = append(p.asked, target)
	p.mu.Unlock()
	return p.Dial(target)
}

var errRefused = errors.New("refused")

func (p *Proxy) connect(r *bufio.Reader, conn net.Conn) (net.Conn, error) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil, err
	}
	given := &http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}
	user, password, _ := given.BasicAuth()
	if req.Method != http.MethodConnect || user != p.User || password != p.Password {
		_, err = io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		return nil, errors.Join(errRefused, err)
	}
	server, err := p.dial(req.Host)
	if err != nil {
		_, _ = io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return nil, err
	}
	_, err = io.WriteString(conn, "HTTP/1.1 200 Connected\r\n\r\n")
	return server, err
}

func (p *Proxy) socks(r *bufio.Reader, conn net.Conn) (net.Conn, error) {
	methods, err := readSized(r, 1)
	if err != nil {
		return nil, err
	}
	method := byte(0)
	if p.User != "" {
		method = 2
	}
	if !slices.Contains(methods, method) {
		_, err = conn.Write([]byte{5, 0xff})
		return nil, errors.Join(errRefused, err)
	}
	if _, err = conn.Write([]byte{5, method}); err != nil {
		return nil, err
	}
	if err := p.authenticate(r, conn, method); err != nil {
		return nil, err
	}
	target, err := readTarget(r)
	if err != nil {
		return nil, err
	}
	server, err := p.dial(target)
	if err != nil {
		_, _ = conn.Write([]byte{5, 4, 0, 1, 0, 0, 0, 0, 0, 0})
		return nil, err
	}
	_, err = conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return server, err
}

func (p *Proxy) authenticate(r *bufio.Reader, conn net.Conn, method byte) error {
	if method == 0 {
		return nil
	}
	user, err := readSized(r, 1)
	if err != nil {
		return err
	}
	password, err := readSized(r, 0)
	if err != nil {
		return err
	}
	if string(user) != p.User || string(password) != p.Password {
		_, err = conn.Write([]byte{1, 1})
		return errors.Join(errRefused, err)
	}
	_, err = conn.Write([]byte{1, 0})
	return err
}

// readTarget reads a request to connect.
func readTarget(r *bufio.Reader) (string, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	var host string
	switch head[3] {
	case 1:
		var addr [4]byte
		if _, err := io.ReadFull(r, addr[:]); err != nil {
			return "", err
		}
		host = net.IP(addr[:]).String()
	case 3:
		name, err := readSized(r, 0)
		if err != nil {
			return "", err
		}
		host = string(name)
	default:
		return "", errRefused
	}
	var port [2]byte
	_, err := io.ReadFull(r, port[:])
	return fmt.Sprintf("%s:%d", strings.ToLower(host), binary.BigEndian.Uint16(port[:])), err
}

// readSized skips bytes, then reads a length of one byte and as many bytes.
func readSized(r *bufio.Reader, skip int) ([]byte, error) {
	if _, err := r.Discard(skip); err != nil {
		return nil, err
	}
	n, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	out := make([]byte, n)
	_, err = io.ReadFull(r, out)
	return out, err
}
