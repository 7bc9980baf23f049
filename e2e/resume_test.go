package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os/user"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/api"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/envdclient"
	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/guest/guesttest"
	"wrenn.dev/internal/host/server"
	"wrenn.dev/internal/wire"
	pb "wrenn.dev/proto/gen/hostagent/v1"
	"wrenn.dev/proto/gen/hostagent/v1/hostagentv1connect"
)

const (
	chainKey = "e2b_0123456789012345678901234567890123456789"
	chainBox = wrenn.SandboxID("iabcdefghijklmnopqrst")
)

// hop forwards connections to a server. Killing the hop cuts all of them, as
// killing the server would.
type hop struct {
	address, to string
	listener    net.Listener
	pipes       sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	conns map[net.Conn]struct{}
	dead  bool
}

// newHop starts a hop in front of a server, which serve serves until its context ends.
func newHop(t *testing.T, serve func(context.Context, net.Listener) error) *hop {
	t.Helper()
	h := &hop{address: "127.0.0.1:0", to: listen(t, serve), conns: make(map[net.Conn]struct{})}
	h.start(t)
	t.Cleanup(h.kill)
	return h
}

// listen serves on an unused port until the test ends, and returns its address.
func listen(t *testing.T, serve func(context.Context, net.Listener) error) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func (h *hop) start(t *testing.T) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	h.listener, h.address, h.dead = listener, listener.Addr().String(), false
	h.pipes.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			h.pass(near)
		}
	})
}

func (h *hop) pass(near net.Conn) {
	far, err := net.Dial("tcp", h.to)
	if err != nil {
		near.Close()
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead {
		near.Close()
		far.Close()
		return
	}
	h.conns[near], h.conns[far] = struct{}{}, struct{}{}
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		h.pipes.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // fails when the hop is killed
			near.Close()
			far.Close()
		})
	}
}

// kill cuts all connections and stops accepting new ones. Twice is allowed.
func (h *hop) kill() {
	h.listener.Close()
	h.mu.Lock()
	h.dead = true
	for conn := range h.conns {
		conn.Close()
	}
	clear(h.conns)
	h.mu.Unlock()
	h.pipes.Wait()
}

// inertMachine is a guest's kernel whose clock is never set.
type inertMachine struct{ guesttest.Inert }

func (inertMachine) Now() time.Time          { return time.Now() }
func (inertMachine) SetTime(time.Time) error { return nil }
func (inertMachine) AddEntropy([]byte) error { return nil }

// agentOfOne is a host's agent that serves only the streams of one guest.
type agentOfOne struct {
	hostagentv1connect.UnimplementedHostAgentServiceHandler

	commands server.Commands
}

func (a *agentOfOne) ExecStream(ctx context.Context, s *connect.BidiStream[pb.ExecStreamRequest, pb.ExecStreamResponse]) error {
	return wire.ToConnect(a.commands.ExecStream(ctx, s))
}

// serviceOfOne is a control plane's service that serves only the streams of one sandbox.
type serviceOfOne struct {
	api.Service

	host *hostclient.Client
}

func (s *serviceOfOne) Record(service.AuditEntry) {}

func (s *serviceOfOne) Authenticate(context.Context, string) (service.Caller, error) {
	return service.Caller{Key: "key", Scopes: wrenn.AllScopes}, nil
}

func (s *serviceOfOne) CheckExec(context.Context, service.Caller, wrenn.SandboxID) error { return nil }

func (s *serviceOfOne) StartExec(ctx context.Context, _ service.Caller, id wrenn.SandboxID, start wrenn.ExecStart) (service.ExecStream, error) {
	return opened(s.host.StartExec(ctx, id, start))
}

func (s *serviceOfOne) AttachExec(ctx context.Context, _ service.Caller, id wrenn.SandboxID, to wrenn.ExecAttach) (service.ExecStream, error) {
	return opened(s.host.AttachExec(ctx, id, to))
}

