package api

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/getkin/kin-openapi/openapi3filter"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

func init() { openapi3filter.RegisterBodyDecoder("text/event-stream", openapi3filter.PlainBodyDecoder) }

// browserHeader is what a browser sends for a page of this server's own origin.
func browserHeader(pairs ...string) http.Header {
	h := http.Header{"Cookie": {"wrenn_session=" + testCookie}, proofHeader: {testProof}, "Sec-Fetch-Site": {"same-origin"}}
	for i := 0; i < len(pairs); i += 2 {
		h.Del(pairs[i])
		if pairs[i+1] != "" {
			h.Set(pairs[i], pairs[i+1])
		}
	}
	return h
}

const identityJSON = `"team":"team","key_id":"` + testKeyID + `","key_name":"laptop","scopes":["admin","operator"]`

func sessionCalls() map[string][]call {
	const path = "/v1/session"
	in := `{"key":"` + testKey + `"}`
	cookie := func(want string) func(*testing.T, *stub, *http.Response) {
		return func(t *testing.T, _ *stub, r *http.Response) {
			t.Helper()
			if got := r.Header.Get("Set-Cookie"); got != want {
				t.Errorf("Set-Cookie = %q, want %q", got, want)
			}
		}
	}
	return map[string][]call{
		"createSession": append(jsonCalls(path),
			call{name: "ok", method: "POST", path: path, key: "-", body: in, status: 201,
				want:  `{` + identityJSON + `,"proof":"` + testProof + `","expires_at":"2026-01-02T15:04:05Z"}`,
				check: cookie("wrenn_session=" + testCookie + "; Path=/v1; Expires=Fri, 02 Jan 2026 15:04:05 GMT; HttpOnly; SameSite=Strict")}, //nolint:bodyclose // run closes it
			call{name: "wrong key", method: "POST", path: path, body: `{"key":"e2b_no"}`, status: 401, code: "unauthorized", check: cookie("")},                                                        //nolint:bodyclose // run closes it
			call{name: "for another page", method: "POST", path: path, key: "-", body: in, header: http.Header{"Origin": {"https://evil.example"}}, status: 403, code: "forbidden", check: cookie("")}, //nolint:bodyclose // run closes it
			call{name: "for a page of the same site", method: "POST", path: path, key: "-", body: in, header: http.Header{"Sec-Fetch-Site": {"same-site"}}, status: 403, code: "forbidden"},
			call{name: "for a page of a sandbox", method: "POST", path: path, key: "-", body: in, header: http.Header{"Origin": {"null"}}, status: 403, code: "forbidden"}),
		"getSession": {
			{name: "by key", method: "GET", path: path, status: 200, want: `{` + identityJSON + `}`},
			{name: "by session", method: "GET", path: path, key: "-", header: browserHeader(), status: 200, want: `{` + identityJSON + `}`},
			{name: "a browser that sends nothing of where", method: "GET", path: path, key: "-", header: browserHeader("Sec-Fetch-Site", ""), status: 200},
			{name: "without the proof", method: "GET", path: path, key: "-", header: browserHeader(proofHeader, ""), status: 401, code: "unauthorized"},
			{name: "without the cookie", method: "GET", path: path, key: "-", header: browserHeader("Cookie", ""), status: 401, code: "unauthorized"},
			{name: "with another cookie", method: "GET", path: path, key: "-", header: browserHeader("Cookie", "wrenn_session="+testProof), status: 401, code: "unauthorized"},
			{name: "from the same site", method: "GET", path: path, key: "-", header: browserHeader("Sec-Fetch-Site", "same-site"), status: 403, code: "forbidden"},
			{name: "typed by a person", method: "GET", path: path, key: "-", header: browserHeader("Sec-Fetch-Site", "none"), status: 403, code: "forbidden"},
			{name: "from a page of a sandbox", method: "GET", path: path, key: "-", header: browserHeader("Sec-Fetch-Site", "", "Origin", "null"), status: 403, code: "forbidden"},
			{name: "from another port", method: "GET", path: path, key: "-", header: browserHeader("Sec-Fetch-Site", "", "Origin", "http://127.0.0.1:1"), status: 403, code: "forbidden"},
			{name: "no key", method: "GET", path: path, key: "-", status: 401, code: "unauthorized"},
		},
		"deleteSession": {
			{name: "ok", method: "DELETE", path: path, key: "-", header: browserHeader(), status: 204, check: func(t *testing.T, s *stub, r *http.Response) {
				t.Helper()
				cookie("wrenn_session=; Path=/v1; Expires=Thu, 01 Jan 1970 00:00:01 GMT; HttpOnly; SameSite=Strict")(t, s, r) //nolint:bodyclose // run closes it
				if !s.signedOut {
					t.Error("the session lives")
				}
			}},
			{name: "by key", method: "DELETE", path: path, status: 204},
			{name: "from elsewhere", method: "DELETE", path: path, key: "-", header: browserHeader("Origin", "https://evil.example"), status: 403, code: "forbidden"},
		},
		"streamEvents": {
			{name: "ok", method: "GET", path: "/v1/events", status: 200, check: func(t *testing.T, _ *stub, r *http.Response) {
				t.Helper()
				if got := r.Header.Get("Content-Type"); got != "text/event-stream" {
					t.Errorf("Content-Type = %q", got)
				}
			}},
			{name: "by session", method: "GET", path: "/v1/events", key: "-", header: browserHeader(), status: 200},
			{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: "GET", path: "/v1/events", status: 503, code: "unavailable"},
			{name: "no key", method: "GET", path: "/v1/events", key: "-", status: 401, code: "unauthorized"},
		},
	}
}

