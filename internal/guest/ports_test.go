package guest_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/tunnel"
)

// TestConnect reaches programs on each loopback address, and no others.
func TestConnect(t *testing.T) {
	e := startEnvd(t)
	ask := func(port int) (net.Conn, error) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(e.base, "http://"))
		testkit.Must(t, err)
		t.Cleanup(func() { conn.Close() })
		req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("%s/connect?port=%d", e.base, port), nil)
		testkit.Must(t, err)
		return tunnel.Ask(conn, req)
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		conn, err := ask(testkit.Echo(t, address))
		testkit.Must(t, err)
		_, err = io.WriteString(conn, "hello")
		testkit.Must(t, err)
		testkit.Must(t, conn.(*net.TCPConn).CloseWrite())
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Errorf("%s: got %q, %v", address, got, err)
		}
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	closed.Close()
	for port, want := range map[int]int{closed.Addr().(*net.TCPAddr).Port: 502, 0: 400, 65536: 400, -1: 400} {
		_, err := ask(port)
		if refusal, ok := errors.AsType[*tunnel.Refusal](err); !ok || refusal.Status != want {
			t.Errorf("port %d: %v, want a refusal with %d", port, err, want)
		}
	}
}
