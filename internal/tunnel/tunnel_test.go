package tunnel_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/internal/tunnel"
)

// pair returns the two ends of a TCP connection.
func pair(t *testing.T) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{near, far} {
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
	}
	return near.(*net.TCPConn), far.(*net.TCPConn)
}

// joined returns the outer ends of a tunnel, and a channel that is closed when it has ended.
func joined(t *testing.T, traffic func()) (client, server *net.TCPConn, ended chan struct{}) {
	t.Helper()
	client, a := pair(t)
	b, server := pair(t)
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		tunnel.Join(a, b, traffic)
	}()
	return client, server, ended
}

func TestBytesOfAnySizeArrive(t *testing.T) {
	content := make([]byte, 3<<20+1)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	var passed atomic.Int64
	client, server, ended := joined(t, func() { passed.Add(1) })
	go func() {
		for rest := content; len(rest) > 0; { // pieces from one byte to more than any buffer
			n := min(len(rest), 1+len(content)-len(rest))
			_, _ = client.Write(rest[:n])
			rest = rest[n:]
		}
		_ = client.CloseWrite()
	}()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes arrived, other ones or not all of %d: %v", len(got), len(content), err)
	}
	// The other direction is still open.
	if _, err := server.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Errorf("got %q, %v", got, err)
	}
	<-ended
	if passed.Load() == 0 {
		t.Error("no traffic was reported")
	}
}

func TestABrokenSideResetsTheOther(t *testing.T) {
	client, server, ended := joined(t, nil)
	_ = server.SetLinger(0)
	server.Close()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reading ends with %v, want a reset: a clean end would say that all arrived", err)
	}
	<-ended
}
