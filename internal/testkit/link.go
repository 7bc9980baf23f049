package testkit

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Line is what a Link does with what it carries.
type Line struct {
	// Delay is how long each read of at most 32 KiB waits before it is passed on.
	Delay time.Duration
	// Stalled keeps connections and passes nothing on, as when packets are lost.
	Stalled bool
	// Cut resets all connections, and those that are made later.
	Cut bool
}

// Link is a connection between two programs that can fail: it listens, and passes on
// what it gets to another address.
type Link struct {
	listener        net.Listener
	network, target string

	mu      sync.Mutex // guards the following
	line    Line
	changed chan struct{} // closed when line changes
	conns   map[net.Conn]bool
}

// NewLink listens on address and passes on to target until the test ends. Networks are
// "tcp" or "unix"; the port of a TCP address may be 0.
func NewLink(tb testing.TB, network, address, target string) *Link {
	tb.Helper()
	listener, err := new(net.ListenConfig).Listen(tb.Context(), network, address)
	Must(tb, err)
	l := &Link{listener: listener, network: network, target: target, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	var served sync.WaitGroup
	served.Go(func() { l.serve(&served) })
	tb.Cleanup(func() {
		_ = listener.Close() // the test is over
		l.Set(Line{Cut: true})
		served.Wait()
	})
	return l
}

// Address is where it listens.
func (l *Link) Address() string { return l.listener.Addr().String() }

// Set sets what it does from now on.
func (l *Link) Set(line Line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line = line
	close(l.changed)
	l.changed = make(chan struct{})
	if line.Cut {
		for conn := range l.conns {
			reset(conn)
		}
	}
}

func (l *Link) serve(served *sync.WaitGroup) {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return // the test has ended
		}
		server, err := (&net.Dialer{Timeout: Timeout}).DialContext(context.Background(), l.network, l.target)
		if err != nil || !l.add(client, server) {
			reset(client)
			if err == nil {
				reset(server)
			}
			continue
		}
		served.Go(func() { l.carry(client, server) })
	}
}

// add reports whether connections may be made.
func (l *Link) add(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.line.Cut {
		return false
	}
	for _, conn := range conns {
		l.conns[conn] = true
	}
	return true
}

func (l *Link) carry(client, server net.Conn) {
	var up sync.WaitGroup
	up.Go(func() { l.pump(server, client) })
	l.pump(client, server)
	up.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range []net.Conn{client, server} {
		_ = conn.Close() // it may have been reset
		delete(l.conns, conn)
	}
}

// pump passes on what one side sends, until it ends or fails.
func (l *Link) pump(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			l.hold()
			if _, failed := to.Write(buffer[:n]); failed != nil {
				reset(from)
				return
			}
		}
		if errors.Is(err, io.EOF) {
			if half, ok := to.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite() // the other side sees the end
			}
			return
		}
		if err != nil {
			reset(to)
			return
		}
	}
}

// hold returns when what was read may be passed on.
func (l *Link) hold() {
	for {
		l.mu.Lock()
		line, changed := l.line, l.changed
		l.mu.Unlock()
		if !line.Stalled {
			time.Sleep(line.Delay) // what a slow line does
			return
		}
		<-changed
	}
}

// reset closes a connection without an orderly end.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it may have ended
	}
	_ = conn.Close() // as above
}
