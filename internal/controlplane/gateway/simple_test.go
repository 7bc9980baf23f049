package gateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
)

// TestConnectionsAreKept: requests one after the other share a connection, as long as
// the program leaves it open.
func TestConnectionsAreKept(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/close" {
			w.Header().Set("Connection", "close")
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.Method, body)
	})
	ask := func(method, path, body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/p/"+id+"/8080"+path, strings.NewReader(body))
		testkit.Must(t, err)
		resp, err := http.DefaultClient.Do(req)
		testkit.Must(t, err)
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		testkit.Must(t, err)
		if want := method + " " + body; method != http.MethodHead && string(got) != want {
			t.Errorf("%s %s: %d %q, want %q", method, path, resp.StatusCode, got, want)
		}
	}
	ask(http.MethodGet, "/", "")
	ask(http.MethodHead, "/", "")
	ask(http.MethodPost, "/", "a body")
	ask(http.MethodPut, "/", strings.Repeat("x", maxSimpleBody))
	ask(http.MethodGet, "/close", "")
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d connections, want one for all", n)
	}
	ask(http.MethodPost, "/", "after the end of the first connection")
	if n := w.dials.Load(); n != 2 {
		t.Errorf("%d connections, want two", n)
	}
}

// TestAClosedIdleConnection is noticed before a request is sent on it.
func TestAClosedIdleConnection(t *testing.T) {
	w, server := newGateway(t)
	conns := make(chan net.Conn, 2)
	program := httptest.NewUnstartedServer(http.HandlerFunc(echoRequest))
	var state atomic.Int32 // of the first connection
	program.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns <- c
		}
		state.Store(int32(s))
	}
	program.Start()
	t.Cleanup(program.Close)
	w.listen(8080, program.Listener.Addr().String())
	ask := func(method string) int {
		status, _, _ := get(t, method, server.URL+"/p/"+id+"/8080", "")
		return status
	}
	if status := ask(http.MethodPost); status != http.StatusOK {
		t.Fatal(status)
	}
	testkit.WaitUntil(t, "the connection is idle", func() bool { return http.ConnState(state.Load()) == http.StateIdle })
	(<-conns).Close()
	if status := ask(http.MethodPost); status != http.StatusOK {
		t.Errorf("on a connection that the program has closed: %d", status)
	}
}

// TestInformationAndTrailers arrive before and after the response.
func TestInformationAndTrailers(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("Trailer", "Sum")
		fmt.Fprint(w, "body")
		w.Header().Set("Sum", "1")
		w.Header().Set(http.TrailerPrefix+"Unannounced", "2")
	})
	var links []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		links = append(links, fmt.Sprint(code, h["Link"]))
		return nil
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/p/"+id+"/8080/", nil)
	testkit.Must(t, err)
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	if string(body) != "body" || resp.Header.Get("Link") != "" {
		t.Errorf("%q with %v", body, resp.Header)
	}
	if diff := cmp.Diff([]string{"103 [</style.css>; rel=preload]"}, links); diff != "" {
		t.Errorf("informational responses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(http.Header{"Sum": {"1"}, "Unannounced": {"2"}}, resp.Trailer); diff != "" {
		t.Errorf("trailers (-want +got):\n%s", diff)
	}
}

// TestPieces of a response arrive when the program sends them, also when their number is known.
func TestPieces(t *testing.T) {
	w, server := newGateway(t)
	next := make(chan struct{})
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", "3")
		}
		control := http.NewResponseController(w)
		_ = control.Flush()
		for range 3 {
			<-next
			_, _ = w.Write([]byte("x"))
			_ = control.Flush()
		}
	})
	for _, path := range []string{"/known", "/unknown"} {
		resp, err := http.Get(server.URL + "/p/" + id + "/8080" + path) // returns before the first piece
		testkit.Must(t, err)
		for range 3 {
			next <- struct{}{}
			var piece [1]byte
			if _, err := io.ReadFull(resp.Body, piece[:]); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
		}
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("%s: %q, %v", path, rest, err)
		}
		resp.Body.Close()
	}
}
