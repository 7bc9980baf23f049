package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"wrenn.dev/internal/testkit"
)

// TestHostileRequests sends what no client library would.
func TestHostileRequests(t *testing.T) {
	w, server := newGateway(t)
	var asked atomic.Int32
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if len(r.TransferEncoding) > 0 && r.Header.Get("Content-Length") != "" {
			http.Error(w, "two lengths", http.StatusTeapot)
			return
		}
		echoRequest(w, r)
	})
	host := "8080-" + id + ".x.test"
	for name, tc := range map[string]struct {
		request string
		status  int
		body    string
		asked   int32
	}{
		"absolute form of a sandbox":   {"GET http://" + host + "/a HTTP/1.1\r\nHost: api.x.test\r\n\r\n", 200, `"uri":"/a"`, 1},
		"absolute form of elsewhere":   {"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: " + host + "\r\n\r\n", 200, "the API", 0},
		"CONNECT":                      {"CONNECT " + host + ":443 HTTP/1.1\r\nHost: " + host + ":443\r\n\r\n", 405, "CONNECT", 0},
		"two hosts":                    {"GET / HTTP/1.1\r\nHost: " + host + "\r\nHost: api.x.test\r\n\r\n", 400, "", 0},
		"two ids":                      {"GET / HTTP/1.1\r\nHost: x.test\r\nE2b-Sandbox-Id: " + id + "\r\nE2b-Sandbox-Id: " + other + "\r\n\r\n", 400, "once", 0},
		"two ports":                    {"GET / HTTP/1.1\r\nHost: x.test\r\nE2b-Sandbox-Id: " + id + "\r\nE2b-Sandbox-Port: 8080\r\ne2b-sandbox-port: 1\r\n\r\n", 400, "once", 0},
		"two lengths":                  {"POST / HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400, "", 0},
		"an unknown transfer encoding": {"POST / HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n", 501, "", 0},
		// The length does not count and is not passed on: all of the body is the chunks.
		"a length and chunks": {"POST /a HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, `"uri":"/a"`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			before := asked.Load()
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			testkit.Must(t, err)
			defer conn.Close()
			fmt.Fprint(conn, tc.request)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			testkit.Must(t, err)
			defer resp.Body.Close()
			var body strings.Builder
			_, err = bufio.NewReader(resp.Body).WriteTo(&body)
			if resp.StatusCode != tc.status || !strings.Contains(body.String(), tc.body) || err != nil {
				t.Errorf("%d %s, %v; want %d with %q", resp.StatusCode, body.String(), err, tc.status, tc.body)
			}
			if n := asked.Load() - before; n != tc.asked {
				t.Errorf("the program was asked %d times, want %d", n, tc.asked)
			}
		})
	}
}

// TestNoRequestHidesInABody: after a request with a length and chunks, the next request
// begins where the chunks end, and the program never gets both.
func TestNoRequestHidesInABody(t *testing.T) {
	w, server := newGateway(t)
	type request struct{ uri, length, encoding, body string }
	got := make(chan request, 3)
	w.program(t, 8080, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- request{r.RequestURI, r.Header.Get("Content-Length"), strings.Join(r.TransferEncoding, ","), string(body)}
	})
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	testkit.Must(t, err)
	defer conn.Close()
	host := "Host: 8080-" + id + ".x.test\r\n"
	hidden := "GET /hidden HTTP/1.1\r\nX: " // what the length says belongs to the first request
	fmt.Fprintf(conn, "POST /first HTTP/1.1\r\n%sContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", host, 3, len(hidden), hidden)
	fmt.Fprintf(conn, "GET /second HTTP/1.1\r\n%s\r\n", host)
	answers := bufio.NewReader(conn)
	for _, want := range []request{{uri: "/first", encoding: "chunked", body: hidden}, {uri: "/second"}} {
		resp, err := http.ReadResponse(answers, nil)
		testkit.Must(t, err)
		resp.Body.Close()
		if one := <-got; resp.StatusCode != http.StatusOK || one != want {
			t.Errorf("%d, and the program got %+v, want %+v", resp.StatusCode, one, want)
		}
	}
	if len(got) != 0 {
		t.Errorf("the program got %+v as well", <-got)
	}
}
