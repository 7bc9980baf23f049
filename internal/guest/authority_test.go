package guest_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/testkit"
)

// trusting is a machine that trusts authorities.
type trusting struct {
	failing
	trusted *[]string
}

// Trust records what is trusted.
func (m trusting) Trust(bundle string) (map[string]string, error) {
	*m.trusted = append(*m.trusted, bundle)
	return map[string]string{"SSL_CERT_FILE": "/bundle", "A": "trust"}, nil
}

// TestTrust: an authority comes with /init or /trust, and programs get the variables by
// which they trust it, unless the sandbox sets them.
func TestTrust(t *testing.T) {
	var trusted []string
	agent := guest.New(guest.Config{Machine: trusting{trusted: &trusted}, Log: discard(), RunDir: t.TempDir()})
	defer agent.Close()
	server := httptest.NewServer(agent.Handler())
	defer server.Close()
	post := func(path, body string, want int) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, strings.NewReader(body))
		testkit.Must(t, err)
		resp, err := server.Client().Do(req)
		testkit.Must(t, err)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s %s: %s", path, body, resp.Status)
		}
	}
	post("/init", `{"envVars":{"A":"own"},"caBundle":"one"}`, http.StatusNoContent)
	post("/trust", `{"caBundle":"two"}`, http.StatusNoContent)
	post("/trust", `{}`, http.StatusBadRequest)
	if diff := cmp.Diff([]string{"one", "two"}, trusted); diff != "" {
		t.Error(diff)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/envs", nil)
	testkit.Must(t, err)
	resp, err := server.Client().Do(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	var env map[string]string
	testkit.Must(t, json.NewDecoder(resp.Body).Decode(&env))
	if diff := cmp.Diff(map[string]string{"A": "own", "SSL_CERT_FILE": "/bundle"}, env); diff != "" {
		t.Error(diff)
	}
}
