package testkit

import (
	"io"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func dialLink(t *testing.T, network, address string) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), network, address)
	Must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// says sends a word and returns what comes back.
func says(conn net.Conn, word string) (string, error) {
	if _, err := io.WriteString(conn, word); err != nil {
		return "", err
	}
	got := make([]byte, len(word))
	_, err := io.ReadFull(conn, got)
	return string(got), err
}

func TestLink(t *testing.T) {
	l := NewLink(t, "tcp", "127.0.0.1:0", "127.0.0.1:"+strconv.Itoa(Echo(t, "127.0.0.1:0")))
	conn := dialLink(t, "tcp", l.Address())
	if got, err := says(conn, "hello"); got != "hello" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}

	l.Set(Line{Stalled: true})
	answered := make(chan string)
	go func() {
		got, _ := says(conn, "later")
		answered <- got
	}()
	select {
	case got := <-answered:
		t.Errorf("a stalled line carried %q", got)
	case <-time.After(50 * time.Millisecond):
	}
	l.Set(Line{Delay: time.Millisecond})
	if got := <-answered; got != "later" {
		t.Errorf("after the stall: %q", got)
	}

	l.Set(Line{Cut: true})
	if got, err := says(conn, "lost"); err == nil {
		t.Errorf("a cut line carried %q", got)
	}
	if conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Address()); err == nil { // it may be reset at once
		if got, err := says(conn, "lost"); err == nil {
			t.Errorf("a new connection over a cut line carried %q", got)
		}
		_ = conn.Close()
	}

	l.Set(Line{})
	conn = dialLink(t, "tcp", l.Address())
	Must(t, conn.(*net.TCPConn).CloseWrite())
	if rest, err := io.ReadAll(conn); err != nil || len(rest) != 0 {
		t.Errorf("after the client's end: %q, %v", rest, err)
	}
}

func TestLinkOfSockets(t *testing.T) {
	dir := t.TempDir()
	target, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "target"))
	Must(t, err)
	defer target.Close()
	go func() {
		conn, err := target.Accept()
		if err == nil {
			_, _ = io.WriteString(conn, "hello") // the client has read it by then, or the test fails
			_ = conn.Close()
		}
	}()
	l := NewLink(t, "unix", filepath.Join(dir, "link"), filepath.Join(dir, "target"))
	if got, err := io.ReadAll(dialLink(t, "unix", l.Address())); string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