// TestSessionOfAWebSocket: a browser's WebSocket has the session, if a page of this
// origin opens it.
func TestSessionOfAWebSocket(t *testing.T) {
	server := serve(t, &stub{}, nil)
	for name, c := range map[string]struct {
		header    http.Header
		protocols []string
		want      int
	}{
		"this page":               {http.Header{"Origin": {"http://" + server.address}}, []string{protocolText, proofProtocol + testProof}, 101},
		"without the proof":       {http.Header{"Origin": {"http://" + server.address}}, []string{protocolText}, 401},
		"another page":            {http.Header{"Origin": {"http://evil.example"}}, []string{protocolText, proofProtocol + testProof}, 403},
		"a page of a sandbox":     {http.Header{"Origin": {"null"}}, []string{protocolText, proofProtocol + testProof}, 403},
		"a page of another port":  {http.Header{"Origin": {"http://127.0.0.1:1"}}, []string{protocolText, proofProtocol + testProof}, 403},
		"no page":                 {http.Header{}, []string{protocolText, proofProtocol + testProof}, 403},
		"two pages at a time":     {http.Header{"Origin": {"http://" + server.address, "http://evil.example"}}, []string{protocolText, proofProtocol + testProof}, 403},
		"a page of the same site": {http.Header{"Origin": {"http://" + server.address}, "Sec-Fetch-Site": {"same-site"}}, []string{protocolText, proofProtocol + testProof}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			c.header.Set("Cookie", "wrenn_session="+testCookie)
			conn, resp, err := websocket.Dial(t.Context(), "ws://"+server.address+at+"/exec/stream", &websocket.DialOptions{HTTPHeader: c.header, Subprotocols: c.protocols})
			if resp == nil {
				t.Fatal(err)
			}
			if resp.Body != nil {
				defer resp.Body.Close()
			}
			if resp.StatusCode != c.want {
				t.Errorf("status = %d, want %d", resp.StatusCode, c.want)
			}
			if conn != nil {
				if conn.Subprotocol() != protocolText {
					t.Errorf("selected %q", conn.Subprotocol())
				}
				_ = conn.CloseNow()
			}
		})
	}
}

// TestEvents: a stream has what changes, and does not outlive the session.
func TestEvents(t *testing.T) {
	first := "event: snapshot\ndata: {\"sandboxes\":[{"
	rest := "],\"dropped\":[]}\n\n:\n\nevent: change\ndata: {\"sandboxes\":[],\"dropped\":[\"" + missingID + "\"]}\n\n"
	for uses, whole := range map[int]bool{1: false, 0: true} {
		server := serve(t, &stub{sessionUses: uses}, nil)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+server.address+"/v1/events", nil)
		testkit.Must(t, err)
		req.Header = browserHeader()
		resp, err := http.DefaultClient.Do(req)
		testkit.Must(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		testkit.Must(t, err)
		if resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(text), first) || strings.HasSuffix(string(text), rest) != whole {
			t.Errorf("a session for %d requests (0: any number): %s %q", uses, resp.Status, text)
		}
	}
}
