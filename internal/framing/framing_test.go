package framing_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/framing"
	"wrenn.dev/internal/testkit"
)

// echo answers with what it was asked, and how long the body was.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	_, _ = fmt.Fprintf(w, "%s %s %q tls=%t", r.Method, r.URL.Path, body, r.TLS != nil) // the client may have left
})

// serve returns a server whose listener is guarded, if wanted.
func serve(tb testing.TB, handler http.Handler, guarded bool) *httptest.Server {
	tb.Helper()
	server := httptest.NewUnstartedServer(handler)
	if guarded {
		server.Listener = framing.Guard(server.Config, server.Listener)
	}
	tb.Cleanup(server.Close)
	return server
}

// exchange sends raw and returns the statuses and bodies of all answers.
func exchange(tb testing.TB, conn net.Conn, raw string) (answers []string) {
	tb.Helper()
	go func() {
		_, _ = io.WriteString(conn, raw) // the server may close it before
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	reader := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(reader, nil)
		if err != nil {
			return answers
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // it was read
		if err != nil {
			return answers
		}
		answers = append(answers, fmt.Sprintf("%d %s", resp.StatusCode, body))
	}
}

const (
	refused = "400 400 Bad Request"
	chunked = "Transfer-Encoding: chunked\r\n"
	next    = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
)

func post(headers, body string) string {
	return "POST /a HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n" + body
}

var requests = map[string]struct {
	raw  string
	want []string
}{
	"one length":            {post("Content-Length: 3\r\n", "abc") + next, []string{`200 POST /a "abc" tls=false`, `200 GET /smuggled "" tls=false`}},
	"chunks":                {post(chunked, "3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n") + next, []string{`200 POST /a "abc0123456789" tls=false`, `200 GET /smuggled "" tls=false`}},
	"empty lines between":   {post("Content-Length: 1\r\n", "a") + "\r\n\r\n" + next, []string{`200 POST /a "a" tls=false`, `200 GET /smuggled "" tls=false`}},
	"a head in a body":      {post("Content-Length: 65\r\n", "GET / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n") + next, []string{`200 POST /a "GET / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n" tls=false`, `200 GET /smuggled "" tls=false`}},
	"a head in a chunk":     {post(chunked, "13\r\nContent-Length: 2\r\n\r\n0\r\n\r\n") + next, []string{`200 POST /a "Content-Length: 2\r\n" tls=false`, `200 GET /smuggled "" tls=false`}},
	"long header":           {post("X: "+strings.Repeat("x", 9000)+"\r\nContent-Length: 1\r\n", "a"), []string{`200 POST /a "a" tls=false`}},
	"both":                  {post("Content-Length: 4\r\n"+chunked, "0\r\n\r\n") + next, []string{refused}},
	"both, chunks first":    {post(chunked+"Content-Length: 40\r\n", "0\r\n\r\n"+next), []string{refused}},
	"both, other case":      {post("cOnTeNt-LeNgTh: 4\r\ntransfer-ENCODING:chunked\r\n", "0\r\n\r\n") + next, []string{refused}},
	"both, bare LF":         {"POST /a HTTP/1.1\nHost: x\nContent-Length: 4\nTransfer-Encoding: chunked\n\n0\r\n\r\n" + next, []string{refused}},
	"both, folded":          {post("Content-Length: 4\r\nTransfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n") + next, []string{refused}},
	"both, a length folded": {post("Content-Length:\r\n 4\r\n"+chunked, "0\r\n\r\n") + next, []string{refused}},
	"both, far apart":       {post("Content-Length: 4\r\nX: "+strings.Repeat("x", 9000)+"\r\n"+chunked, "0\r\n\r\n") + next, []string{refused}},
	"both, pipelined":       {post("Content-Length: 1\r\n", "a") + post("Content-Length: 4\r\n"+chunked, "0\r\n\r\n") + next, []string{`200 POST /a "a" tls=false`, refused}},
	"both, after chunks":    {post(chunked, "1\r\na\r\n0\r\n\r\n") + post("Content-Length: 4\r\n"+chunked, "0\r\n\r\n") + next, []string{`200 POST /a "a" tls=false`, refused}},
	"both, HTTP/1.0":        {"POST /a HTTP/1.0\r\nHost: x\r\nContent-Length: 1\r\n" + chunked + "\r\na", []string{refused}},
	"chunks by HTTP/1.0":    {"POST /a HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n" + chunked + "\r\n0\r\n\r\n" + next, []string{refused}},
	"identity":              {post("Transfer-Encoding: identity\r\n", "") + next, []string{"501 Unsupported transfer encoding"}},
	"chunked twice":         {post(chunked+chunked, "0\r\n\r\n") + next, []string{"501 Unsupported transfer encoding"}},
	"chunked and identity":  {post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n") + next, []string{"501 Unsupported transfer encoding"}},
	"a length with a sign":  {post("Content-Length: +3\r\n", "abc") + next, []string{refused}},
}

func TestRequests(t *testing.T) {
	for name, tc := range requests {
		t.Run(name, func(t *testing.T) {
			server := serve(t, echo, true)
			server.Start()
			for _, each := range []bool{false, true} {
				conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
				testkit.Must(t, err)
				defer conn.Close()
				client := conn
				if each {
					client = byteByByte{conn}
				}
				if diff := cmp.Diff(tc.want, exchange(t, client, tc.raw)); diff != "" {
					t.Errorf("byte by byte: %t (-want +got):\n%s", each, diff)
				}
			}
		})
	}
}

// byteByByte sends each byte by a call.
type byteByByte struct{ net.Conn }

func (b byteByByte) Write(p []byte) (n int, err error) {
	for ; n < len(p) && err == nil; n++ {
		_, err = b.Conn.Write(p[n : n+1])
	}
	return n, err
}

func (b byteByByte) CloseWrite() error { return b.Conn.(*net.TCPConn).CloseWrite() }

// TestTLS looks at HTTP/1 in TLS, and leaves HTTP/2 as it is.
func TestTLS(t *testing.T) {
	server := serve(t, echo, false)
	server.EnableHTTP2 = true
	server.StartTLS()
	config := server.TLS.Clone()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	guarded := &http.Server{Handler: echo, ErrorLog: server.Config.ErrorLog}
	t.Cleanup(func() { _ = guarded.Close() })
	l = framing.Guard(guarded, tls.NewListener(l, config))
	go func() { _ = guarded.Serve(l) }()

	roots := server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for _, proto := range []string{"", "http/1.1"} {
		client := &tls.Config{RootCAs: roots, ServerName: "example.com"}
		if proto != "" {
			client.NextProtos = []string{proto}
		}
		conn, err := (&tls.Dialer{Config: client}).DialContext(t.Context(), "tcp", l.Addr().String())
		testkit.Must(t, err)
		defer conn.Close()
		want := []string{`200 POST /a "a" tls=true`, refused}
		if diff := cmp.Diff(want, exchange(t, conn, requests["both, pipelined"].raw)); diff != "" {
			t.Errorf("ALPN %q (-want +got):\n%s", proto, diff)
		}
	}

	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Post("https://"+l.Addr().String()+"/b", "", io.MultiReader(strings.NewReader("abc")))
	testkit.Must(t, err)
	body, err := io.ReadAll(resp.Body)
	testkit.Must(t, errors.Join(err, resp.Body.Close()))
	if want := `POST /b "abc" tls=true`; string(body) != want || resp.Proto != "HTTP/2.0" {
		t.Errorf("%s: got %s, want %s", resp.Proto, body, want)
	}
}

// TestUnencryptedHTTP2 has the guard leave HTTP/2 without TLS as it is.
func TestUnencryptedHTTP2(t *testing.T) {
	server := serve(t, echo, true)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Post(server.URL+"/b", "", strings.NewReader("abc"))
	testkit.Must(t, err)
	body, err := io.ReadAll(resp.Body)
	testkit.Must(t, errors.Join(err, resp.Body.Close()))
	if want := `POST /b "abc" tls=false`; string(body) != want || resp.Proto != "HTTP/2.0" {
		t.Errorf("%s: got %s, want %s", resp.Proto, body, want)
	}
}

// TestHijacked passes everything on that a client sends after an upgrade.
func TestHijacked(t *testing.T) {
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n") // the client sees what is missing
		_, _ = io.Copy(conn, buffered.Reader)
	}), true)
	server.Start()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
	testkit.Must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, next)
	testkit.Must(t, err)
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	testkit.Must(t, err)
	_ = resp.Body.Close() // it has none
	sent := requests["both"].raw + strings.Repeat("x", 1<<20)
	go func() {
		_, _ = io.WriteString(conn, sent) // what is missing is seen below
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(reader)
	testkit.Must(t, err)
	if string(got) != sent {
		t.Errorf("%d bytes came back of %d", len(got), len(sent))
	}
}

// FuzzGuard compares with a server that is not guarded: a guarded one serves the same
// requests, up to one that it refuses.
func FuzzGuard(f *testing.F) {
	for _, tc := range requests {
		f.Add(tc.raw)
	}
	guarded, other := serve(f, echo, true), serve(f, echo, false)
	guarded.Start()
	other.Start()
	f.Fuzz(func(t *testing.T, raw string) {
		var answers [2][]string
		for i, server := range []*httptest.Server{guarded, other} {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
			testkit.Must(t, err)
			answers[i] = exchange(t, conn, raw)
			_ = conn.Close() // all was read
		}
		got, all := answers[0], answers[1]
		if n := len(got); n > 0 && got[n-1] == refused {
			got = got[:n-1]
		}
		if len(got) > len(all) {
			t.Fatalf("guarded: %q, not guarded: %q", got, all)
		}
		if diff := cmp.Diff(all[:len(got)], got); diff != "" {
			t.Errorf("requests that were served (-not guarded +guarded):\n%s", diff)
		}
	})
}
