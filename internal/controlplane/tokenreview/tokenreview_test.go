package tokenreview

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

const (
	uid   = "1f0c9d3e-7a52-4b1e-9c88-3f2a6b7c8d9e"
	token = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
)

// cluster answers token reviews as Kubernetes does.
type cluster struct {
	t      *testing.T
	code   int
	answer string // in place of a review
	status map[string]any
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in review
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Method != http.MethodPost || r.URL.Path != path ||
		in.Kind != "TokenReview" || in.APIVersion != "authentication.k8s.io/v1" || in.Spec.Token != token || in.Spec.Audiences[0] != DefaultAudience {
		c.t.Errorf("asked %s %s with %+v, %v", r.Method, r.URL, in, err)
	}
	if r.Header.Get("Authorization") != "Bearer own" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.WriteHeader(c.code)
	if c.answer != "" {
		_, _ = w.Write([]byte(c.answer))
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": map[string]any{}, "status": c.status})
}

// accepted is the status of the token that Kubernetes projects, for an account.
func accepted(account string, extra map[string]any) map[string]any {
	return map[string]any{
		"authenticated": true, "audiences": []string{DefaultAudience},
		"user": map[string]any{"username": account, "uid": "x", "groups": []string{"system:serviceaccounts"}, "extra": extra},
	}
}

func nodeExtra() map[string]any {
	return map[string]any{nodeNameInfo: []string{"node1"}, nodeUIDInfo: []string{uid}, "authentication.kubernetes.io/pod-name": []string{"p"}}
}

const hosts = accountUser + "wrenn:wrenn-host-agent"

func newReviewer(t *testing.T, c *cluster) (*Reviewer, Config) {
	t.Helper()
	server := httptest.NewTLSServer(c)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	cfg := Config{ServiceAccounts: []string{"wrenn/wrenn-host-agent"}, API: server.URL, CA: filepath.Join(dir, "ca.crt"), Token: filepath.Join(dir, "token")}
	testkit.Must(t, os.WriteFile(cfg.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	testkit.Must(t, os.WriteFile(cfg.Token, []byte("own\n"), 0o600))
	r, err := cfg.Open(os.Getenv)
	testkit.Must(t, err)
	return r, cfg
}

func TestReview(t *testing.T) {
	c := &cluster{t: t, code: http.StatusCreated, status: accepted(hosts, nodeExtra())}
	r, cfg := newReviewer(t, c)
	node, err := r.Review(t.Context(), token)
	if err != nil || node.Name != "node1" || node.Host != "k8s-"+uid {
		t.Errorf("review = %+v, %v", node, err)
	}
	// This program's own token is read again each time: Kubernetes replaces it.
	testkit.Must(t, os.WriteFile(cfg.Token, []byte("old"), 0o600))
	_, err = r.Review(t.Context(), token)
	if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "tokenreviews") {
		t.Errorf("with an old token: %v", err)
	}
	testkit.Must(t, os.Remove(cfg.Token))
	if _, err = r.Review(t.Context(), token); wrenn.CodeOf(err) != wrenn.Unavailable {
		t.Errorf("without a token: %v", err)
	}
}

func TestReviewRefuses(t *testing.T) {
	c := &cluster{t: t, code: http.StatusCreated}
	r, _ := newReviewer(t, c)
	unbound, elsewhere := nodeExtra(), accepted(hosts, nodeExtra())
	delete(unbound, nodeUIDInfo)
	elsewhere["audiences"] = []string{"https://kubernetes.default.svc"}
	odd := nodeExtra()
	odd[nodeUIDInfo] = []string{"../x"}
	refused := func(why string) map[string]any { return map[string]any{"authenticated": false, "error": why} }
	for name, test := range map[string]struct {
		status map[string]any
		code   wrenn.Code
		says   string
	}{
		"forged":            {refused("[invalid bearer token, square/go-jose: error in cryptographic primitive]"), wrenn.Unauthenticated, "cryptographic primitive"},
		"expired":           {refused("[invalid bearer token, service account token has expired]"), wrenn.Unauthenticated, "has expired"},
		"another audience":  {refused("token audiences [\"x\"] is invalid for the target audiences [\"wrenn-join\"]"), wrenn.Unauthenticated, "target audiences"},
		"no reason":         {map[string]any{}, wrenn.Unauthenticated, "no reason"},
		"a long reason":     {refused(strings.Repeat("x\n", 10000)), wrenn.Unauthenticated, "x x"},
		"audience ignored":  {elsewhere, wrenn.Unauthenticated, "is not for the audience wrenn-join"},
		"another account":   {accepted(accountUser+"wrenn:default", nodeExtra()), wrenn.PermissionDenied, "service_accounts"},
		"another namespace": {accepted(accountUser+"other:wrenn-host-agent", nodeExtra()), wrenn.PermissionDenied, "service_accounts"},
		"a user":            {accepted("wrenn/wrenn-host-agent", nodeExtra()), wrenn.PermissionDenied, "service_accounts"},
		"not bound":         {accepted(hosts, unbound), wrenn.Unauthenticated, "not bound"},
		"an odd node":       {accepted(hosts, odd), wrenn.Invalid, "no node"},
	} {
		c.status = test.status
		_, err := r.Review(t.Context(), token)
		if wrenn.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.says) || len(err.Error()) > 600 {
			t.Errorf("%s: %v, want %s with %q", name, err, test.code, test.says)
		}
	}
}

func TestAnswersOfOthers(t *testing.T) {
	c := &cluster{t: t, answer: "x"}
	r, _ := newReviewer(t, c)
	for code, want := range map[int]wrenn.Code{
		http.StatusForbidden: wrenn.FailedPrecondition, http.StatusInternalServerError: wrenn.Unavailable,
		http.StatusOK: wrenn.Unavailable, http.StatusFound: wrenn.Unavailable,
	} {
		c.code = code
		if _, err := r.Review(t.Context(), token); wrenn.CodeOf(err) != want {
			t.Errorf("status %d: %v", code, err)
		}
	}
	c.code, c.answer = http.StatusOK, `{"kind":"Status","status":{}}`
	if _, err := r.Review(t.Context(), token); wrenn.CodeOf(err) != wrenn.Unavailable {
		t.Errorf("another kind: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	_, good := newReviewer(t, &cluster{t: t})
	none := func(string) string { return "" }
	for name, change := range map[string]func(*Config){
		"service_accounts": func(c *Config) { c.ServiceAccounts = []string{"wrenn-host-agent"} },
		"in a pod":         func(c *Config) { c.API = "" },
		"https://":         func(c *Config) { c.API = "http://127.0.0.1" },
		"ca":               func(c *Config) { c.CA = c.Token },
		"token":            func(c *Config) { c.Token += "x" },
	} {
		cfg := good
		change(&cfg)
		if _, err := cfg.Open(none); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := good
	cfg.API = ""
	inPod := map[string]string{"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
	if r, err := cfg.Open(func(name string) string { return inPod[name] }); err != nil || r.base != "https://[fd00::1]:443" {
		t.Errorf("in a pod: %+v, %v", r, err)
	}
}

// TestGet: other packages read from the API as the same service account.
func TestGet(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.RequestURI() != "/api/v1/nodes?limit=1" || r.Header.Get("Authorization") != "Bearer own" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	cfg := Config{ServiceAccounts: []string{"wrenn/wrenn-host-agent"}, API: server.URL, CA: filepath.Join(dir, "ca.crt"), Token: filepath.Join(dir, "token")}
	testkit.Must(t, os.WriteFile(cfg.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	testkit.Must(t, os.WriteFile(cfg.Token, []byte("own\n"), 0o600))
	r, err := cfg.Open(os.Getenv)
	testkit.Must(t, err)
	resp, err := r.Get(t.Context(), "/api/v1/nodes?limit=1")
	testkit.Must(t, err)
	testkit.Must(t, resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %d", resp.StatusCode)
	}
}
