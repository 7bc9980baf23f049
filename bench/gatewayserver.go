package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/coder/websocket"
)

// guestServerCommand is the argument with which this program is the web server in a
// sandbox. Its listener is the descriptor 3 if there is one.
const guestServerCommand = "guest-server"

// guestServerListens is what the server prints when it can be reached.
const guestServerListens = "listens\n"

// smallBody is what the server answers a request for a small body with.
var smallBody = []byte(`{"id":"0123456789abcdef","state":"running","message":"as small as many answers of an API are"}`)

func serveGuest() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		if l, err = listenWeb(context.Background()); err != nil {
			return err
		}
	}
	fmt.Print(guestServerListens)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /small", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(smallBody) // fails when the client has left
	})
	mux.HandleFunc("GET /file/{size}", func(w http.ResponseWriter, r *http.Request) {
		size, err := strconv.ParseInt(r.PathValue("size"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, content(size), make([]byte, 64<<10)) // as above
	})
	mux.HandleFunc("PUT /file", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, 64<<10))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, n)
	})
	mux.HandleFunc("GET /socket", echoMessages)
	return http.Serve(l, mux) //nolint:gosec // the only client is the benchmark
}

// listenWeb listens on the server's port.
func listenWeb(ctx context.Context) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp4", fmt.Sprintf(":%d", webPort))
}

// echoMessages answers each message of a WebSocket by itself.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }() // the client may have left
	for {
		kind, text, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, text) != nil {
			return
		}
	}
}

// startServer starts the server behind a listener; stop ends it.
func startServer(l *net.TCPListener) (stop func(context.Context) error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	file, err := l.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd := exec.Command(self, guestServerCommand) //nolint:noctx // stop ends it
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func(context.Context) error {
		return errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait()))
	}, nil
}
