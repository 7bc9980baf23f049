package postgres_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

func TestIngress(t *testing.T) {
	s := pgtest.Store(t)
	own := team(t, s)
	want := func(id wrenn.SandboxID, want wrenn.Ingress) {
		t.Helper()
		got, err := s.Ingress(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Ingress() (-want +got):\n%s", diff)
		}
	}
	private := wrenn.Ingress{Private: true, MaskHost: "localhost:${PORT}", HTTPSPorts: []uint16{443, 65535}}
	sb := create(t, s, wrenn.Sandbox{Team: own, Ingress: private})
	want(sb.ID, private)
	want(create(t, s, wrenn.Sandbox{Team: own}).ID, wrenn.Ingress{})
	copied := create(t, s, wrenn.Sandbox{Team: own, Parent: sb.ID})
	want(copied.ID, private)
	for _, state := range []wrenn.State{wrenn.Stopping, wrenn.Stopped} {
		var err error
		copied, err = s.MoveSandbox(t.Context(), copied, postgres.Move{To: state, Actor: "test"})
		testkit.Must(t, err)
	}
	_, err := s.Ingress(t.Context(), copied.ID)
	testkit.WantCode(t, err, wrenn.NotFound)
	_, err = s.Ingress(t.Context(), wrenn.NewSandboxID())
	testkit.WantCode(t, err, wrenn.NotFound)
	live, err := s.LiveSandboxes(t.Context(), 2)
	if err != nil || len(live) != 2 {
		t.Errorf("LiveSandboxes() = %v, %v; want two", live, err)
	}
}
