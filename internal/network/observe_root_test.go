//go:build root

package network

import (
	"fmt"
	"sync"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// seen collects events.
type seen struct {
	mu     sync.Mutex
	events []wrenn.EgressEvent
}

func (s *seen) record(e wrenn.EgressEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// has reports whether an event was recorded.
func (s *seen) has(verdict wrenn.EgressVerdict, protocol wrenn.EgressProtocol, to, reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		where := fmt.Sprintf("%s:%d", e.Address, e.Port)
		if e.Name != "" {
			where = e.Name
		}
		if e.Verdict == verdict && e.Protocol == protocol && where == to && e.Reason == reason {
			return true
		}
	}
	return false
}

func (s *seen) want(t *testing.T, verdict wrenn.EgressVerdict, protocol wrenn.EgressProtocol, to, reason string) {
	t.Helper()
	testkit.WaitUntil(t, fmt.Sprintf("%s by %s to %s is recorded", verdict, protocol, to), func() bool {
		return s.has(verdict, protocol, to, reason)
	})
}

func TestObserve(t *testing.T) {
	_, s, g := policyLab(t, nil)
	var events seen
	testkit.Must(t, s.Observe(events.record))
	testkit.Must(t, s.SetPolicy(t.Context(), policy(t, false, nil, []string{worldOther})))
	dropped := func(rule string) func() uint64 {
		return func() uint64 { return counted(t, s.Namespace(), slotTable, rule) }
	}
	reaches(t, g, worldPublic)
	events.want(t, wrenn.EgressAllowed, wrenn.EgressTCP, worldPublic+":80", "")
	for _, network := range []string{"tcp4", "udp4"} {
		knock(t, g.path, network, worldOther+":80", dropped("denied by the sandbox's policy"))
		events.want(t, wrenn.EgressDenied, wrenn.EgressProtocol(network[:3]), worldOther+":80", "the sandbox's network policy does not allow this address (deny "+worldOther+")")
	}
	knock(t, g.path, "tcp4", metadata+":80", dropped("to a closed network"))
	events.want(t, wrenn.EgressDenied, wrenn.EgressTCP, metadata+":80", reasons[logClosed])
	testkit.WaitUntil(t, "another protocol is recorded", func() bool {
		sendRaw(t, g.path, 253)
		return events.has(wrenn.EgressDenied, "ip-253", worldPublic+":0", reasons[logProtocol])
	})

	var later seen // of a sandbox that takes the slot over
	testkit.Must(t, s.Observe(later.record))
	reaches(t, g, worldPublic)
	later.want(t, wrenn.EgressAllowed, wrenn.EgressTCP, worldPublic+":80", "")
	g.stop()
	testkit.Must(t, s.Release(t.Context()))
	if err := s.Observe(later.record); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("Observe after Release = %v", err)
	}
}

func TestObserveNames(t *testing.T) {
	n := newNamesLab(t)
	var events seen
	testkit.Must(t, n.slot.Observe(events.record))
	testkit.Must(t, n.slot.SetPolicy(t.Context(), policy(t, true, []string{"example.com"}, nil)))
	client := n.client(t, somewhere)
	n.get(t, client, "http://example.com/")
	n.get(t, client, "https://other.test/")
	n.ask(t, "udp4", "other.test.", 1)
	client.CloseIdleConnections()
	events.want(t, wrenn.EgressAllowed, wrenn.EgressHTTP, "example.com", "")
	events.want(t, wrenn.EgressEnded, wrenn.EgressHTTP, "example.com", "")
	events.want(t, wrenn.EgressDenied, wrenn.EgressTLS, "other.test", "the sandbox's network policy does not allow this name at this port (default deny)")
	events.want(t, wrenn.EgressDenied, wrenn.EgressDNS, "other.test", "the sandbox's network policy does not allow this name (default deny)")
}
