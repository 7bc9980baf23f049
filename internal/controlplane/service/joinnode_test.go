package service_test

import (
	"context"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/hostjoin"
	"wrenn.dev/internal/testkit"
)

const (
	accountToken = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
	nodeUID      = "1f0c9d3e-7a52-4b1e-9c88-3f2a6b7c8d9e"
	nodeHost     = "k8s-" + nodeUID
)

// reviewer says that every token is of the node, or the error.
type reviewer struct {
	node hostjoin.Node
	err  error
}

func (r *reviewer) Review(context.Context, string) (hostjoin.Node, error) { return r.node, r.err }

func TestNodeJoins(t *testing.T) {
	t.Parallel()
	w := &joinWorld{world: newWorld(t, &hosttest.Agent{}), authority: newAuthority(t)}
	node, err := hostjoin.NewNode("node1", nodeUID)
	testkit.Must(t, err)
	kubernetes := &reviewer{node: node}
	w.s, _ = w.replica(t, func(cfg *service.Config) { cfg.Authority, cfg.Reviewer = w.authority, kubernetes })
	join := func(url string) error {
		_, err := w.s.JoinHost(t.Context(), service.JoinHost{Token: accountToken, CSR: csr(t, hostKey(t), nodeHost), URL: url, Name: "not this"})
		return err
	}
	row := func() *service.HostState {
		h, err := w.s.Host(t.Context(), w.caller, nodeHost)
		testkit.Must(t, err)
		return h
	}
	testkit.Must(t, join(joinURL))
	if h := row(); h.Name != "node1" || h.URL != joinURL || h.Status != wrenn.HostActive {
		t.Errorf("the host is %+v", h)
	}
	// The next pod joins again; what operators have set stays.
	w.sql(t, "UPDATE hosts SET zone = 'a', name = 'rack 3' WHERE id = '"+nodeHost+"'")
	_, err = w.s.CordonHost(t.Context(), w.caller, nodeHost)
	testkit.Must(t, err)
	testkit.Must(t, join("https://127.0.0.1:2"))
	if h := row(); h.Name != "rack 3" || h.Zone != "a" || h.URL != "https://127.0.0.1:2" || h.Status != wrenn.HostCordoned {
		t.Errorf("after another pod it is %+v", h)
	}
	_, err = w.s.JoinHost(t.Context(), service.JoinHost{Token: accountToken, CSR: csr(t, hostKey(t), "k8s-other"), URL: joinURL})
	wantRefusal(t, "a request for another host", err, wrenn.Invalid, "another name")
	wantRefusal(t, "no url", join(""), wrenn.Invalid, "https://ADDRESS:PORT")
	kubernetes.err = wrenn.Errorf(wrenn.Unauthenticated, "has expired")
	wantRefusal(t, "an expired token", join(joinURL), wrenn.Unauthenticated, "has expired")
	kubernetes.err = nil
	_, err = w.s.RemoveHost(t.Context(), w.caller, nodeHost)
	testkit.Must(t, err)
	wantRefusal(t, "a host that was removed", join(joinURL), wrenn.PermissionDenied, "operator")
	if h := row(); h.Status != wrenn.HostRemoved {
		t.Errorf("a host that was removed is %s", h.Status)
	}
	w.s, _ = w.replica(t, func(cfg *service.Config) { cfg.Authority = w.authority })
	wantRefusal(t, "without Kubernetes", join(joinURL), wrenn.FailedPrecondition, "service_accounts")
	w.s, _ = w.replica(t, nil)
	wantRefusal(t, "without an authority", join(joinURL), wrenn.FailedPrecondition, "authority")
}
