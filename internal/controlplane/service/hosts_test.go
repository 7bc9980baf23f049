package service_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

// seesHost waits until the replica has a host as ok says.
func seesHost(t *testing.T, s *service.Service, id wrenn.HostID, what string, ok func(*service.HostState) bool) {
	t.Helper()
	testkit.WaitNoError(t, what, func() error {
		h, err := s.Host(t.Context(), service.Caller{}, id)
		if err == nil && !ok(h) {
			err = fmt.Errorf("%+v", h)
		}
		return err
	})
}

// TestCordonedHost: two replicas place nothing on a host that one of them cordons, and
// its sandboxes go on.
func TestCordonedHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{}, &hosttest.Agent{})
	a, _ := w.replica(t, nil)
	b, _ := w.replica(t, nil)
	for _, s := range []*service.Service{a, b} {
		for _, id := range []wrenn.HostID{"h1", "h2"} {
			seesHost(t, s, id, "a replica reaches each host", func(h *service.HostState) bool { return h.Reachable && h.Status == wrenn.HostActive && !h.Joined })
		}
	}
	old := create(t, a, w.caller)
	there, other := old.Host, wrenn.HostID("h1")
	if there == other {
		other = "h2"
	}
	for range 2 {
		if h, err := a.CordonHost(t.Context(), w.caller, there); err != nil || h.Status != wrenn.HostCordoned {
			t.Fatalf("cordoned: %+v, %v", h, err)
		}
	}
	fork := func(s *service.Service) error {
		_, err := s.ForkSandbox(t.Context(), w.caller, old.ID, service.ForkSandbox{Count: 1})
		return err
	}
	// A replica follows within moments, which only its refusal shows.
	testkit.WaitUntil(t, "the other replica follows", func() bool { return wrenn.CodeOf(fork(b)) == wrenn.Unavailable })
	testkit.WantCode(t, fork(a), wrenn.Unavailable)
	for i := range 6 {
		if sb := create(t, []*service.Service{a, b}[i%2], w.caller); sb.Host != other {
			t.Errorf("sandbox %d was placed on %s", i, sb.Host)
		}
	}
	if _, err := b.PauseSandbox(t.Context(), w.caller, old.ID); err != nil {
		t.Errorf("pause on the cordoned host: %v", err)
	}
	if back, err := b.ResumeSandbox(t.Context(), w.caller, old.ID); err != nil || back.Host != there {
		t.Errorf("resume on the cordoned host: %+v, %v", back, err)
	}

	if _, err := b.CordonHost(t.Context(), w.caller, other); err != nil {
		t.Fatal(err)
	}
	_, err := b.CreateSandbox(t.Context(), w.caller, service.CreateSandbox{})
	testkit.WantCode(t, err, wrenn.Unavailable)
	if h, err := b.UncordonHost(t.Context(), w.caller, there); err != nil || h.Status != wrenn.HostActive {
		t.Fatalf("uncordoned: %+v, %v", h, err)
	}
	if sb := create(t, b, w.caller); sb.Host != there {
		t.Errorf("the sandbox was placed on %s", sb.Host)
	}
	_, err = a.CordonHost(t.Context(), w.caller, "h9")
	testkit.WantCode(t, err, wrenn.NotFound)
	// A replica that starts begins with the rows.
	c, _ := w.replica(t, nil)
	for range 4 {
		if sb := create(t, c, w.caller); sb.Host != there {
			t.Errorf("a new replica placed a sandbox on %s", sb.Host)
		}
	}
}

// TestHostRowsAreFollowed: a change is told at once; answers of hosts are none.
func TestHostRowsAreFollowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	changed, ended := make(chan struct{}, 16), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- w.store.FollowHosts(ctx, func() { changed <- struct{}{} }) }()
	<-changed // it listens
	testkit.Must(t, w.store.AddConfiguredHosts(t.Context(), map[wrenn.HostID]string{"h1": "http://127.0.0.1:1"}))
	<-changed
	for range 3 {
		testkit.Must(t, w.store.SaveHost(t.Context(), "h1", "http://127.0.0.1:1", wrenn.HostInfo{Driver: "qemu", Instance: "x"}))
	}
	_, err := w.store.SetHostStatus(t.Context(), "h1", wrenn.HostCordoned, wrenn.HostActive)
	testkit.Must(t, err)
	<-changed
	if n := len(changed); n != 0 {
		t.Errorf("%d changes more", n)
	}
	_, err = w.store.SetHostStatus(t.Context(), "h1", wrenn.HostDraining, wrenn.HostActive)
	testkit.WantCode(t, err, wrenn.FailedPrecondition)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

func TestOnlyOperatorsMakeOperators(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, _ := w.replica(t, nil)
	ask := service.NewKey{Name: "ops", Scopes: wrenn.OperatorScopes}
	admin := service.Caller{Team: w.caller.Team, Key: "k", Scopes: wrenn.AllScopes}
	_, _, err := s.CreateKey(t.Context(), admin, ask)
	testkit.WantCode(t, err, wrenn.PermissionDenied)
	_, secret, err := s.CreateKey(t.Context(), w.caller, ask) // a command of the operator
	testkit.Must(t, err)
	operator, err := s.Authenticate(t.Context(), secret)
	testkit.Must(t, err)
	testkit.Must(t, operator.Scopes.Check(wrenn.ScopeOperator))
	_, _, err = s.CreateKey(t.Context(), operator, ask)
	testkit.Must(t, err)
}
