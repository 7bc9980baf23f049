package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
)

const (
	webPort     = 8080
	gatewayConn = 64              // connections at once
	gatewayTime = 3 * time.Second // of one measurement
	openSockets = 64              // WebSockets that are opened at once
)

// guestKind is what the web server of a measurement runs in.
type guestKind string

const (
	// realGuest is a sandbox as users have it.
	realGuest guestKind = "in a virtual machine"
	// nativeGuest is a process in the network namespace behind the slot's card, see
	// fakeHostCommand: as fast as the host, which shows what the gateway costs.
	nativeGuest guestKind = "as fast as the host"
)

var guestKinds = []guestKind{realGuest, nativeGuest}

// web is a sandbox with a web server, and two ways to reach it: by the gateway, and
// directly from inside the slot.
type web struct {
	*stack
	box           *client.Sandbox
	slot          string       // the path of the slot's namespace
	ours, bare    *http.Client // keep connections open
	oursURL, host string
}

// newWeb starts a stack with a web server; the caller closes it.
func newWeb(ctx context.Context, b *bench, kind guestKind) (_ *web, err error) {
	w := &web{host: fmt.Sprintf("%s:%d", network.GuestAddress, webPort)}
	if kind == realGuest {
		w.stack, err = newStack(ctx, b, nil)
	} else {
		w.stack, err = started(ctx, b, func(s *stack) ([]hostOf, error) {
			socket, err := s.startFakeHost(ctx)
			return []hostOf{{"here", "unix://" + socket}}, err
		})
	}
	if err != nil {
		return nil, err
	}
	if err := w.serve(ctx, kind); err != nil {
		log, _ := os.ReadFile(w.agent.log) // without it the error is still useful
		return nil, errors.Join(err, w.close(ctx), errors.New(string(log)))
	}
	return w, nil
}

// serve makes the sandbox and starts its server.
func (w *web) serve(ctx context.Context, kind guestKind) (err error) {
	if w.box, err = w.stack.box(ctx); err != nil {
		return err
	}
	of, err := w.record(w.box.ID)
	if err != nil {
		return err
	}
	slot := fmt.Sprintf("%s-%d", w.net.Prefix, of.Slot.Index)
	w.slot = netns.Path(slot)
	w.oursURL = fmt.Sprintf("%s/p/%s/%d", w.url, w.box.ID, webPort)
	w.ours, w.bare = keepAlive(new(net.Dialer).DialContext), keepAlive(w.dialBare)
	if kind == realGuest {
		return w.serveInside(ctx)
	}
	return w.serveBehind(ctx, netns.Path(slot+"guest"))
}

// serveInside starts this program as the server in the sandbox.
func (w *web) serveInside(ctx context.Context) error {
	const inside = "/usr/local/bin/bench"
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	if err := w.api.WriteFile(ctx, w.box.ID, inside, self, client.FileOptions{}); err != nil {
		return err
	}
	if _, err := w.api.Exec(ctx, w.box.ID, client.Command{Cmd: "chmod", Args: []string{"+x", inside}}); err != nil {
		return err
	}
	server, err := w.api.Start(ctx, w.box.ID, client.Command{Cmd: inside, Args: []string{guestServerCommand}}, client.StartOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }() // the server outlives it
	said, err := server.Receive()
	if err == nil && string(said.Stdout) != guestServerListens {
		err = fmt.Errorf("the server in the sandbox did not start: %s%s", said.Stdout, said.Stderr)
	}
	return err
}

