package api

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"
	"github.com/go-chi/chi/v5"

	"wrenn.dev"
	"wrenn.dev/client/portstream"
	"wrenn.dev/internal/tunnel"
)

// connectPort connects to the program first, so that a port that is closed is an
// ordinary answer, and joins the WebSocket to it.
func (s *Server) connectPort(w http.ResponseWriter, r *http.Request) {
	if err := s.checkUpgrade(r); err != nil {
		s.refuse(w, r, err)
		return
	}
	port, err := strconv.ParseUint(chi.URLParam(r, "port"), 10, 16) // the contract has checked it
	if err != nil {
		s.refuse(w, r, invalid("a port is a number from 1 to 65535"))
		return
	}
	program, err := s.service.ConnectPort(r.Context(), callerOf(r.Context()), wrenn.SandboxID(chi.URLParam(r, "id")), uint16(port))
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer program.Close()
	s.streams.Add(1) // while net/http still counts the connection as its own
	defer s.streams.Done()
	conn, err := acceptWebSocket(w, r, portstream.Protocol)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	defer context.AfterFunc(s.stopping, func() { _ = conn.Close(websocket.StatusGoingAway, errStopping.message) })()
	stop := s.pingEvery(conn, s.times.ping)
	defer stop()
	client := portstream.New(conn)
	tunnel.Join(client, &toldWhy{Conn: program, tell: func() error { return s.tellWhyCut(r.Context(), client, program) }}, nil)
}

// tellWhyCut tells the client why the host has cut the connection to the program, and
// returns that; nil when it has not.
func (s *Server) tellWhyCut(ctx context.Context, client *portstream.Conn, program net.Conn) error {
	asked, ok := program.(interface{ WhyCut(context.Context) error })
	if !ok {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // it ended when the connection became a WebSocket; WhyCut has a limit
	why := asked.WhyCut(ctx)
	if why != nil {
		f := failureOf(ctx, why)
		_ = client.Fail(string(f.code), f.message) // the client may be gone
	}
	return why
}

// toldWhy is a connection to a program. Before Read returns its end, tell is called:
// a host's cut looks like a whole stream on a Unix socket. Its error is Read's, then.
type toldWhy struct {
	net.Conn

	tell func() error
}

func (c *toldWhy) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, net.ErrClosed) { // ErrClosed: the client was first
		err = cmp.Or(c.tell(), err)
	}
	return n, err
}

// CloseWrite ends the direction to the program, where the connection can.
func (c *toldWhy) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// NetConn is the connection itself.
func (c *toldWhy) NetConn() net.Conn { return c.Conn }

// pingEvery keeps an idle connection open in whatever is between the client and
// us, until stop is called. The answers do not matter: a client that stands still
// may be slow on purpose, and one that is gone is found by TCP.
func (s *Server) pingEvery(conn *websocket.Conn, every time.Duration) (stop func()) {
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				waiting, cancel := context.WithTimeout(ctx, every)
				_ = conn.Ping(waiting)
				cancel()
			case <-ctx.Done():
				return
			}
		}
	}()
	return stop
}
