package e2b

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// TestHeaderRules: the host of a sandbox gets the secrets that its header rules need, also
// when they change and after the host has lost them; no answer of the API has them.
func TestHeaderRules(t *testing.T) {
	s := newSurface(t)
	rules := `{"api.example.com":[{"transform":{"headers":{"Authorization":"Bearer ${e2b.secrets.Token}","X-Team":"a"}}}]}`
	create := `{"templateID":"base","network":{"rules":` + rules + `}}`
	s.call(t, "POST", "/v2/sandboxes", create, 400) // there is no such secret
	s.call(t, "POST", "/secrets", `{"name":"token","value":"first"}`, 201)
	made, _, _ := s.call(t, "POST", "/v2/sandboxes", create, 201)
	id := wrenn.SandboxID(made["sandboxID"].(string))
	wantSecrets := func(id wrenn.SandboxID, want map[string]string) {
		t.Helper()
		testkit.WaitNoError(t, "the host has the secrets", func() error {
			if got := s.agent.Secrets(id); !cmp.Equal(got, want) {
				return fmt.Errorf("the host has %v, want %v", got, want)
			}
			return nil
		})
	}
	wantSecrets(id, map[string]string{"token": "first"})
	want := map[string]any{"rules": map[string]any{"api.example.com": []any{map[string]any{
		"transform": map[string]any{"headers": map[string]any{"Authorization": "Bearer ${e2b.secrets.Token}", "X-Team": "a"}},
	}}}}
	got, _, _ := s.call(t, "GET", "/sandboxes/"+string(id), "", 200)
	if diff := cmp.Diff(want, got["network"]); diff != "" {
		t.Error(diff)
	}

	s.call(t, "POST", "/secrets/token", `{"value":"second"}`, 200)
	wantSecrets(id, map[string]string{"token": "second"})
	_, copies, _ := s.call(t, "POST", "/sandboxes/"+string(id)+"/fork", `{}`, 201)
	copied := wrenn.SandboxID(copies[0].(map[string]any)["sandbox"].(map[string]any)["sandboxID"].(string))
	wantSecrets(copied, map[string]string{"token": "second"})
	s.agent.ForgetSecrets(id)
	s.call(t, "POST", "/secrets/token", `{"value":"third"}`, 200)
	wantSecrets(id, map[string]string{"token": "third"})
	wantSecrets(copied, map[string]string{"token": "third"})

	s.call(t, "DELETE", "/secrets/token", "", 204)
	testkit.WaitNoError(t, "the host has no secret", func() error {
		if len(s.agent.Secrets(id)) > 0 {
			return errors.New("it has")
		}
		return nil
	})
	s.call(t, "PUT", "/sandboxes/"+string(id)+"/network", `{"rules":`+rules+`}`, 400)
	s.call(t, "PUT", "/sandboxes/"+string(id)+"/network", `{}`, 204)
	s.call(t, "PUT", "/sandboxes/"+string(id)+"/network", `{"rules":{"a.test":[{"transform":{"headers":{"A":"${secrets.x"}}}]}}`, 400)
}
