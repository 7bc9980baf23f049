package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/host/fakehost"
	"wrenn.dev/internal/host/server"
)

// retryFor is how long a client repeats a call that fails.
const retryFor = 2 * time.Minute

// fakeFleet is a stack whose hosts are those of fakehost: agents that can be restarted,
// and machines that outlive them.
type fakeFleet struct {
	*stack
	hosts []*fakehost.Host
}

// newFakeFleet starts n hosts that share a snapshot store, each with room for so many
// sandboxes, and a control plane. The caller closes it.
func newFakeFleet(ctx context.Context, b *bench, n, room int) (*fakeFleet, error) {
	f := &fakeFleet{}
	var err error
	f.stack, err = started(ctx, b, func(s *stack) ([]hostOf, error) {
		store := filepath.Join(s.dir, "objects")
		if err := os.Mkdir(store, 0o700); err != nil {
			return nil, err
		}
		var all []hostOf
		for i := range n {
			h, at, err := s.addFakeHost(ctx, i, room, "file://"+store)
			if err != nil {
				return nil, err
			}
			f.hosts, all = append(f.hosts, h), append(all, hostOf{hostName(i), "unix://" + at})
		}
		return all, nil
	})
	return f, err
}

// addFakeHost starts a host and returns the socket of its agent.
func (s *stack) addFakeHost(ctx context.Context, i, room int, store string) (*fakehost.Host, string, error) {
	cfg := fakehost.Config{Dir: filepath.Join(s.dir, hostName(i)), Network: s.net, Store: store, Output: os.Stderr, LogLevel: quiet}
	cfg.Network.Prefix, cfg.Network.Max = fmt.Sprintf("%s%d", s.net.Prefix, i), room
	socket := filepath.Join(cfg.Dir, "run", "agent.sock")
	cfg.Listen = server.Listen{Address: "unix:" + socket}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil { //nolint:gosec // machines may run as other users
		return nil, "", err
	}
	h, err := fakehost.New(cfg)
	if err != nil {
		return nil, "", err
	}
	s.undo.Add(h.Close)
	return h, socket, h.Start(ctx)
}

// again calls f until it succeeds, for at most retryFor. It returns how often f failed
// before.
func again(ctx context.Context, f func(context.Context) error) (failed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, retryFor)
	defer cancel()
	for {
		err := f(ctx)
		switch client.CodeOf(err) {
		case "":
			return failed, nil
		case client.Unavailable, client.Timeout, client.Conflict, client.CutByPause, client.RateLimited:
		default:
			return failed, err
		}
		failed++
		if pause(ctx, 100*time.Millisecond) != nil {
			return failed, errors.Join(ctx.Err(), err)
		}
	}
}

// front passes connections on to the first of some servers that accepts, in turn, as a
// load balancer does.
type front struct {
	servers []string

	mu   sync.Mutex // guards next
	next int
}

// listen serves until the stack is closed, and returns the URL.
func (f *front) listen(ctx context.Context, s *stack) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s.undo.Add(func(context.Context) error { return l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the stack is closed
			}
			go f.pass(ctx, conn)
		}
	}()
	return "http://" + l.Addr().String(), nil
}

func (f *front) pass(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	server, err := f.dial(ctx)
	if err != nil {
		return
	}
	defer server.Close()
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(server, conn) // the other side sees the end
		_ = server.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(conn, server) // as above
	_ = conn.(*net.TCPConn).CloseWrite()
	up.Wait()
}

func (f *front) dial(ctx context.Context) (conn net.Conn, err error) {
	f.mu.Lock()
	first := f.next
	f.next++
	f.mu.Unlock()
	for i := range f.servers {
		if conn, err = new(net.Dialer).DialContext(ctx, "tcp", f.servers[(first+i)%len(f.servers)]); err == nil {
			return conn, nil
		}
	}
	return nil, err
}
