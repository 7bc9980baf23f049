package e2b

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// TestEgressProxy: the host of a sandbox gets the proxy and its password, also after it has
// lost it, for copies and when it changes; no answer of the API and no row has it.
func TestEgressProxy(t *testing.T) {
	s := newSurface(t)
	const password = "never-in-an-answer"
	proxy := func(password string) string {
		return `{"network":{"egressProxy":{"address":"proxy.example.com:1080","username":"me","password":"` + password + `","tls":{"enabled":true,"serverName":"p.example.com"}}},"templateID":"base"}`
	}
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", proxy(password), 201)
	id := wrenn.SandboxID(made["sandboxID"].(string))
	at := "/sandboxes/" + string(id)
	wantPassword := func(id wrenn.SandboxID, want string) {
		t.Helper()
		testkit.WaitNoError(t, "the host has the password", func() error {
			if got := s.agent.Secrets(id); got[wrenn.ProxyPasswordSecret] != want {
				return fmt.Errorf("the host has %v, want %q", got, want)
			}
			return nil
		})
	}
	wantPassword(id, password)
	want := map[string]any{"egressProxy": map[string]any{
		"address": "proxy.example.com:1080", "username": "me", "tls": map[string]any{"enabled": true, "serverName": "p.example.com"},
	}}
	got, _, _ := s.call(t, "GET", at, "", 200)
	if diff := cmp.Diff(want, got["network"]); diff != "" {
		t.Error(diff)
	}
	row, err := s.service.Sandbox(t.Context(), s.caller, id)
	testkit.Must(t, err)
	if p := row.Network.Proxy; p == nil || p.Password != "" || len(p.Sealed) == 0 || strings.Contains(string(p.Sealed), password) {
		t.Errorf("the row has %+v", p)
	}

	_, copies, _ := s.call(t, "POST", at+"/fork", `{}`, 201)
	copied := wrenn.SandboxID(copies[0].(map[string]any)["sandbox"].(map[string]any)["sandboxID"].(string))
	wantPassword(copied, password)
	s.call(t, "POST", "/secrets", `{"name":"any","value":"x"}`, 201)
	s.agent.ForgetSecrets(id)
	s.call(t, "POST", "/secrets/any", `{"value":"y"}`, 200) // hosts are compared with rows
	wantPassword(id, password)

	s.call(t, "PUT", at+"/network", `{"egressProxy":{"address":"192.0.2.7:1080","username":"me","password":"another"}}`, 204)
	wantPassword(id, "another")
	wantPassword(copied, password)
	s.call(t, "PUT", at+"/network", `{"egressProxy":null}`, 204)
	wantPassword(id, "")
	for _, bad := range []string{
		`{"address":"proxy.example.com"}`, `{"address":"http://proxy.example.com:1"}`, `{"address":"proxy.example.com:0"}`,
		`{"address":"[::1]:1080"}`, `{"address":"192.0.2.7:1","username":"me"}`, `{"address":"192.0.2.7:1","password":"x"}`,
		`{"address":"192.0.2.7:1","tls":{"enabled":false,"serverName":"x"}}`, `{"address":"192.0.2.7:1","tls":{"enabled":true,"caCert":"x"}}`,
	} {
		s.call(t, "PUT", at+"/network", `{"egressProxy":`+bad+`}`, 400)
	}
}
