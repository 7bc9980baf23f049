//go:build root && vm

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/testkit"
)

// hostMemory is the most that the agent and the control plane may each use: the lowest
// limit that they set themselves by default.
const hostMemory = 512 << 20

// hostile is a guest that attacks, beside one of another team that works.
type hostile struct {
	*stack
	id       string // of the hostile guest
	neighbor *client.Client
	beside   string // the id of the neighbor's sandbox
	world    *world
	trap     *trap
}

// TestHostileGuest lets a guest attack the host and its network, go past its egress proxy,
// trick resolvers, use up all it has, and answer in envd's place. A neighbor works, the
// host's memory stays bounded, the guest can be deleted in the midst of it, and nothing is left.
func TestHostileGuest(t *testing.T) {
	h := &hostile{stack: newStack(t, "whost", "10.232.0.0/16"), world: newWorld(t), trap: setTrap(t)}
	out, err := h.command(t, "key", "neighbor", "test").Output()
	testkit.Must(t, err)
	h.neighbor, err = client.New(client.Config{URL: h.url, Key: strings.TrimSpace(string(out))})
	testkit.Must(t, err)
	h.id = h.made(t, "hostile").ID
	sb, err := h.neighbor.CreateSandbox(t.Context(), client.CreateSandbox{MemoryMB: 128, Timeout: client.Never})
	testkit.Must(t, err)
	h.beside = sb.ID

	t.Run("egress proxy", h.testEgressProxy)
	t.Run("closed addresses", h.testClosed)
	t.Run("names", h.testDNS)
	t.Run("raw segments", h.testSYNFlood)
	t.Run("hanging at a freeze", h.testFreeze)
	t.Run("floods", h.testFloods)
	t.Run("in place of envd", h.testInPlaceOfEnvd)
	h.checkMemory(t)
	testkit.Must(t, h.neighbor.DeleteSandbox(t.Context(), h.beside))
	h.clean(t, "hostile") // deletes the hostile one
}

// put writes a program of testdata to the hostile guest and returns its path there.
func (h *hostile) put(t *testing.T, name string) string {
	t.Helper()
	program, err := os.ReadFile("testdata/" + name)
	testkit.Must(t, err)
	testkit.Must(t, h.api.WriteFile(t.Context(), h.id, "/root/"+name, bytes.NewReader(program), client.FileOptions{User: "root"}))
	return "/root/" + name
}