func opened(s *hostclient.ExecStream, err error) (service.ExecStream, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// chain has every hop from the SDK to a guest's agent, all in this process.
type chain struct {
	client            *client.Client
	guest             *envdclient.Client
	agent, controller *hop
}

func newChain(t *testing.T) *chain {
	t.Helper()
	c := &chain{guest: newEnvd(t)}
	agent := &agentOfOne{commands: server.Commands{
		Use: func(ctx context.Context, _ wrenn.SandboxID) (*envdclient.Client, context.Context, func(), error) {
			return c.guest, ctx, func() {}, nil
		},
	}}
	mux := http.NewServeMux()
	mux.Handle(hostagentv1connect.NewHostAgentServiceHandler(agent))
	c.agent = newHop(t, func(ctx context.Context, l net.Listener) error {
		server := &http.Server{Handler: mux, Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
		server.Protocols.SetUnencryptedHTTP2(true)
		defer context.AfterFunc(ctx, func() { _ = server.Close() })() // returns the same error as closing the listener
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	host, err := hostclient.New(hostclient.Config{ID: "h1", URL: "http://" + c.agent.address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	server, err := api.New(api.Config{
		Service: &serviceOfOne{host: host}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		ShutdownGrace: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.controller = newHop(t, func(ctx context.Context, l net.Listener) error { return server.Run(ctx, l) })
	if c.client, err = client.New(client.Config{URL: "http://" + c.controller.address, Key: chainKey}); err != nil {
		t.Fatal(err)
	}
	return c
}

// newEnvd runs the guest's agent and returns a client of it.
func newEnvd(t *testing.T) *envdclient.Client {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	envd := guest.New(guest.Config{Machine: inertMachine{}, Log: slog.New(slog.DiscardHandler), DefaultUser: me.Username})
	c := envdclient.New(envdclient.Config{Dial: new(net.Dialer).DialContext, Address: listen(t, envd.Serve)})
	t.Cleanup(c.Close)
	return c
}

// breaks is a writer that calls cut once in every so many bytes.
type breaks struct {
	w     io.Writer
	every int
	left  int
	cut   func()
}

func (b *breaks) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left <= 0 {
		b.left = b.every
		b.cut()
	}
	return b.w.Write(p)
}

// cuts returns a function that kills and restarts, in turn, the agent, the control
// plane, or both. The test fails when it is called less than six times.
func (c *chain) cuts(t *testing.T) func() {
	t.Helper()
	n := 0
	t.Cleanup(func() {
		if n < 6 {
			t.Errorf("%d cuts are too few to say much", n)
		}
	})
	return func() {
		n++
		if n%3 != 1 {
			c.controller.kill()
			defer c.controller.start(t)
		}
		if n%3 != 2 {
			c.agent.kill()
			defer c.agent.start(t)
		}
	}
}

// TestStreamSurvivesItsHops: a command prints numbers while the hops on the way
// are killed again and again, and every byte arrives exactly once.
func TestStreamSurvivesItsHops(t *testing.T) {
	c := newChain(t)
	const numbers = 1_200_000
	s, err := c.client.Start(t.Context(), string(chainBox), client.Command{
		Cmd: "/bin/sh", Args: []string{"-c", fmt.Sprintf("seq 1 %d; echo done >&2; exit 7", numbers)},
	}, client.StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var want bytes.Buffer
	for i := 1; i <= numbers; i++ {
		fmt.Fprintln(&want, i)
	}
	got, errs := sha256.New(), new(bytes.Buffer)
	exit, err := s.Copy(&breaks{w: got, every: want.Len() / 12, left: 1, cut: c.cuts(t)}, errs)
	if err != nil || exit.Code != 7 || errs.String() != "done\n" {
		t.Errorf("Copy() = %+v, %v; printed %q on standard error", exit, err, errs)
	}
	if sum := sha256.Sum256(want.Bytes()); !bytes.Equal(got.Sum(nil), sum[:]) {
		t.Error("the output is not what the command printed")
	}
}

// TestInputSurvivesItsHops: all input reaches the command exactly once, although
// the client does not know how much of it had arrived when a hop died.
func TestInputSurvivesItsHops(t *testing.T) {
	c := newChain(t)
	s, err := c.client.Start(t.Context(), string(chainBox), client.Command{Cmd: "cat"}, client.StartOptions{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := make([]byte, 6<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(want)
		sent <- errors.Join(err, s.CloseStdin())
	}()
	var got bytes.Buffer
	exit, err := s.Copy(&breaks{w: &got, every: len(want) / 9, left: 1 << 10, cut: c.cuts(t)}, io.Discard)
	if err != nil || exit.Code != 0 {
		t.Errorf("Copy() = %+v, %v", exit, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes went in, %d came out, or others", len(want), got.Len())
	}
}

// TestExitSurvivesItsHops: the exit of a command that ends while no stream is connected is reported.
func TestExitSurvivesItsHops(t *testing.T) {
	c := newChain(t)
	s, err := c.client.Start(t.Context(), string(chainBox), client.Command{Cmd: "/bin/sh", Args: []string{"-c", "read x; echo last; exit 9"}}, client.StartOptions{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c.agent.kill()
	end(t, c.guest, s.PID())
	c.agent.start(t)
	var out bytes.Buffer
	exit, err := s.Copy(&out, io.Discard)
	if err != nil || exit.Code != 9 || out.String() != "last\n" {
		t.Errorf("Copy() = %+v, %v, %q", exit, err, out.String())
	}
}

// end sends a command the line that it waits for, and returns when it has ended.
func end(t *testing.T, guest *envdclient.Client, pid int) {
	t.Helper()
	p, err := guest.Attach(t.Context(), wrenn.ExecAttach{PID: pid})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Send(t.Context(), []byte("go\n")); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = p.Next()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// TestSignalPassesInput: input that the command does not read does not block signals.
func TestSignalPassesInput(t *testing.T) {
	c := newChain(t)
	s, err := c.client.Start(t.Context(), string(chainBox), client.Command{Cmd: "sleep", Args: []string{"1000"}}, client.StartOptions{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write(make([]byte, 256<<10)); err != nil { // more than a pipe holds
		t.Fatal(err)
	}
	if err := s.Signal(client.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit, err := s.Copy(io.Discard, io.Discard); err != nil || exit.Code != -1 {
		t.Errorf("Copy() = %+v, %v", exit, err)
	}
}

// TestClosedStreamLetsGo: a command no longer waits for a stream that was closed,
// and another stream gets its latest output.
func TestClosedStreamLetsGo(t *testing.T) {
	c := newChain(t)
	s, err := c.client.Start(t.Context(), string(chainBox), client.Command{Cmd: "/bin/sh", Args: []string{"-c", "seq 1 600000; read x; echo $x"}}, client.StartOptions{Stdin: true, Hold: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := c.client.AttachAt(t.Context(), string(chainBox), s.PID(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Write([]byte("end\n")); err != nil {
		t.Fatal(err)
	}
	if err := again.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	first, err := again.Receive()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if first.Lost == 0 { // it came before anything was dropped
		out.Write(first.Stdout)
	}
	if _, err := again.Copy(&out, io.Discard); err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	for i := 1; i <= 600_000; i++ {
		fmt.Fprintln(&want, i)
	}
	want.WriteString("end\n")
	if !bytes.HasSuffix(want.Bytes(), out.Bytes()) || int(first.Lost)+out.Len() != want.Len() {
		t.Errorf("%d bytes are lost and %d came, of %d", first.Lost, out.Len(), want.Len())
	}
}
