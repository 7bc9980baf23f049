package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"
	"github.com/go-chi/chi/v5"

	"wrenn"
	"wrenn/api/portstream"
	"wrenn/internal/tunnel"
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
	tunnel.Join(portstream.New(conn), program, nil)
}

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
