//go:build root

package server_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/host/server/agenttest"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/tunnel"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// tunnel asks the agent for a connection to a port of the sandbox.
func (c caller) tunnel(t *testing.T, id string, port int) (net.Conn, error) {
	t.Helper()
	return c.tunnelOn(t, func(conn net.Conn) net.Conn { return conn }, id, port)
}

// tunnelOn is tunnel by a connection to the agent that is wrapped first.
func (c caller) tunnelOn(t *testing.T, wrap func(net.Conn) net.Conn, id string, port int) (net.Conn, error) {
	t.Helper()
	local, err := net.Dial("unix", strings.TrimPrefix(c.agent.URL(), "unix://"))
	testkit.Must(t, err)
	t.Cleanup(func() { local.Close() })
	conn := wrap(local)
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://agent/tunnel/%s/%d", id, port), nil)
	testkit.Must(t, err)
	req.Header.Set(tunnel.NameHeader, tunnelName)
	made, err := tunnel.Ask(conn, req)
	if err == nil {
		t.Cleanup(func() { made.Close() })
	}
	return made, err
}

// remote hides that a connection is by a Unix socket: its bytes are copied, as for a
// control plane on another machine.
type remote struct{ net.Conn }

func (r remote) CloseWrite() error { return r.Conn.(*net.UnixConn).CloseWrite() }

// ways are those in which the bytes of a tunnel pass.
var ways = map[string]func(net.Conn) net.Conn{
	"copied": func(conn net.Conn) net.Conn { return remote{conn} },
	"shared": func(conn net.Conn) net.Conn { return conn },
}

const tunnelName = "one"

// whyCut asks the agent why it has cut the tunnel of that name.
func (c caller) whyCut(t *testing.T, id string, port int, name string) tunnel.Refused {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(c.agent.URL(), "unix://"))
	testkit.Must(t, err)
	defer conn.Close()
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://agent%s?%s=%s", tunnel.HostPath(id, uint16(port)), tunnel.CutParam, name), nil)
	testkit.Must(t, err)
	resp, _, err := tunnel.Exchange(conn, req, 1<<10)
	testkit.Must(t, err)
	defer resp.Body.Close()
	var why tunnel.Refused
	testkit.Must(t, json.NewDecoder(resp.Body).Decode(&why))
	return why
}

// refused returns the status and the code of a refusal.
func refused(t *testing.T, err error) (status int, code string) {
	t.Helper()
	refusal, ok := errors.AsType[*tunnel.Refusal](err)
	if !ok {
		t.Fatalf("got %v, want a refusal", err)
	}
	var why tunnel.Refused
	testkit.Must(t, json.Unmarshal(refusal.Body, &why))
	return refusal.Status, why.Code
}

func TestTunnels(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	port := testkit.Echo(t, "127.0.0.1:0") // whose loopback fake guests share
	for name, wrap := range ways {
		t.Run(name, func(t *testing.T) { c.testBytes(t, wrap, id, port) })
	}
	t.Run("refused", func(t *testing.T) {
		closed, err := net.Listen("tcp", "127.0.0.1:0")
		testkit.Must(t, err)
		closed.Close()
		for name, tc := range map[string]struct {
			id     string
			port   int
			status int
			code   string
		}{
			"closed port": {id, closed.Addr().(*net.TCPAddr).Port, 502, "failed_precondition"},
			"port 0":      {id, 0, 503, "invalid_argument"},
			"large port":  {id, 65536, 503, "invalid_argument"},
			"no sandbox":  {"i" + strings.Repeat("0", 20), port, 503, "not_found"},
			"no id":       {"..%2f", port, 503, "invalid_argument"},
		} {
			_, err := c.tunnel(t, tc.id, tc.port)
			if status, code := refused(t, err); status != tc.status || code != tc.code {
				t.Errorf("%s: %d %s, want %d %s", name, status, code, tc.status, tc.code)
			}
		}
	})
	for name, wrap := range ways {
		t.Run("broken by a pause, "+name, func(t *testing.T) { c.testPause(t, wrap, id, port) })
	}
}

// testBytes sends and receives by tunnels.
func (c caller) testBytes(t *testing.T, wrap func(net.Conn) net.Conn, id string, port int) {
	t.Helper()
	t.Run("to envd, on the guest's address", func(t *testing.T) {
		conn, err := c.tunnelOn(t, wrap, id, 49983)
		testkit.Must(t, err)
		_, err = io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		testkit.Must(t, err)
		if got, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 204 ") {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("to a loopback address, with a half-close", func(t *testing.T) {
		conn, err := c.tunnelOn(t, wrap, id, port)
		testkit.Must(t, err)
		_, err = io.WriteString(conn, "hello")
		testkit.Must(t, err)
		testkit.Must(t, conn.(interface{ CloseWrite() error }).CloseWrite())
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

// testPause pauses the sandbox, and resumes it.
func (c caller) testPause(t *testing.T, wrap func(net.Conn) net.Conn, id string, port int) {
	t.Helper()
	conn, err := c.tunnelOn(t, wrap, id, port)
	testkit.Must(t, err)
	_, err = io.WriteString(conn, "x")
	testkit.Must(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	testkit.Must(t, err)
	_, err = c.PauseSandbox(t.Context(), &pb.PauseSandboxRequest{SandboxId: id})
	testkit.Must(t, err)
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes after the pause", n)
	}
	if why := c.whyCut(t, id, port, tunnelName); why.Code != string(wrenn.CutByPause) || !strings.Contains(why.Message, "resume it") {
		t.Errorf("it was cut for %+v", why)
	}
	if why := c.whyCut(t, id, port, "other"); why.Code != "" {
		t.Errorf("a tunnel that was not cut, was for %+v", why)
	}
	_, err = c.tunnelOn(t, wrap, id, port)
	if status, code := refused(t, err); status != 503 || code != "failed_precondition" {
		t.Errorf("after the pause: %d %s", status, code)
	}
	_, err = c.ResumeSandbox(t.Context(), &pb.ResumeSandboxRequest{SandboxId: id})
	testkit.Must(t, err)
}

// TestTunnelsEndWithTheAgent, whose sandboxes live on.
func TestTunnelsEndWithTheAgent(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	port := testkit.Echo(t, "127.0.0.1:0")
	var open []net.Conn
	for _, wrap := range ways {
		conn, err := c.tunnelOn(t, wrap, id, port)
		testkit.Must(t, err)
		open = append(open, conn)
	}
	c.agent.Stop(t)
	for _, conn := range open {
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("read %d bytes after the end of the agent", n)
		}
	}
}

// TestASharedTunnelEnds when the control plane closes it: the program sees that.
func TestASharedTunnelEnds(t *testing.T) {
	c := call(t, agenttest.Config{})
	id := c.create(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	defer l.Close()
	conn, err := c.tunnel(t, id, l.Addr().(*net.TCPAddr).Port)
	testkit.Must(t, err)
	program, err := l.Accept()
	testkit.Must(t, err)
	defer program.Close()
	if _, ok := tunnel.Socket(conn); !ok {
		t.Fatal("the socket was not shared")
	}
	conn.Close()
	if n, err := program.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
}
