package service_test

import (
	"fmt"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
)

// seeAll waits until a replica reaches that many hosts h1, h2, ….
func seeAll(t *testing.T, s *service.Service, n int) {
	t.Helper()
	for i := range n {
		seesHost(t, s, hostID(i), "a replica reaches each host", func(h *service.HostState) bool { return h.Reachable })
	}
}

// TestRequires: labels of the agent and of the operator count, and what no host has is
// told with the numbers.
func TestRequires(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{Labels: map[string]string{"gpu": "a10", "disk": "hdd"}, Zone: "x"}, &hosttest.Agent{}, &hosttest.Agent{Zone: "y"})
	s, _ := w.replica(t, nil)
	seeAll(t, s, 3)
	w.sql(t, `UPDATE hosts SET labels = '{"disk": "nvme"}', zone = 'z' WHERE id IN ('h1', 'h2')`)
	seesHost(t, s, "h1", "the row wins", func(h *service.HostState) bool {
		return h.Zone == "z" && h.Labels["disk"] == "nvme" && h.Labels["gpu"] == "a10"
	})
	for i, c := range []struct {
		requires map[string]string
		want     wrenn.HostID
	}{
		{map[string]string{"gpu": "a10"}, "h1"},
		{map[string]string{"zone": "y"}, "h3"},
		{map[string]string{"disk": "nvme", "zone": "z", "gpu": "a10"}, "h1"},
	} {
		for range 3 {
			sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{Requires: c.requires})
			if err != nil || sb.Host != c.want || len(sb.Requires) != len(c.requires) {
				t.Fatalf("%d: %+v, %v", i, sb, err)
			}
		}
	}
	_, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{Requires: map[string]string{"gpu": "h100"}})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "that requires gpu=h100: of 3, 3 do not have the labels")
	_, err = s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{Requires: map[string]string{"gpu": "a b"}})
	testkit.WantCode(t, err, wrenn.Invalid)
	if n := w.dump(t, `SELECT count(*)::text FROM sandboxes`); n != "9" {
		t.Errorf("%s rows: a create that no host fits has none", n)
	}
	fork, err := s.ForkSandbox(t.Context(), w.caller, firstOn(t, s, w, "h1").ID, service.ForkSandbox{Count: 1})
	if err != nil || fork.Sandboxes[0].Requires["gpu"] != "a10" {
		t.Errorf("fork: %+v, %v", fork, err)
	}
}

func firstOn(t *testing.T, s *service.Service, w *world, host wrenn.HostID) *wrenn.Sandbox {
	t.Helper()
	page, _, err := s.ListSandboxes(t.Context(), w.caller, service.ListSandboxes{})
	testkit.Must(t, err)
	for i := range page {
		if page[i].Host == host {
			return &page[i]
		}
	}
	t.Fatalf("host %s has no sandbox", host)
	return nil
}

// TestTeamsAreSpread: the sandboxes of a team go to both zones.
func TestTeamsAreSpread(t *testing.T) {
	t.Parallel()
	large := &hosttest.Agent{Zone: "x", Capacity: hostagentv1.Capacity{MemoryMb: 1 << 24}} // the emptier one by far
	w := newWorld(t, large, &hosttest.Agent{Zone: "y"})
	s, _ := w.replica(t, nil)
	seeAll(t, s, 2)
	on := map[wrenn.HostID]int{}
	for range 8 {
		on[create(t, s, w.caller).Host]++
	}
	if on["h1"] != 4 || on["h2"] != 4 {
		t.Errorf("spread: %v", on)
	}
	b, _ := w.replica(t, nil) // which reads where they are
	seeAll(t, b, 2)
	one, two := create(t, b, w.caller).Host, create(t, b, w.caller).Host
	if one == two {
		t.Errorf("both went to %s", one)
	}
}

// TestExplainPlacement says why a sandbox is where it is, and what another host looks like.
func TestExplainPlacement(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{Labels: map[string]string{"gpu": "a10"}}, &hosttest.Agent{}, &hosttest.Agent{Labels: map[string]string{"gpu": "a10"}})
	s, _ := w.replica(t, nil)
	seeAll(t, s, 3)
	_, err := s.CordonHost(t.Context(), w.caller, "h3")
	testkit.Must(t, err)
	sb, err := s.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{Requires: map[string]string{"gpu": "a10"}})
	testkit.Must(t, err)
	p, err := s.ExplainPlacement(t.Context(), w.caller, sb.ID)
	testkit.Must(t, err)
	if len(p.Decisions) != 1 || p.Decisions[0].Host != "h1" || p.Decisions[0].Reason != "best of 1 hosts that fit, of 3: 0 % of its memory used" {
		t.Errorf("decisions: %+v", p.Decisions)
	}
	var got []string
	for _, h := range p.Hosts {
		got = append(got, fmt.Sprint(h.Host, h.Here, h.Fits, " ", h.Reason))
	}
	if len(p.Hosts) != 3 || !p.Hosts[0].Here || !p.Hosts[0].Fits || p.Hosts[0].Host != "h1" || p.Hosts[1].Reason != "does not have the labels that the sandbox requires" ||
		p.Hosts[2].Reason != "takes no new sandboxes: an operator has cordoned it" {
		t.Errorf("hosts: %q", got)
	}
	testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, sb.ID))
	if p, err = s.ExplainPlacement(t.Context(), w.caller, sb.ID); err != nil || len(p.Hosts) != 0 || len(p.Decisions) != 1 {
		t.Errorf("ended: %+v, %v", p, err)
	}
	_, err = s.ExplainPlacement(t.Context(), w.caller, wrenn.NewSandboxID())
	testkit.WantCode(t, err, wrenn.NotFound)
}
