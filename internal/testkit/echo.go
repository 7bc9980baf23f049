package testkit

import (
	"io"
	"net"
	"testing"
)

// Echo listens on a TCP address, with port 0 on a free one, until the test ends,
// and sends back what it gets. It returns the port.
func Echo(tb testing.TB, address string) (port int) {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", address)
	Must(tb, err)
	tb.Cleanup(func() { _ = l.Close() }) // the test is over
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test has ended
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn) // fails when the client has left
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}
