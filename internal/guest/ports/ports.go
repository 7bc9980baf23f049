// Package ports connects the host to programs that listen on the guest's
// loopback addresses, which no packet from outside reaches.
package ports

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"time"

	"wrenn.dev/internal/tunnel"
)

// dialTimeout bounds the connect to an address of the guest, which the kernel answers at once.
const dialTimeout = 5 * time.Second

// loopback are the addresses that are tried, in this order.
var loopback = []string{"127.0.0.1", "::1"}

// Handler answers "GET /connect?port=N", a request for a tunnel, once a program
// took the connection. Otherwise it gives answerError a status and a message:
// 502 when no program listens on a loopback address.
func Handler(answerError func(w http.ResponseWriter, status int, message string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
		if err != nil || port == 0 || !tunnel.Asks(r) {
			answerError(w, http.StatusBadRequest, "port must be 1 to 65535, with Upgrade: "+tunnel.Protocol)
			return
		}
		server, err := dial(r.Context(), strconv.FormatUint(port, 10))
		if err != nil {
			answerError(w, http.StatusBadGateway, "the port is not open")
			return
		}
		client, err := tunnel.Accept(w)
		if err != nil {
			server.Close()
			answerError(w, http.StatusHTTPVersionNotSupported, err.Error()) // has no effect when the client has left
			return
		}
		tunnel.Join(client, server, nil)
	})
}

// dial connects to the port on the first loopback address where a program listens.
func dial(ctx context.Context, port string) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for _, host := range loopback {
		if conn, err = new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}
