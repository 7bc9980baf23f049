//go:build root && vm

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// resets is how many connections each kind of client in rude opens to a server.
const resets = 500

// rude are clients that disconnect in the middle of a request. Each gets a connection, which is reset when the function returns.
var rude = map[string]func(net.Conn){
	"part of a body": func(c net.Conn) {
		fmt.Fprintf(c, "POST /v1/sandboxes HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{")
	},
	"a download closed early": func(c net.Conn) {
		fmt.Fprint(c, "GET /openapi.yaml HTTP/1.1\r\nHost: a\r\n\r\n")
		_, _ = c.Read(make([]byte, 1))
	},
	"pipelined requests, unread": func(c net.Conn) {
		fmt.Fprint(c, strings.Repeat("GET /openapi.yaml HTTP/1.1\r\nHost: a\r\n\r\n", 20))
	},
	"a half-close": func(c net.Conn) {
		fmt.Fprint(c, "GET /v1/sandboxes HTTP/1.1\r\nHost: a\r\n\r\n")
		if half, ok := c.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		_, _ = c.Read(make([]byte, 1))
	},
	"the start of HTTP/2": func(c net.Conn) {
		fmt.Fprint(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	},
}

// resetAll opens thousands of connections to a server and breaks each.
func resetAll(t *testing.T, network, address string) {
	t.Helper()
	var clients sync.WaitGroup
	for name, talk := range rude {
		clients.Go(func() {
			for range resets {
				if err := resetOne(t.Context(), network, address, talk); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	clients.Wait()
}

func resetOne(ctx context.Context, network, address string, talk func(net.Conn)) error {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err // the server must take the next connection
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // close sends RST
	}
	talk(conn)
	return nil
}

// testResets breaks connections to the control plane and to the host agent.
func testResets(t *testing.T, s *stack) {
	t.Helper()
	resetAll(t, "tcp", strings.TrimPrefix(s.url, "http://"))
	if err := s.api.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	resetAll(t, "unix", s.agent.dir+"/run/agent.sock")
	if _, err := s.agent.rpc.Ping(t.Context(), &pb.PingRequest{}); err != nil {
		t.Error(err)
	}
	for name, part := range map[string]*child{"control plane": s.controlPlane, "host agent": s.agent.child} {
		select {
		case <-part.ended:
			t.Errorf("the %s ended; it printed:\n%s", name, part.out)
		default:
		}
	}
}

func TestResetsOfEnvd(t *testing.T) {
	envd := startChild(t, exec.Command("../bin/envd", "--outside-guest", "--listen", "127.0.0.1:0"))
	t.Cleanup(func() { _ = envd.cmd.Process.Kill() })
	if !envd.out.wait("address=", patience) {
		t.Fatalf("envd does not listen; it printed:\n%s", envd.out)
	}
	address := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(envd.out.String())[1]
	resetAll(t, "tcp", address)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("envd is gone: %v; it printed:\n%s", err, envd.out)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 204 ") {
		t.Errorf("envd answers %q, %v", answer, err)
	}
}

// testResetsOfUp breaks connections to the API of "wrenn up", without a key, and checks that
// up keeps running.
func testResetsOfUp(t *testing.T, e *everything, id string) {
	t.Helper()
	url := strings.Trim(regexp.MustCompile(`Wrenn serves at (\S+)`).FindStringSubmatch(e.out.String())[1], " ")
	resetAll(t, "tcp", strings.TrimPrefix(url, "http://"))
	select {
	case err := <-e.done:
		t.Fatalf("up ended with %v:\n%s", err, e.out)
	default:
	}
	if out := e.must(t, nil, "sandbox", "exec", id, "--", "echo", "alive"); out != "alive\n" {
		t.Errorf("printed %q", out)
	}
}