// serveBehind starts this program as the server in the namespace of a guest that is no machine.
func (w *web) serveBehind(ctx context.Context, namespace string) error {
	var l net.Listener
	err := netns.Do(namespace, func() (err error) {
		l, err = listenWeb(ctx)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }() // the server has its own descriptor
	stop, err := startServer(l.(*net.TCPListener))
	if err != nil {
		return err
	}
	w.undo.Add(stop)
	return nil
}

// dialBare connects from inside the slot.
func (w *web) dialBare(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = netns.Do(w.slot, func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func keepAlive(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: dial, MaxIdleConnsPerHost: gatewayConn, DisableCompression: true,
		ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10,
	}}
}

// send makes a request and reads the answer, which must have size bytes.
func send(ctx context.Context, c *http.Client, method, url string, body io.Reader, size int64) error {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // the status is an error already
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	return drain(size)(resp.Body, nil)
}

// ofEachKind measures with each kind of guest.
func ofEachKind(measure func(context.Context, *bench, guestKind) ([]row, error)) func(context.Context, *bench) ([]row, error) {
	return func(ctx context.Context, b *bench) (all []row, err error) {
		for _, kind := range guestKinds {
			rows, err := measure(ctx, b, kind)
			if err != nil {
				return nil, fmt.Errorf("the server %s: %w", kind, err)
			}
			all = append(all, rows...)
		}
		return all, nil
	}
}

// gatewayRequests compares small requests through the gateway with those straight to
// the server.
func gatewayRequests(ctx context.Context, b *bench, kind guestKind) (_ []row, err error) {
	w, err := newWeb(ctx, b, kind)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close(ctx)) }()
	rate := func(c *http.Client, url string) func(context.Context) (sample, error) {
		return func(ctx context.Context) (sample, error) { return hammer(ctx, c, url) }
	}
	ours, bare := rate(w.ours, w.oursURL+"/small"), rate(w.bare, "http://"+w.host+"/small")
	if _, err := pairs(ctx, 1, ours, bare); err != nil { // warms up
		return nil, err
	}
	watch, err := w.watch()
	if err != nil {
		return nil, err
	}
	var requests float64
	figures, err := pairs(ctx, b.rounds, func(ctx context.Context) (out sample, err error) {
		err = watch.during(func() error {
			out, err = ours(ctx)
			return err
		})
		if err == nil {
			requests = out[0] * gatewayTime.Seconds()
		}
		return out, err
	}, bare)
	if err != nil {
		return nil, err
	}
	rps, p99 := figures[0], figures[1]
	perSecond := func(x float64) string { return fmt.Sprintf("%.0f/s", x) }
	micro := func(i int) float64 { return 1e6 * median(watch.cpu[i]) / requests }
	return []row{
		{fmt.Sprintf("requests by the gateway, %d connections, the server %s; bare: straight to it", gatewayConn, kind), perSecond(rps.ours), perSecond(rps.bare), rps.ratio, ">= 0.7"},
		{"  p99", ms(p99.ours), ms(p99.bare), p99.ratio, "<= 1.5"},
		{what: "  CPU time of a request: control plane, agent (with the guest's card)", ours: fmt.Sprintf("%.0f, %.0f µs", micro(0), micro(1))},
	}, nil
}

