//go:build root

package sandbox

import (
	"net/http"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/network"
)

// wantToken fails unless the agent in the sandbox asks its callers for the token,
// and the host's own calls have it.
func wantToken(t *testing.T, sb *Sandbox, token string) {
	t.Helper()
	wantAlive(t, sb)
	client := &http.Client{Transport: &http.Transport{DialContext: sb.instance.Slot.DialContext, DisableKeepAlives: true}}
	want := map[string]int{"": http.StatusUnauthorized, "another": http.StatusUnauthorized, token: http.StatusOK}
	if token == "" {
		want = map[string]int{"": http.StatusOK}
	}
	for given, status := range want {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+network.EnvdAddress+"/envs", nil)
		must(t, err)
		req.Header.Set("X-Access-Token", given)
		resp, err := client.Do(req)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("sandbox %s answers %d to the token %q, want %d", sb.ID(), resp.StatusCode, given, status)
		}
	}
}

// The agent in every sandbox asks for its own token, however the sandbox was made.
func TestAccessTokens(t *testing.T) {
	l := newLab(t)
	l.network.Max = 6
	m := l.pooling(t, 1)
	wantPool(t, m, 1)
	pooled := only(t, m)
	if pooled.owner.AccessToken == "" {
		t.Error("the agent of a pooled machine has no token")
	}

	sb := ensure(t, m, wrenn.SandboxSpec{Template: "base", Size: small, AccessToken: "one"})
	wantHits(t, m, 1, 0)
	wantToken(t, sb, "one")
	id := wrenn.NewSandboxID()
	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{id}, map[wrenn.SandboxID]string{id: "two"})
	must(t, err)
	must(t, copies[0].Err)
	destroyLater(t, copies[0].Sandbox)
	wantToken(t, copies[0].Sandbox, "two")

	_, err = sb.Checkpoint(t.Context(), "saved", "")
	must(t, err)
	must(t, sb.RestoreCheckpoint(t.Context(), "saved"))
	wantToken(t, sb, "one")
	must(t, sb.Pause(t.Context()))
	must(t, sb.ResumeWithToken(t.Context(), "three"))
	wantToken(t, sb, "one")
}

// A sandbox that an older version made has no token until it is resumed. The next
// agent knows the tokens.
func TestTokensOfAnotherAgentsSandboxes(t *testing.T) {
	l := newLab(t)
	m := l.open(t)
	old, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small})
	must(t, err)
	wantToken(t, old, "")
	secured, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "base", Size: small, AccessToken: "two"})
	must(t, err)

	m = l.restart(t, m)
	old, secured = get(t, m, old.ID()), get(t, m, secured.ID())
	wantToken(t, old, "")
	wantToken(t, secured, "two")
	must(t, old.Pause(t.Context()))
	must(t, old.ResumeWithToken(t.Context(), "one"))
	wantToken(t, old, "one")

	m = l.restart(t, m)
	wantToken(t, get(t, m, old.ID()), "one")
	wantToken(t, get(t, m, secured.ID()), "two")
	must(t, m.DestroyAll(t.Context()))
}

func get(t *testing.T, m *Manager, id wrenn.SandboxID) *Sandbox {
	t.Helper()
	sb, err := m.Get(id)
	must(t, err)
	return sb
}
