package gateway

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"wrenn.dev"
	"wrenn.dev/internal/accesstoken"
	"wrenn.dev/internal/testkit"
)

const (
	id    = "iaaaaaaaaaaaaaaaaaaaa"
	other = "ibbbbbbbbbbbbbbbbbbbb"
)

// world is sandboxes whose programs are servers of the test.
type world struct {
	mu      sync.Mutex // guards what follows
	ports   map[uint16]string
	running bool
	refuse  error
	ingress wrenn.Ingress
	open    []net.Conn
	dials   atomic.Int32
	used    atomic.Int32
}

func (w *world) DialPort(ctx context.Context, got wrenn.SandboxID, port uint16) (net.Conn, error) {
	w.dials.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	address, ok := w.ports[port]
	switch {
	case w.refuse != nil:
		return nil, w.refuse
	case got != id || !w.running:
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no sandbox %s", got)
	case !ok:
		return nil, wrenn.ErrPortClosed
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err == nil {
		w.open = append(w.open, conn)
	}
	return conn, err
}

func (w *world) Runs(context.Context, wrenn.SandboxID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running
}

func (w *world) Used(wrenn.SandboxID) { w.used.Add(1) }

func (w *world) AccessToken(_ context.Context, id wrenn.SandboxID) (string, error) {
	return "token-of-" + string(id), nil
}

func (w *world) Tokens(context.Context) (map[wrenn.SandboxID]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.running {
		return nil, nil
	}
	return map[wrenn.SandboxID]string{id: "token-of-" + id}, nil
}

func (w *world) Ingress(_ context.Context, got wrenn.SandboxID) (wrenn.Ingress, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if got != id || !w.running {
		return wrenn.Ingress{}, wrenn.Errorf(wrenn.NotFound, "there is no sandbox %s", got)
	}
	return w.ingress, nil
}

func (w *world) TrafficToken(_ context.Context, id wrenn.SandboxID) (string, error) {
	return "traffic-token-of-" + string(id), nil
}

// kill breaks what is open and ends the sandbox.
func (w *world) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = false
	for _, conn := range w.open {
		conn.Close()
	}
}

// end is kill as a Unix socket to the host's agent shows it: by an ordinary end.
func (w *world) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = false
	for _, conn := range w.open {
		_ = conn.(*net.TCPConn).CloseRead()
	}
}

// listen is a program that starts to listen on a port.
func (w *world) listen(port uint16, address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[port] = address
}