// attack runs a shell script as root in the hostile guest.
func (h *hostile) attack(t *testing.T, script string) string {
	t.Helper()
	r, err := h.api.Exec(t.Context(), h.id, client.Command{Cmd: "/bin/sh", Args: []string{"-c", script}, User: "root", Timeout: patience})
	testkit.Must(t, err)
	if r.ExitCode != 0 {
		t.Fatalf("%s: %s: %s%s", script, r.Status, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// testClosed connects and sends to metadata services, the gateway, all addresses of the
// host and the slots nearby, with true and with forged senders.
func (h *hostile) testClosed(t *testing.T) {
	targets := append([]string{"169.254.169.254", "168.63.129.16", "169.254.0.22", "127.0.0.2"}, h.trap.addresses(t)...)
	for n := range 8 {
		targets = append(targets, fmt.Sprintf("10.232.0.%d", n))
	}
	path := h.put(t, "hostile_network.py")
	if got := h.attack(t, fmt.Sprintf("python3 %s %d %s", path, h.trap.port, strings.Join(targets, " "))); got != "" {
		t.Errorf("the guest connected to %q", got)
	}
	h.works(t)
	h.trap.check(t)
}

// testFloods uses up CPU, memory, processes, disk and connections at once.
func (h *hostile) testFloods(t *testing.T) {
	h.works(t)
	idle := h.round(t)
	h.attack(t, `flood() { setsid bash -c "$1" >/dev/null 2>&1 </dev/null & }
flood 'while :; do dd if=/dev/zero of=/full bs=1M; done'
until [ -s /full ]; do :; done # from here on nothing is certain to run in this guest
flood 'while :; do :; done'
flood 'while :; do for n in 1 2 3 4 5 6 7 8; do (: >/dev/tcp/198.51.100.$n/80) & (: >/dev/udp/198.51.100.$n/53) & done; done'
flood 'while :; do tail /dev/zero; done'
flood 'bomb() { bomb | bomb & }; bomb; sleep 1000'`)
	var longest time.Duration
	for range 20 {
		longest = max(longest, h.round(t))
	}
	t.Logf("a round of the neighbor took at most %s, idle %s: %.1f times as long", longest, idle, float64(longest)/float64(idle))
	h.checkMemory(t)
	testkit.Must(t, h.api.DeleteSandbox(t.Context(), h.id))
	h.id = h.made(t, "hostile").ID
}

// testInPlaceOfEnvd calls all kinds of operations on a guest whose envd is hostile.
func (h *hostile) testInPlaceOfEnvd(t *testing.T) {
	h.replaceEnvd(t, fmt.Sprintf("http://127.0.0.1:%d/", h.trap.port))
	const kinds = 14 // of answers, which the program gives in turn
	for n := range 2 * kinds {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		if err := h.call(ctx, n); err == nil && n%3 != 1 { // it may claim that it wrote a file
			t.Errorf("call %d succeeded", n)
		}
		cancel()
		if n%kinds == 0 {
			h.works(t)
		}
	}
	h.checkMemory(t)
	h.works(t)
	h.trap.check(t) // no redirect was followed
	testkit.Must(t, h.api.DeleteSandbox(t.Context(), h.id))
}

// replaceEnvd has a program answer in envd's place, with these arguments.
func (h *hostile) replaceEnvd(t *testing.T, arguments string) {
	t.Helper()
	path := h.put(t, "hostile_envd.py")
	h.attack(t, fmt.Sprintf("setsid python3 %s %s >/root/log 2>&1 </dev/null &", path, arguments))
	testkit.WaitUntil(t, "envd is replaced", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := h.api.Exec(ctx, h.id, client.Command{Cmd: "true"})
		return err != nil
	})
}

// call runs the nth operation.
func (h *hostile) call(ctx context.Context, n int) error {
	switch n % 3 {
	case 0:
		_, err := h.api.Exec(ctx, h.id, client.Command{Cmd: "true"})
		return err
	case 1:
		return h.api.WriteFile(ctx, h.id, "/tmp/a", strings.NewReader("a"), client.FileOptions{})
	default:
		_, err := h.api.CreateDirectory(ctx, h.id, "/tmp/new", client.FileOptions{})
		return err
	}
}

// works fails unless a command and a file of the neighbor come back.
func (h *hostile) works(t *testing.T) {
	t.Helper()
	h.round(t)
}

// round runs a command and writes and reads a file at the neighbor's, and returns how long it took.
func (h *hostile) round(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	r, err := h.neighbor.Exec(t.Context(), h.beside, client.Command{Cmd: "echo", Args: []string{"here"}})
	if err != nil || string(r.Stdout) != "here\n" {
		t.Fatalf("a command of the neighbor: %+v, %v", r, err)
	}
	content := bytes.Repeat([]byte("wrenn"), 100_000)
	testkit.Must(t, h.neighbor.WriteFile(t.Context(), h.beside, "/tmp/file", bytes.NewReader(content), client.FileOptions{}))
	body, err := h.neighbor.ReadFile(t.Context(), h.beside, "/tmp/file", client.FileOptions{})
	testkit.Must(t, err)
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
		t.Fatalf("a file of the neighbor came back with %d bytes, %v", len(got), err)
	}
	return time.Since(began)
}

// checkMemory fails if the agent or the control plane uses more than its limit or has ended.
func (h *hostile) checkMemory(t *testing.T) {
	t.Helper()
	for name, part := range map[string]*child{"control plane": h.controlPlane, "host agent": h.agent.child} {
		statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", part.cmd.Process.Pid))
		testkit.Must(t, err)
		fields := strings.Fields(string(statm))
		if len(fields) < 2 {
			t.Fatalf("the %s has ended", name)
		}
		pages, err := strconv.Atoi(fields[1])
		testkit.Must(t, err)
		resident := pages * os.Getpagesize()
		t.Logf("the %s has %d MiB in memory", name, resident>>20)
		if resident > hostMemory {
			t.Errorf("the %s has %d MiB in memory, more than %d", name, resident>>20, hostMemory>>20)
		}
	}
}

// trap listens on all addresses of the host, and counts what arrives.
type trap struct {
	port   int
	caught atomic.Int64
}

// setTrap listens by TCP and UDP on one port, and for GRE and IP in IP.
func setTrap(t *testing.T) *trap {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	testkit.Must(t, err)
	t.Cleanup(func() { l.Close() })
	tr := &trap{port: l.Addr().(*net.TCPAddr).Port}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tr.caught.Add(1)
			conn.Close()
		}
	}()
	tr.packets(t, "udp4", fmt.Sprintf("0.0.0.0:%d", tr.port))
	tr.packets(t, "ip4:gre", "0.0.0.0")
	tr.packets(t, "ip4:4", "0.0.0.0")
	tr.catches(t)
	return tr
}

// packets counts the packets that hold what the guest sends.
func (tr *trap) packets(t *testing.T, network, address string) {
	t.Helper()
	conn, err := net.ListenPacket(network, address)
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	go func() {
		for buf := make([]byte, 1500); ; {
			if _, _, err := conn.ReadFrom(buf); err != nil {
				return
			}
			tr.caught.Add(1)
		}
	}()
}

// catches checks that the trap catches what is sent from the host itself.
func (tr *trap) catches(t *testing.T) {
	t.Helper()
	for network, address := range map[string]string{"tcp4": fmt.Sprintf("127.0.0.1:%d", tr.port), "udp4": fmt.Sprintf("127.0.0.1:%d", tr.port), "ip4:gre": "127.0.0.1", "ip4:4": "127.0.0.1"} {
		before := tr.caught.Load()
		conn, err := net.Dial(network, address)
		testkit.Must(t, err)
		if network != "tcp4" {
			_, err = conn.Write(make([]byte, 12))
			testkit.Must(t, err)
		}
		testkit.WaitUntil(t, "the trap catches "+network, func() bool { return tr.caught.Load() > before })
		conn.Close()
	}
	tr.caught.Store(0)
}

// check fails if something arrived.
func (tr *trap) check(t *testing.T) {
	t.Helper()
	if n := tr.caught.Load(); n > 0 {
		t.Errorf("%d connections or packets of the guest reached the host", n)
	}
}

// addresses returns the host's own.
func (*trap) addresses(t *testing.T) []string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	testkit.Must(t, err)
	var found []string
	for _, a := range all {
		if network, ok := a.(*net.IPNet); ok && network.IP.To4() != nil && !network.IP.IsLoopback() {
			found = append(found, network.IP.String())
		}
	}
	return found
}
