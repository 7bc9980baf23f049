package testkit

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// Ambiguous is a request with both Content-Length and Transfer-Encoding, followed by one
// that a server must not serve. %s is the path of each.
const Ambiguous = "POST %[1]s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET %[1]s HTTP/1.1\r\nHost: x\r\n\r\n"

// Statuses sends raw and returns the statuses of all answers until the server closes the
// connection, which must be within 30 s. It closes conn.
func Statuses(tb testing.TB, conn net.Conn, raw string) (statuses []int) {
	tb.Helper()
	defer conn.Close()
	Must(tb, conn.SetDeadline(time.Now().Add(30*time.Second)))
	_, err := io.WriteString(conn, raw)
	Must(tb, err)
	reader := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // of the connection itself
				tb.Errorf("the connection is still open after %v", statuses)
			}
			return statuses
		}
		_, _ = io.Copy(io.Discard, resp.Body) // the next read says what was wrong
		_ = resp.Body.Close()
		statuses = append(statuses, resp.StatusCode)
	}
}