// newGateway serves a gateway in front of the world and of an API that says so.
func newGateway(t *testing.T) (*world, *httptest.Server) {
	t.Helper()
	w := &world{ports: map[uint16]string{}, running: true}
	g, err := New(Config{Sandboxes: w, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	testkit.Must(t, err)
	server := httptest.NewUnstartedServer(g.InFrontOf(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the API") })))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return w, server
}

// program serves on a port of the sandbox.
func (w *world) program(t *testing.T, port uint16, h http.HandlerFunc) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	w.listen(port, server.Listener.Addr().String())
}

// get sends a request; headers are pairs.
func get(t *testing.T, method, url, host string, headers ...string) (status int, body string, h http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	testkit.Must(t, err)
	if host != "" {
		req.Host = host
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	return resp.StatusCode, string(text), resp.Header
}

func echoRequest(w http.ResponseWriter, r *http.Request) {
	_ = json.NewEncoder(w).Encode(map[string]any{"host": r.Host, "uri": r.RequestURI, "header": r.Header})
}

func TestRoutes(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, echoRequest)
	for name, tc := range map[string]struct {
		path, host string
		headers    []string
		want       string // in the answer
	}{
		"no sandbox":                   {path: "/v1/sandboxes", want: "the API"},
		"headers":                      {path: "/a?b=c;d", headers: []string{"E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "8080"}, want: `"uri":"/a?b=c;d"`},
		"headers on a call of the API": {path: "/sandboxes/" + id + "/connect", headers: []string{"E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "49983"}, want: "the API"},
		"headers with a client's id":   {path: "/a", headers: []string{"E2b-Sandbox-Id", id + "-00000000", "E2b-Sandbox-Port", "8080"}, want: `"uri":"/a"`},
		"host":                         {path: "/x%2Fy", host: "8080-" + id + ".sandbox.localhost:9", want: `"host":"8080-` + id + `.sandbox.localhost:9"`},
		"host with a client's id":      {path: "/x", host: "8080-" + id + "-abc.example.com", want: `"uri":"/x"`},
		"host in capitals":             {path: "/x", host: strings.ToUpper("8080-" + id + ".example.com"), want: `"uri":"/x"`},
		"host, not the API's path":     {path: "/v1/sandboxes", host: "8080-" + id + ".example.com", want: `"uri":"/v1/sandboxes"`},
		"path":                         {path: "/p/" + id + "/8080/a%2Fb/?q=1", want: `"uri":"/a%2Fb/?q=1"`},
		"path without more":            {path: "/p/" + id + "/8080", want: `"uri":"/"`},
		"an address as host":           {path: "/", host: "10.0.0.1", want: "the API"},
		"a host of the API's":          {path: "/", host: "api.example.com", want: "the API"},
		"a host with a wrong port":     {path: "/", host: "0-" + id + ".example.com", want: "the API"},
		"a host with a wrong id":       {path: "/", host: "80-nothing.example.com", want: "the API"},
		"a header that is no id":       {path: "/", headers: []string{"E2b-Sandbox-Id", "../v1"}, want: `"code":400`},
		"a header that is no port":     {path: "/", headers: []string{"E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "65536"}, want: `"code":400`},
		"a signed port":                {path: "/", headers: []string{"E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "+80"}, want: `"code":400`},
		"two ids":                      {path: "/", headers: []string{"E2b-Sandbox-Id", id, "E2b-Sandbox-Id", other}, want: `"code":400`},
		"a path that is no id":         {path: "/p/x/80/", want: `"code":400`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, body, _ := get(t, http.MethodGet, server.URL+tc.path, tc.host, tc.headers...); !strings.Contains(body, tc.want) {
				t.Errorf("got %s, want it to contain %s", body, tc.want)
			}
		})
	}
}

// TestHeaders: a program learns who asked, and nothing that is for us alone.
func TestHeaders(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, echoRequest)
	_, body, _ := get(t, http.MethodGet, server.URL, "8080-"+id+".example.com", "X-Api-Key", "e2b_secret", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "8080",
		"X-Forwarded-For", "192.0.2.1", "Connection", "close, X-Hop", "X-Hop", "1", "Proxy-Authorization", "Basic eA==", "Cookie", "a=b")
	var got struct{ Header http.Header }
	testkit.Must(t, json.Unmarshal([]byte(body), &got))
	for name, want := range map[string]string{
		"X-Api-Key": "", "E2b-Sandbox-Id": "", "E2b-Sandbox-Port": "", "X-Hop": "", "Proxy-Authorization": "",
		"Cookie": "a=b", "X-Forwarded-For": "192.0.2.1, 127.0.0.1", "X-Forwarded-Host": "8080-" + id + ".example.com", "X-Forwarded-Proto": "http",
	} {
		if got := got.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	_, body, _ = get(t, http.MethodGet, server.URL+"/p/"+id+"/8080/", "", "Cookie", "wrenn_session=1; a=b; __Secure-wrenn_session=2", "X-Wrenn-Session", "3")
	got.Header = nil
	testkit.Must(t, json.Unmarshal([]byte(body), &got))
	if got.Header.Get("Cookie") != "a=b" || got.Header.Get("X-Wrenn-Session") != "" {
		t.Errorf("a sandbox learns who has signed in to the dashboard: %v", got.Header)
	}
	w.program(t, 8081, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Clear-Site-Data", `"*"`)
		w.Header().Set("Content-Security-Policy", "default-src *")
		w.Header().Add("Set-Cookie", "wrenn_session=mine; Path=/v1")
		w.Header().Add("Set-Cookie", "a=b")
	})
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		_, _, h := get(t, method, server.URL+"/p/"+id+"/8081/", "")
		if diff := cmp.Diff([]string{"a=b"}, h["Set-Cookie"]); diff != "" || h.Get("Clear-Site-Data") != "" || !strings.HasPrefix(h.Get("Content-Security-Policy"), "sandbox ") {
			t.Errorf("%s: a sandbox changes what browsers keep of the API's origin: %v", method, h)
		}
	}
	if _, _, h := get(t, http.MethodGet, server.URL+"/p/"+id+"/8080/", ""); !strings.HasPrefix(h.Get("Content-Security-Policy"), "sandbox ") {
		t.Error("a sandbox's page may act as the API's origin")
	}
}

// TestRefusals: the texts are protocol.
func TestRefusals(t *testing.T) {
	w, server := newGateway(t)
	ask := func(id, port string) string {
		_, body, _ := get(t, http.MethodGet, server.URL, "", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", port)
		return body
	}
	defer func() {
		if n := w.used.Load(); n != 0 {
			t.Errorf("%d uses were recorded of sandboxes that were not reached", n)
		}
	}()
	if got, want := ask(other, "8080"), `{"sandboxId":"`+other+`","message":"The sandbox was not found","code":502}`; got != want {
		t.Errorf("no sandbox: %s, want %s", got, want)
	}
	if got, want := ask(id, "8080"), `{"sandboxId":"`+id+`","message":"The sandbox is running but port is not open","port":8080,"code":502}`; got != want {
		t.Errorf("closed port: %s, want %s", got, want)
	}
	w.mu.Lock()
	w.refuse = wrenn.Errorf(wrenn.Exhausted, "too many connections")
	w.mu.Unlock()
	if status, _, h := get(t, http.MethodGet, server.URL, "", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "8080"); status != http.StatusTooManyRequests || h.Get("Retry-After") == "" {
		t.Errorf("too many connections: %d", status)
	}
	_, body, h := get(t, http.MethodGet, server.URL, "", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "8080", "User-Agent", "Mozilla/5.0", "Accept", "text/html,*/*")
	if !strings.HasPrefix(h.Get("Content-Type"), "text/html") || !strings.Contains(body, "too many connections") {
		t.Errorf("a browser got %s", body)
	}
}

// TestEnvd is open to holders of the token, in what clients call.
func TestEnvd(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, EnvdPort, echoRequest)
	token := "token-of-" + id
	signed := "signature=" + strings.NewReplacer("+", "%2B", "/", "%2F").Replace(accesstoken.Sign([]string{"a", "read", "", token}))
	for name, tc := range map[string]struct {
		method, path, token string
		status              int
	}{
		"health":                       {"GET", "/health", "", 200},
		"token":                        {"POST", "/process.Process/List", token, 200},
		"no token":                     {"POST", "/process.Process/List", "", 401},
		"another sandbox's token":      {"POST", "/process.Process/List", "token-of-" + other, 401},
		"signed":                       {"GET", "/files?path=a&" + signed, "", 200},
		"signed for another file":      {"GET", "/files?path=b&" + signed, "", 401},
		"signed for reading":           {"POST", "/files?path=a&" + signed, "", 401},
		"preflight":                    {"OPTIONS", "/files", "", 200},
		"init":                         {"POST", "/init", token, 404},
		"init in disguise":             {"POST", "/%69nit", token, 404},
		"init by a detour":             {"POST", "/process.Process/../init", token, 404},
		"freeze":                       {"POST", "/freeze", token, 404},
		"grow":                         {"POST", "/grow", token, 404},
		"connect":                      {"GET", "/connect?port=1", token, 404},
		"by path":                      {"POST", "/p/" + id + "/49983/process.Process/List", token, 200},
		"by path, init":                {"POST", "/p/" + id + "/49983/init", token, 404},
		"by path, no token":            {"POST", "/p/" + id + "/49983/envs", "", 401},
		"by path, signed":              {"GET", "/p/" + id + "/49983/files?path=a&" + signed, "", 200},
		"CONNECT, which is no request": {"CONNECT", "", token, 405},
	} {
		t.Run(name, func(t *testing.T) {
			headers := []string{"E2b-Sandbox-Id", id}
			if strings.HasPrefix(tc.path, "/p/") {
				headers = nil
			}
			if tc.token != "" {
				headers = append(headers, accesstoken.Header, tc.token)
			}
			if status, body, _ := get(t, tc.method, server.URL+tc.path, "", headers...); status != tc.status {
				t.Errorf("%d %s, want %d", status, body, tc.status)
			}
		})
	}
	if _, _, h := get(t, http.MethodGet, server.URL+"/files?path=a&"+signed, ""); !strings.HasPrefix(h.Get("Content-Security-Policy"), "sandbox ") {
		t.Error("a file of a sandbox may act as the API's origin")
	}
	if _, body, _ := get(t, http.MethodGet, server.URL+"/files?path=a&"+signed, "", "E2b-Sandbox-Id", id); !strings.Contains(body, `"X-Access-Token":["`+token+`"]`) {
		t.Errorf("envd gets a signed request as %s, without the token that it asks for", body)
	}
	if _, body, _ := get(t, http.MethodGet, server.URL+"/files", "", "E2b-Sandbox-Id", id); body != `{"message":"missing signature query parameter","code":401}` {
		t.Errorf("unsigned: %s", body)
	}
}

// TestSignedWithoutID: where one URL serves all sandboxes, a signed URL names none.
func TestSignedWithoutID(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, EnvdPort, echoRequest)
	sign := func(operation, expires string) string {
		parts := []string{"a", operation, "user", "token-of-" + id}
		query := url.Values{"path": {"a"}, "username": {"user"}}
		if expires != "" {
			parts = append(parts, expires)
			query.Set("signature_expiration", expires)
		}
		query.Set("signature", accesstoken.Sign(parts))
		return "/files?" + query.Encode()
	}
	for name, tc := range map[string]struct {
		method, path string
		status       int
		body         string
	}{
		"read":               {"GET", sign("read", ""), 200, `"X-Access-Token":["token-of-` + id + `"]`},
		"write":              {"POST", sign("write", ""), 200, ""},
		"until later":        {"GET", sign("read", "4000000000"), 200, ""},
		"expired":            {"GET", sign("read", "1000000000"), 401, `{"message":"signature is already expired","code":401}`},
		"signed for reading": {"POST", sign("read", ""), 401, `{"message":"invalid signature","code":401}`},
		"another file":       {"GET", sign("read", "") + "&path=b", 200, ""}, // the first path counts, here and in envd
		"forged":             {"GET", "/files?path=a&signature=v1_x", 401, `{"message":"invalid signature","code":401}`},
		"not signed":         {"GET", "/files?path=a", 401, `{"message":"missing signature query parameter","code":401}`},
		"another method":     {"DELETE", sign("read", ""), 401, ""},
		"the API":            {"GET", "/files/x", 200, "the API"},
	} {
		if status, body, _ := get(t, tc.method, server.URL+tc.path, ""); status != tc.status || !strings.Contains(body, tc.body) {
			t.Errorf("%s: %d %s, want %d %s", name, status, body, tc.status, tc.body)
		}
	}
	w.kill()
	g := &signers{sandboxes: w}
	signed, _ := accesstoken.ParseSigned("GET", url.Values{"path": {"a"}, "signature": {"v1_x"}})
	if id, reason, err := g.find(t.Context(), signed); id != "" || reason != accesstoken.InvalidSignature || err != nil {
		t.Errorf("without any sandbox: %s, %s, %v", id, reason, err)
	}
}

// TestIngress: private ports, the Host of programs, and programs that speak TLS.
func TestIngress(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, echoRequest)
	w.program(t, EnvdPort, echoRequest)
	secure := httptest.NewTLSServer(http.HandlerFunc(echoRequest))
	t.Cleanup(secure.Close)
	w.listen(8443, secure.Listener.Addr().String())
	w.ingress = wrenn.Ingress{Private: true, MaskHost: "localhost:${PORT}", HTTPSPorts: []uint16{8443}}
	ask := func(port string, headers ...string) (int, string) {
		status, body, _ := get(t, http.MethodGet, server.URL, "", append(headers, "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", port)...)
		return status, body
	}
	token := "traffic-token-of-" + id
	for name, headers := range map[string][]string{
		"none": nil, "another": {accesstoken.TrafficHeader, "x"}, "empty": {accesstoken.TrafficHeader, ""},
		"envd's": {accesstoken.TrafficHeader, "token-of-" + id, accesstoken.Header, "token-of-" + id},
	} {
		before := w.dials.Load()
		if status, body := ask("8080", headers...); status != http.StatusForbidden || !strings.Contains(body, `"code":403`) {
			t.Errorf("token %s: %d %s, want 403", name, status, body)
		}
		if w.dials.Load() != before {
			t.Errorf("token %s: the sandbox was asked, which may wake it", name)
		}
	}
	status, body := ask("8080", accesstoken.TrafficHeader, token)
	if status != http.StatusOK || !strings.Contains(body, `"host":"localhost:8080"`) || !strings.Contains(body, `"X-Forwarded-Host":["127.0.0.1:`) || strings.Contains(body, token) {
		t.Errorf("with the token: %d %s, want the masked host, that of the client as forwarded, and no token", status, body)
	}
	if status, body := ask("8443", accesstoken.TrafficHeader, token); status != http.StatusOK || !strings.Contains(body, `"host":"localhost:8443"`) {
		t.Errorf("TLS: %d %s", status, body)
	}
	if status, body := ask("49983", accesstoken.Header, "token-of-"+id); status != http.StatusNotFound || strings.Contains(body, "private") {
		t.Errorf("envd's port: %d %s, want its own answer", status, body)
	}
	w.program(t, 8081, echoRequest)
	w.ingress = wrenn.Ingress{HTTPSPorts: []uint16{8081}}
	if status, body := ask("8081"); status != http.StatusBadGateway || !strings.Contains(body, "does not speak TLS") {
		t.Errorf("a program without TLS: %d %s", status, body)
	}
}

// TestMisses: an address that asks for sandboxes that do not exist is slowed down,
// and still reaches those that do.
func TestMisses(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, echoRequest)
	ask := func(id string) int {
		status, _, _ := get(t, http.MethodGet, server.URL, "", "E2b-Sandbox-Id", id, "E2b-Sandbox-Port", "8080")
		return status
	}
	if status := ask(id); status != http.StatusOK {
		t.Fatal(status)
	}
	statuses := map[int]int{}
	for range 600 {
		statuses[ask(other)]++
	}
	if statuses[http.StatusBadGateway] < 100 || statuses[http.StatusTooManyRequests] == 0 {
		t.Errorf("answers: %v", statuses)
	}
	if status := ask(id); status != http.StatusOK {
		t.Errorf("a sandbox that exists: %d", status)
	}
}

// TestDefaultUser: E2B's clients act as "user" unless they name another.
func TestDefaultUser(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, EnvdPort, echoRequest)
	for name, tc := range map[string]struct{ path, authorization, want string }{
		"rpc":                  {"/process.Process/List", "", `"Authorization":["Basic dXNlcjo="]`},
		"rpc as root":          {"/process.Process/List", "Basic cm9vdDo=", `"Authorization":["Basic cm9vdDo="]`},
		"file":                 {"/files?path=a", "", `"uri":"/files?path=a\u0026username=user"`},
		"file as root":         {"/files?path=a&username=root", "", `"uri":"/files?path=a\u0026username=root"`},
		"file, user is given ": {"/files?username=&path=a", "", `username=user"`},
	} {
		t.Run(name, func(t *testing.T) {
			headers := []string{"E2b-Sandbox-Id", id, accesstoken.Header, "token-of-" + id}
			if tc.authorization != "" {
				headers = append(headers, "Authorization", tc.authorization)
			}
			if _, body, _ := get(t, http.MethodGet, server.URL+tc.path, "", headers...); !strings.Contains(body, tc.want) {
				t.Errorf("got %s, want it to contain %s", body, tc.want)
			}
		})
	}
}

// TestStreams: every piece arrives when it is written, in both directions.
func TestStreams(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "echo %s\n", lines.Text())
			_ = control.Flush()
		}
	})
	body, feed := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/p/"+id+"/8080/", body)
	testkit.Must(t, err)
	answered := make(chan *http.Response, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req) //nolint:bodyclose // the receiver closes it
		if err != nil {
			t.Error(err)
		}
		answered <- resp
	}()
	_, err = io.WriteString(feed, "0\n")
	testkit.Must(t, err)
	resp := <-answered
	if resp == nil {
		return
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 10 {
		if !lines.Scan() || lines.Text() != "echo "+strconv.Itoa(i) {
			t.Fatalf("got %q, %v, want the answer to %d", lines.Text(), lines.Err(), i)
		}
		_, err = io.WriteString(feed, strconv.Itoa(i+1)+"\n")
		testkit.Must(t, err)
	}
	feed.Close()
}

