package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/testkit"
)

// TestConfigurationOfAMember: after joining the agent listens by mutual TLS, unless its
// file says otherwise.
func TestConfigurationOfAMember(t *testing.T) {
	state := t.TempDir()
	dir := filepath.Join(state, "fleet")
	testkit.Must(t, os.Mkdir(dir, 0o700))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "host.json"), []byte(`{"host":"h2","control_plane":"https://api","listen":":49980"}`), 0o600))
	c := config{State: state}
	testkit.Must(t, c.Complete(nil))
	m, err := c.member()
	if err != nil || m == nil || m.Host() != "h2" || c.Listen != ":49980" || c.TLS.Certificate != filepath.Join(dir, "host.pem") || c.TLS.ClientCA != filepath.Join(dir, "authority.pem") {
		t.Errorf("it is %+v, %v, %v", c, m, err)
	}
	for name, c := range map[string]config{
		"a socket": {State: state, Listen: "unix:/run/x"},
		"no state": {State: t.TempDir()},
	} {
		testkit.Must(t, c.Complete(nil))
		if m, err := c.member(); err != nil || m != nil || c.TLS.Certificate != "" {
			t.Errorf("%s: %+v, %v, %v", name, c, m, err)
		}
	}
	own := config{State: state}
	own.TLS.Certificate = "/own"
	testkit.Must(t, own.Complete(nil))
	if m, err := own.member(); err != nil || m != nil || own.TLS.Key != "" {
		t.Errorf("with other files: %+v, %v, %v", own, m, err)
	}
}

func TestJoinPrintsWhyNot(t *testing.T) {
	plane := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/host-joins" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error":{"code":"unauthorized","message":"the token was used"}}`))
		}
	}))
	t.Cleanup(plane.Close)
	var out bytes.Buffer
	err := command(t.Context(), []string{"--state", t.TempDir(), "join", plane.URL, hostjoin.NewToken("h2", "a").String()}, streams{out: &out, err: &out})
	if err == nil || !strings.Contains(err.Error(), "the token was used") || out.Len() > 0 {
		t.Errorf("join = %v, printed %q", err, &out)
	}
}