// hammer sends requests on all connections for a while, and returns how many were
// answered in a second, and the 99th percentile of the latency in seconds.
func hammer(ctx context.Context, c *http.Client, url string) (sample, error) {
	until := time.Now().Add(gatewayTime)
	var mu sync.Mutex // guards all
	var all []float64
	g, ctx := errgroup.WithContext(ctx)
	for range gatewayConn {
		g.Go(func() error {
			var took []float64
			for time.Now().Before(until) {
				one, err := timed(func() error { return send(ctx, c, http.MethodGet, url, nil, int64(len(smallBody))) })
				if err != nil {
					return err
				}
				took = append(took, one)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			return nil
		})
	}
	err := g.Wait()
	return sample{float64(len(all)) / gatewayTime.Seconds(), quantile(all, 0.99)}, err
}

// gatewayTransfers compares the transfer of a large body in each direction.
func gatewayTransfers(ctx context.Context, b *bench, kind guestKind) (_ []row, err error) {
	w, err := newWeb(ctx, b, kind)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close(ctx)) }()
	size := int64(b.fileMiB) << 20
	download := func(c *http.Client, url string) func(context.Context) error {
		return func(ctx context.Context) error {
			return send(ctx, c, http.MethodGet, fmt.Sprintf("%s/file/%d", url, size), nil, size)
		}
	}
	upload := func(c *http.Client, url string) func(context.Context) error {
		return func(ctx context.Context) error {
			return send(ctx, c, http.MethodPut, url+"/file", content(size), int64(len(fmt.Sprint(size))))
		}
	}
	var rows []row
	for _, way := range []struct {
		name string
		move func(c *http.Client, url string) func(context.Context) error
	}{{"download", download}, {"upload", upload}} {
		watch, err := w.watch()
		if err != nil {
			return nil, err
		}
		f, err := transfers(ctx, b, watch, way.move(w.ours, w.oursURL), way.move(w.bare, "http://"+w.host))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.name, err)
		}
		rows = append(rows,
			row{fmt.Sprintf("%s of %d MiB by the gateway, the server %s; bare: straight to it", way.name, b.fileMiB, kind), mibs(f.ours), mibs(f.bare), f.ratio, ">= 0.9"},
			watch.perGiB("  CPU time of a GiB: control plane, agent (with the guest's card)", b.fileMiB),
			watch.memory("  memory over idle: control plane, agent"))
	}
	return rows, nil
}

// gatewaySockets opens many WebSockets, leaves them idle, and uses each once again.
func gatewaySockets(ctx context.Context, b *bench) (_ []row, err error) {
	w, err := newWeb(ctx, b, nativeGuest)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close(ctx)) }()
	if _, err := w.openSockets(ctx, openSockets); err != nil { // what the first ones need stays
		return nil, err
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	before, err := w.both()
	if err != nil {
		return nil, err
	}
	conns, err := w.openSockets(ctx, b.sockets)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, b.window); err != nil {
		return nil, err
	}
	after, err := w.both()
	if err != nil {
		return nil, err
	}
	failed := 0
	for _, conn := range conns {
		if roundTrip(ctx, conn) != nil {
			failed++
		}
	}
	kib := func(i int) float64 { return (after[i] - before[i]) * 1024 / float64(b.sockets) }
	return []row{
		{what: fmt.Sprintf("%d WebSockets idle for %v: memory of each, control plane + agent", b.sockets, b.window), ours: fmt.Sprintf("%.1f + %.1f = %.1f KiB", kib(0), kib(1), kib(0)+kib(1)), limit: "<= 30 KiB"},
		{what: "  without an answer after that", ours: fmt.Sprint(failed), limit: "0"},
	}, nil
}

// both returns the resident memory of the control plane and the agent in MiB.
func (s *stack) both() (out [2]float64, err error) {
	out[0], out[1], err = s.eachMiB(func(pid int) (float64, error) { return statusMiB(pid, "VmRSS") })
	return out, err
}

// openSockets opens WebSockets, which are closed with the stack.
func (w *web) openSockets(ctx context.Context, n int) ([]*websocket.Conn, error) {
	conns := make([]*websocket.Conn, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(openSockets)
	for i := range conns {
		g.Go(func() error {
			conn, _, err := websocket.Dial(ctx, strings.Replace(w.oursURL, "http", "ws", 1)+"/socket", nil) //nolint:bodyclose // it has none
			if err != nil {
				return err
			}
			conns[i] = conn
			return roundTrip(ctx, conn)
		})
	}
	err := g.Wait()
	for _, conn := range conns {
		if conn != nil {
			w.undo.AddFunc(func() { _ = conn.CloseNow() }) // the server may have ended
		}
	}
	return conns, err
}

func roundTrip(ctx context.Context, conn *websocket.Conn) error {
	if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		return err
	}
	_, got, err := conn.Read(ctx)
	if err == nil && string(got) != "hello" {
		err = wrenn.Errorf(wrenn.Internal, "the server answered %q", got)
	}
	return err
}