// TestCutIsNoEnd: a body that is cut by the end of its sandbox is an error for the client.
func TestCutIsNoEnd(t *testing.T) {
	w, server := newGateway(t)
	begun := make(chan struct{})
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/answered" {
			fmt.Fprint(w, "part")
			_ = http.NewResponseController(w).Flush()
		}
		begun <- struct{}{}
		<-r.Context().Done()
	})
	for _, path := range []string{"/silent", "/answered"} {
		w.mu.Lock()
		w.running = true
		w.mu.Unlock()
		ended := make(chan error, 1)
		go func() {
			resp, err := http.Get(server.URL + "/p/" + id + "/8080" + path)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode == http.StatusBadGateway { // Go's client has asked again
					err = errors.New(resp.Status)
				}
			}
			ended <- err
		}()
		<-begun
		w.kill()
		if err := <-ended; err == nil {
			t.Errorf("%s: the client took a cut answer for a whole one", path)
		}
		if _, body, _ := get(t, http.MethodGet, server.URL+"/p/"+id+"/8080", ""); !strings.Contains(body, "The sandbox was not found") {
			t.Errorf("after the end: %s", body)
		}
	}
}

// TestACutResets: the end of a sandbox resets the connections to it, also those in
// the middle of an answer whose end the server would mark by closing.
func TestACutResets(t *testing.T) {
	w, server := newGateway(t)
	begun := make(chan struct{})
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		head := map[string]string{
			"/until-closed": "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npart", "/chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
			"/upgraded": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\npart", "/silent": "",
		}[r.URL.Path]
		_, _ = io.WriteString(conn, head)
		begun <- struct{}{}
		_, _ = io.Copy(io.Discard, conn)
	})
	for _, path := range []string{"/until-closed", "/chunked", "/upgraded", "/silent"} {
		w.mu.Lock()
		w.running = true
		w.mu.Unlock()
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		testkit.Must(t, err)
		upgrade := ""
		if path == "/upgraded" {
			upgrade = "Connection: Upgrade\r\nUpgrade: test\r\n"
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: 8080-%s.x.test\r\n%s\r\n", path, id, upgrade)
		<-begun
		if path != "/silent" {
			testkit.Must(t, readUntil(conn, "part"))
		}
		w.end()
		if _, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the connection ends with %v, want a reset", path, err)
		}
		conn.Close()
	}
}

