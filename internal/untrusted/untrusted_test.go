package untrusted_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/untrusted"
)

func TestClient(t *testing.T) {
	reached := false
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/flood":
			w.Header().Set("X-Flood", strings.Repeat("x", 1<<20))
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/elsewhere":
			reached = true
		}
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetHTTP1(protocol == "HTTP/1.1")
		transport.Protocols.SetUnencryptedHTTP2(protocol == "HTTP/2.0")
		c := untrusted.Client(transport)
		if resp, err := c.Get(server.URL + "/flood"); err == nil {
			resp.Body.Close()
			t.Errorf("%s: a header of 1 MiB was accepted", protocol)
		}
		resp, err := c.Get(server.URL + "/redirect")
		testkit.Must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusFound || resp.Proto != protocol || reached {
			t.Errorf("%s: a redirect was answered with %s, %s; followed: %t", protocol, resp.Proto, resp.Status, reached)
		}
	}
}
