package service_test

import (
	"math"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/hostagent/v1"
)

// TestHostThatLies: a host reports sandboxes of another host in states that they are not
// in, with epochs that do not exist, and ids that are none. It changes nothing for the other
// host, and what it says is kept for an operator.
func TestHostThatLies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{}, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	for _, id := range []wrenn.HostID{"h1", "h2"} {
		seesHost(t, s, id, "each host answers", func(h *service.HostState) bool { return h.Reachable })
	}
	_, err := s.CordonHost(t.Context(), w.caller, "h2")
	testkit.Must(t, err)
	runs, ends, paused := create(t, s, w.caller), create(t, s, w.caller), create(t, s, w.caller)
	_, err = s.PauseSandbox(t.Context(), w.caller, paused.ID)
	testkit.Must(t, err)

	liar := w.on("h2")
	none := wrenn.NewSandboxID()
	liar.EndFor(ends.ID, wrenn.ObservedFailed, pb.EndCause_END_CAUSE_UNSPECIFIED, "it is mine\x00, and it has ended\x1b[31m")
	liar.Put(paused.ID, wrenn.ObservedRunning)
	liar.Claim(runs.ID, wrenn.ObservedPaused, math.MaxUint64)
	for _, id := range []wrenn.SandboxID{none, "", "../../etc\x00", wrenn.SandboxID(strings.Repeat("i", 1<<20))} {
		liar.Put(id, wrenn.ObservedQuarantined)
	}
	liar.Announce()
	testkit.WaitUntil(t, "what it says is reported", func() bool {
		_, unknown, err := s.Hosts(t.Context())
		reported := map[wrenn.SandboxID]bool{}
		for _, u := range unknown {
			reported[u.ID] = u.Host == "h2"
		}
		return err == nil && reported[none] && reported[paused.ID] && reported[runs.ID]
	})
	for _, id := range []wrenn.SandboxID{runs.ID, ends.ID} {
		w.reaches(t, id, wrenn.Running)
		_, err := s.Exec(t.Context(), w.caller, id, wrenn.ExecCommand{Cmd: "echo"})
		testkit.Must(t, err)
	}
	sb := w.reaches(t, paused.ID, wrenn.Paused)
	if sb.Host != "h1" || len(w.on("h1").Sandboxes()) != 3 {
		t.Errorf("%+v; the host has %v", sb, w.on("h1").Sandboxes())
	}
	_, err = s.ResumeSandbox(t.Context(), w.caller, paused.ID)
	testkit.Must(t, err)
	if now := w.reaches(t, runs.ID, wrenn.Running); now.Host != "h1" || now.Epoch != runs.Epoch {
		t.Errorf("%+v", now)
	}
}