// readUntil reads text that ends with end.
func readUntil(r io.Reader, end string) error {
	var got []byte
	for !strings.Contains(string(got), end) {
		var one [1]byte
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return fmt.Errorf("%w after %q", err, got)
		}
		got = append(got, one[0])
	}
	return nil
}

// TestALateProgram: one that starts to listen just after it is asked for is waited for.
func TestALateProgram(t *testing.T) {
	w, server := newGateway(t)
	program := httptest.NewServer(http.HandlerFunc(echoRequest))
	t.Cleanup(program.Close)
	go func() {
		testkit.WaitUntil(t, "the first try", func() bool { return w.dials.Load() > 0 })
		w.listen(8080, program.Listener.Addr().String())
	}()
	if status, body, _ := get(t, http.MethodGet, server.URL+"/p/"+id+"/8080", ""); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
}

func TestWebSocket(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" || r.URL.Path == "/no" {
			http.Error(w, "no WebSocket", http.StatusTeapot)
			return
		}
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"chat"}})
		if err != nil {
			return
		}
		conn.SetReadLimit(4 << 20)
		for {
			kind, data, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			_ = conn.Write(r.Context(), kind, data)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Timeout)
	defer cancel()
	_, resp, err := websocket.Dial(ctx, server.URL+"/p/"+id+"/8080/no", nil) //nolint:bodyclose // Dial says it need not be
	if err == nil || resp == nil || resp.StatusCode != http.StatusTeapot {
		t.Fatalf("a refusal: %v, %v", resp, err)
	}
	conn, _, err := websocket.Dial(ctx, server.URL+"/p/"+id+"/8080/ws", &websocket.DialOptions{Subprotocols: []string{"chat"}}) //nolint:bodyclose // as above
	testkit.Must(t, err)
	defer func() { _ = conn.CloseNow() }()
	if conn.Subprotocol() != "chat" {
		t.Errorf("subprotocol %q", conn.Subprotocol())
	}
	conn.SetReadLimit(4 << 20)
	for _, size := range []int{0, 1, 1 << 10, 3 << 20} {
		sent := make([]byte, size)
		_, _ = rand.Read(sent)
		testkit.Must(t, conn.Write(ctx, websocket.MessageBinary, sent))
		if _, got, err := conn.Read(ctx); err != nil || string(got) != string(sent) {
			t.Fatalf("%d bytes came back as %d, %v", size, len(got), err)
		}
	}
	if w.used.Load() < 2 {
		t.Error("messages do not count as use")
	}
	w.kill()
	if _, _, err := conn.Read(ctx); err == nil || websocket.CloseStatus(err) != -1 {
		t.Errorf("after the end of the sandbox: %v, want a connection that broke", err)
	}
}

