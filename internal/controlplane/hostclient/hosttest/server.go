package hosttest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/tunnel"
	"wrenn.dev/internal/wire"
	"wrenn.dev/proto/gen/hostagent/v1/hostagentv1connect"
)

// Server serves an agent on a port of the loopback.
type Server struct {
	agent   *Agent
	address string
	http    *http.Server
	done    chan struct{}
}

// Serve starts a server. The caller stops it.
func Serve(ctx context.Context, agent *Agent) (*Server, error) {
	s := &Server{agent: agent, address: "127.0.0.1:0"}
	return s, s.Start(ctx)
}

// URL is where the agent is, also after Stop and Start.
func (s *Server) URL() string { return "http://" + s.address }

// Start serves again at the same address.
func (s *Server) Start(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.address)
	if err != nil {
		return err
	}
	s.address = l.Addr().String()
	mux := http.NewServeMux()
	mux.Handle(hostagentv1connect.NewHostAgentServiceHandler(s.agent))
	mux.HandleFunc(tunnel.HostPattern, refuseTunnel)
	server := &http.Server{
		Handler: mux, Protocols: new(http.Protocols), ReadHeaderTimeout: 30 * time.Second,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000},
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	s.http, s.done = server, done
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			panic(err) // a test's server that cannot accept has no way to say so
		}
	}()
	return nil
}

// refuseTunnel answers for sandboxes that are entries of a map: nothing in them listens,
// not even an agent.
func refuseTunnel(w http.ResponseWriter, _ *http.Request) {
	code, message := wire.ToResult(wrenn.Errorf(wrenn.FailedPrecondition, "sandboxes of this host have no ports"))
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(tunnel.Refused{Code: code, Message: message}) // fails when the caller has left
}

// Stop breaks all connections, as a host does that loses its network. Sandboxes live on.
func (s *Server) Stop() {
	_ = s.http.Close() // it only passes on what closing listeners says
	<-s.done
}
