package hostclient_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/tunnel"
	"wrenn.dev/internal/wire"
)

// A connection that broke says why the host cut it, if the host knows.
func TestWhyAPortWasCut(t *testing.T) {
	for name, tc := range map[string]struct {
		why      error
		outdated bool // the host has no answer to the question
	}{
		"a pause":       {why: wrenn.Errorf(wrenn.CutByPause, "the sandbox was paused")},
		"silence":       {why: wrenn.Errorf(wrenn.NotResponding, "it does not answer")},
		"the program":   {},
		"an older host": {outdated: true},
	} {
		t.Run(name, func(t *testing.T) {
			var named string
			mux := http.NewServeMux()
			mux.HandleFunc(tunnel.HostPattern, func(w http.ResponseWriter, r *http.Request) {
				switch asked := r.URL.Query().Get(tunnel.CutParam); {
				case asked == "":
					named = r.Header.Get(tunnel.NameHeader)
					conn, err := tunnel.Accept(w)
					if err == nil {
						err = conn.Close()
					}
					testkit.Must(t, err)
				case asked != named || tc.outdated:
					w.WriteHeader(http.StatusServiceUnavailable)
				default:
					code, message := wire.ToResult(tc.why)
					_ = json.NewEncoder(w).Encode(tunnel.Refused{Code: code, Message: message})
				}
			})
			host := httptest.NewServer(mux)
			t.Cleanup(host.Close)
			c, err := hostclient.New(hostclient.Config{URL: host.URL, Deadlines: hostclient.Deadlines{Start: time.Minute}})
			testkit.Must(t, err)
			conn, err := c.DialPort(t.Context(), "i1", 80)
			testkit.Must(t, err)
			defer conn.Close()
			_, _ = io.ReadAll(conn) // to its end
			why := conn.(interface{ WhyCut(context.Context) error }).WhyCut(t.Context())
			if wrenn.CodeOf(why) != wrenn.CodeOf(tc.why) || tc.why != nil && why.Error() != tc.why.Error() {
				t.Errorf("it was cut for %v, want %v", why, tc.why)
			}
		})
	}
}