// TestHTTP2 speaks to the gateway by HTTP/2, and the gateway to a gRPC server by it, with trailers.
func TestHTTP2(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		fmt.Fprint(w, r.Proto)
		w.Header().Set("Grpc-Status", "0")
	})
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	for contentType, want := range map[string]string{"application/grpc+proto": "HTTP/2.0", "text/plain": "HTTP/1.1"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/p/"+id+"/8080/", strings.NewReader("x"))
		testkit.Must(t, err)
		req.Header.Set("Content-Type", contentType)
		resp, err := transport.RoundTrip(req)
		testkit.Must(t, err)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != want || resp.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("%s: %s, trailer %v, %v; want %s", contentType, body, resp.Trailer, err, want)
		}
	}
}

// TestNoRedirect: what a program redirects to is the client's to follow.
func TestNoRedirect(t *testing.T) {
	w, server := newGateway(t)
	w.program(t, 8080, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
	})
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Get(server.URL + "/p/" + id + "/8080/")
	testkit.Must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != "http://169.254.169.254/" {
		t.Errorf("%d to %s", resp.StatusCode, resp.Header.Get("Location"))
	}
}

// TestASlowReader slows the program: what is on its way is bounded.
func TestASlowReader(t *testing.T) {
	w, server := newGateway(t)
	var written atomic.Int64
	stalled := make(chan struct{})
	w.program(t, 8080, func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 1<<20)
		control := http.NewResponseController(w)
		for range 256 {
			_ = control.SetWriteDeadline(time.Now().Add(2 * time.Second)) // the client does not read: it fails
			n, err := w.Write(piece)
			written.Add(int64(n))
			if errors.Is(err, context.DeadlineExceeded) || err != nil {
				close(stalled)
				return
			}
		}
	})
	resp, err := http.Get(server.URL + "/p/" + id + "/8080/")
	testkit.Must(t, err)
	defer resp.Body.Close()
	<-stalled
	if n := written.Load(); n > 64<<20 {
		t.Errorf("%d MiB were taken from the program though the client reads nothing", n>>20)
	}
}

func FuzzRoute(f *testing.F) {
	f.Add("8080-"+id+".example.com", id, "8080", "/p/"+id+"/80/x")
	f.Add("[::1]:80", "", "", "/p//")
	f.Add("49983-"+id+"-x.y:1", "../x", "-1", "/%70/")
	f.Fuzz(func(t *testing.T, host, idHeader, port, path string) {
		r := &http.Request{Host: host, Header: http.Header{}, URL: nil}
		req, err := http.NewRequest(http.MethodGet, "http://x/", nil)
		if err != nil {
			return
		}
		req.URL.Path, req.Host, req.Header = path, r.Host, r.Header
		if idHeader != "" {
			req.Header.Set(sandboxHeader, idHeader)
			req.Header.Set(portHeader, port)
		}
		to, ok, err := route(req)
		if !ok || err != nil {
			return
		}
		if _, err := wrenn.ParseSandboxID(string(to.id)); err != nil || to.port == 0 {
			t.Fatalf("route() = %+v", to)
		}
		if strings.ContainsAny(to.authority(), "/?#@% ") {
			t.Fatalf("%q is no authority", to.authority())
		}
	})
}
