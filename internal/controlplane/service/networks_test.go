package service_test

import (
	"context"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// TestPoliciesOfTeamsAndTemplates: a new sandbox follows them, and changes reach those
// that run or are paused, of this team and template alone.
func TestPoliciesOfTeamsAndTemplates(t *testing.T) {
	t.Parallel()
	agent := &hosttest.Agent{}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	ctx, c := t.Context(), w.caller
	deny := func(rules ...string) wrenn.NetworkPolicy {
		p, err := wrenn.ParseNetworkPolicy(false, nil, rules)
		testkit.Must(t, err)
		return p
	}
	// layers returns what the host follows of a sandbox, and its own rules.
	layers := func(id wrenn.SandboxID) (text string) {
		policy := agent.Policy(id)
		for _, l := range policy.GetLayers() {
			text += l.GetLayer() + ":" + l.GetDeny()[0] + " "
		}
		for _, rule := range policy.GetDeny() {
			text += rule
		}
		return text
	}
	becomes := func(id wrenn.SandboxID, want string) {
		t.Helper()
		testkit.WaitUntil(t, "the host follows "+want, func() bool { return layers(id) == want })
	}
	testkit.Must(t, s.SetTeamNetwork(ctx, c, deny("192.0.2.1", "evil.test")))
	create := func(network wrenn.NetworkPolicy) wrenn.SandboxID {
		t.Helper()
		sb, err := s.CreateSandbox(ctx, c, service.CreateSandbox{SandboxSpec: wrenn.SandboxSpec{Network: network}})
		testkit.Must(t, err)
		if len(sb.Network.Layers) != 0 {
			t.Errorf("the row has layers: %+v", sb.Network)
		}
		return sb.ID
	}
	plain, own := create(wrenn.NetworkPolicy{}), create(deny("192.0.2.3"))
	if got := layers(plain) + "; " + layers(own); got != "team:192.0.2.1/32 ; team:192.0.2.1/32 192.0.2.3/32" {
		t.Errorf("new sandboxes follow %q", got)
	}
	_, err := s.PauseSandbox(ctx, c, own)
	testkit.Must(t, err)
	testkit.Must(t, s.SetTemplateNetwork(ctx, c, "base", deny("192.0.2.2")))
	becomes(plain, "team:192.0.2.1/32 template:192.0.2.2/32 ")
	becomes(own, "team:192.0.2.1/32 template:192.0.2.2/32 192.0.2.3/32")
	_, err = s.SetNetwork(ctx, c, own, deny("192.0.2.4"))
	testkit.Must(t, err)
	if got := layers(own); got != "team:192.0.2.1/32 template:192.0.2.2/32 192.0.2.4/32" {
		t.Errorf("after a change of the sandbox's policy: %q", got)
	}
	if p, err := s.Network(ctx, c, own); err != nil || len(p.Layers) != 2 || len(p.Deny) != 1 {
		t.Errorf("Network() = %+v, %v", p, err)
	}

	testkit.Must(t, s.SetTeamNetwork(ctx, c, wrenn.NetworkPolicy{}))
	becomes(plain, "template:192.0.2.2/32 ")
	testkit.Must(t, s.SetTemplateNetwork(ctx, c, "base", wrenn.NetworkPolicy{}))
	becomes(plain, "")
	becomes(own, "192.0.2.4/32")

	stranger := w.team(t, "stranger")
	testkit.Must(t, s.SetTeamNetwork(ctx, stranger, deny("192.0.2.9")))
	if p, err := s.TeamNetwork(ctx, c); err != nil || !p.IsZero() {
		t.Errorf("the policy of another team: %+v, %v", p, err)
	}
	_, err = s.TemplateNetwork(ctx, c, "none")
	testkit.WantCode(t, err, wrenn.NotFound)
	testkit.WantCode(t, s.SetTemplateNetwork(ctx, c, "none", deny("192.0.2.9")), wrenn.NotFound)
	testkit.WantCode(t, s.SetTeamNetwork(ctx, c, wrenn.NetworkPolicy{Headers: []wrenn.HeaderRule{{}}}), wrenn.Invalid)
}

// TestPoliciesOfBuilds: the steps and commands of a build follow the team's policy, as it
// is when they begin; a build on a host that does not know that fails.
func TestPoliciesOfBuilds(t *testing.T) {
	t.Parallel()
	asked := make(chan *pb.NetworkPolicy, 1)
	agent := &hosttest.Agent{Build: func(_ context.Context, req *pb.BuildTemplateRequest, _ func(string)) error {
		asked <- req.GetNetworkPolicy()
		return nil
	}}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	build := func() (*wrenn.Build, *pb.NetworkPolicy) {
		t.Helper()
		b := built(t, s, w.caller, service.BuildTemplate{Name: "x", Network: &wrenn.NetworkPolicy{DenyByDefault: true}})
		return b, <-asked
	}
	if b, policy := build(); b.State != wrenn.BuildReady || policy != nil { // that of the template is for sandboxes
		t.Errorf("without a policy of the team: %s, %v", b.State, policy)
	}
	deny, err := wrenn.ParseNetworkPolicy(false, nil, []string{"192.0.2.1"})
	testkit.Must(t, err)
	testkit.Must(t, s.SetTeamNetwork(t.Context(), w.caller, deny))
	b, policy := build()
	if layers := policy.GetLayers(); b.State != wrenn.BuildReady || len(layers) != 1 || layers[0].GetLayer() != "team" || layers[0].GetDeny()[0] != "192.0.2.1/32" || policy.GetDenyByDefault() {
		t.Errorf("with one: %s, %v", b.State, policy)
	}
	agent.NoBuildPolicies = true
	if b, _ := build(); b.State != wrenn.BuildFailed || !strings.Contains(b.Reason, "too old to follow") {
		t.Errorf("on an older host: %s, %s", b.State, b.Reason)
	}
}
