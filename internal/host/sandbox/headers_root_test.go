//go:build root

package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

const plantedSecret = "planted-secret-of-a-header-rule"

var withHeaders = wrenn.NetworkPolicy{Headers: []wrenn.HeaderRule{{
	Host: wrenn.NetworkName{Domain: "example.com"}, Headers: []wrenn.Header{{Name: "Authorization", Text: "Bearer ${secrets.token}"}},
}}}

// TestHeaderRulesAreKept: the authority of a sandbox is kept through pause, resume, fork and
// a restart of the agent, and the guest is told of it. The secrets are in no file of the
// host, and gone with the agent.
func TestHeaderRulesAreKept(t *testing.T) {
	l := newLab(t)
	l.cfg.Adopt = true
	m := l.open(t)
	spec := wrenn.SandboxSpec{Size: small, Network: withHeaders, Secrets: wrenn.SecretValues{Tag: "one", Values: map[string]string{"token": plantedSecret}}}
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), spec)
	must(t, err)
	authority := sb.owner.Authority
	want := func(sb *Sandbox, tag string) {
		t.Helper()
		if diff := cmp.Diff(authority, sb.owner.Authority); diff != "" {
			t.Errorf("another authority: %s", diff)
		}
		if got := sb.Info(); got.SecretsTag != tag || !got.Network.Equal(withHeaders) {
			t.Errorf("secrets %q, policy %v", got.SecretsTag, got.Network)
		}
		if sb.instance != nil && sb.instance.TrustAuthority(t.Context()) != nil {
			t.Error("the guest does not know the authority")
		}
	}
	want(sb, "one")
	copies, err := sb.Fork(t.Context(), []wrenn.SandboxID{wrenn.NewSandboxID()}, nil)
	must(t, err)
	must(t, copies[0].Err)
	destroyLater(t, copies[0].Sandbox)
	want(copies[0].Sandbox, "one")
	must(t, sb.Pause(t.Context()))
	must(t, sb.Resume(t.Context()))
	want(sb, "one")
	must(t, sb.SetNetwork(t.Context(), withHeaders, wrenn.SecretValues{Tag: "two", Values: map[string]string{"token": plantedSecret + "2"}}))
	want(sb, "two")
	wantNowhere(t, filepath.Dir(filepath.Dir(sb.dir())), plantedSecret)

	must(t, copies[0].Sandbox.Destroy(t.Context()))
	m.Close()
	l.crash(t)
	m = l.open(t)
	adopted, err := m.Get(sb.ID())
	must(t, err)
	destroyLater(t, adopted)
	want(adopted, "") // the control plane sends them again
}

// wantNowhere fails if a file below dir has the text.
func wantNowhere(t *testing.T, dir, text string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // a file that is gone, or a socket
		}
		data, err := os.ReadFile(path)
		if err == nil && bytes.Contains(data, []byte(text)) {
			t.Errorf("%s has the secret", path)
		}
		return nil
	}))
}

func TestAuthorityIsMadeOnce(t *testing.T) {
	none, err := authorityFor("i", wrenn.NetworkPolicy{}, nil)
	if none != nil || err != nil {
		t.Errorf("without rules: %v, %v", none, err)
	}
	first, err := authorityFor("i", withHeaders, nil)
	must(t, err)
	for _, policy := range []wrenn.NetworkPolicy{withHeaders, {}} {
		if again, err := authorityFor("i", policy, first); err != nil || again != first {
			t.Errorf("another authority: %v", err)
		}
	}
}
