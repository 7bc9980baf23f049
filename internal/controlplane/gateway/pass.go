package gateway

import (
	"cmp"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"

	"wrenn.dev"
	"wrenn.dev/internal/accesstoken"
	"wrenn.dev/internal/sessioncookie"
	"wrenn.dev/internal/tunnel"
)

// rewrite makes the request to the program from that of the client. The Host
// stays the client's unless the sandbox's ingress has another.
func rewrite(r *httputil.ProxyRequest) {
	to := targetOf(r.In.Context())
	if to.prefix != "" {
		r.Out = withoutPrefix(r.Out, to.prefix)
	}
	r.Out.URL.Scheme, r.Out.URL.Host = "http", to.authority()
	r.Out.Host = cmp.Or(to.ingress.Host(to.port), r.In.Host)
	r.Out.URL.RawQuery = r.In.URL.RawQuery // as it is, also what Go would not write so
	if to.port == EnvdPort {
		asDefaultUser(r.Out)
	}
	forwarded(r)
}

// defaultUser is the user that E2B's clients act as when they name none. In
// Wrenn's own API that is root.
const defaultUser = "user"

// asDefaultUser names the user in a request for envd that names none.
func asDefaultUser(r *http.Request) {
	if r.URL.Path != "/files" {
		if r.Header.Get("Authorization") == "" {
			r.SetBasicAuth(defaultUser, "")
		}
		return
	}
	if query := r.URL.Query(); query.Get("username") == "" {
		query.Set("username", defaultUser)
		r.URL.RawQuery = query.Encode()
	}
}

// forwarded tells the program who asked, and keeps from it what is for us alone:
// a sandbox must not learn the API keys of those who visit it.
func forwarded(r *httputil.ProxyRequest) {
	r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"] // SetXForwarded appends to it
	r.SetXForwarded()
	for _, name := range []string{"X-Api-Key", accesstoken.TrafficHeader, sandboxHeader, portHeader, "X-Wrenn-Session"} {
		r.Out.Header.Del(name)
	}
	sessioncookie.Remove(r.Out.Header)
}

// withoutPrefix returns r for the path that follows prefix.
func withoutPrefix(r *http.Request, prefix string) *http.Request {
	out := r.Clone(r.Context())
	raw := "/" + strings.TrimPrefix(strings.TrimPrefix(r.URL.EscapedPath(), prefix), "/")
	if path, err := url.PathUnescape(raw); err == nil { // EscapedPath is always valid
		out.URL.Path, out.URL.RawPath = path, raw
	}
	return out
}

// upgrades reports whether the client asks for another protocol on the
// connection, such as WebSocket.
func upgrades(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.Header.Get("Upgrade") != "" && httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade")
}

// upgrade passes on a request for another protocol, and then the bytes of both
// sides. httputil's way would hold 100 KiB for each idle WebSocket.
func (g *Gateway) upgrade(w http.ResponseWriter, r *http.Request, to target) {
	conn, err := g.dialer.dial(r.Context(), to)
	if err != nil {
		g.failed(w, r, err)
		return
	}
	joined := false
	defer func() {
		if !joined {
			_ = conn.Close() // nothing is in flight
		}
	}()
	resp, upgraded, err := tunnel.Exchange(conn, passedOn(r), maxHeader)
	if err != nil {
		g.failed(w, r, err)
		return
	}
	defer resp.Body.Close()
	if upgraded == nil {
		dropHopByHop(resp.Header)
	}
	maps.Copy(w.Header(), resp.Header)
	to.isolate(w.Header())
	w.WriteHeader(resp.StatusCode)
	if upgraded == nil {
		if _, err := io.Copy(w, resp.Body); err != nil {
			panic(http.ErrAbortHandler) // cut: the client must see that
		}
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // the client left
	}
	joined = true
	// Not in this goroutine, on which net/http holds on to buffers and the request.
	go g.join(tunnel.WithRead(client, buffered.Reader), upgraded, to.id)
}

// join passes on the bytes of both sides until both have ended.
func (g *Gateway) join(client, program net.Conn, id wrenn.SandboxID) {
	defer g.metrics.hold()()
	tunnel.Join(client, program, func() { g.sandboxes.Used(id) })
}

// passedOn returns the request as the sandbox gets it, like httputil.ReverseProxy.
func passedOn(r *http.Request) *http.Request {
	pr := &httputil.ProxyRequest{In: r, Out: r.Clone(r.Context())}
	h := pr.Out.Header
	trailers := httpguts.HeaderValuesContainsToken(h["Te"], "trailers")
	dropHopByHop(h)
	if trailers {
		h.Set("Te", "trailers")
	}
	if upgrades(r) {
		h.Set("Connection", "Upgrade")
	} else {
		h.Del("Upgrade")
	}
	if _, ok := h["User-Agent"]; !ok {
		h.Set("User-Agent", "") // not Go's own
	}
	pr.Out.Close = false
	rewrite(pr)
	return pr.Out
}

// hopByHop are the headers that are between the client and us alone, see RFC 9110, 7.6.1.
var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding"}

// dropHopByHop leaves Upgrade, which is passed on.
func dropHopByHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = textproto.TrimString(name); !strings.EqualFold(name, "Upgrade") {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

// buffers are for httputil.ReverseProxy.
type buffers struct{ pool sync.Pool }

const bufferSize = 64 << 10

// Get returns a buffer.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return make([]byte, bufferSize)
}

// Put takes it back.
func (b *buffers) Put(p []byte) { b.pool.Put((*[bufferSize]byte)(p)) }
