package clienttest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/service"
)

func (f *fake) host(id wrenn.HostID, status wrenn.HostStatus) (*service.HostState, error) {
	if id != "h2" {
		return nil, wrenn.Errorf(wrenn.NotFound, "there is no host %s", id)
	}
	return &service.HostState{Reachable: true, HostRecord: wrenn.HostRecord{
		ID: id, Name: "rack 3", URL: "https://10.0.0.2:49980", Zone: "a", Labels: map[string]string{"gpu": "none"}, Status: status, CreatedAt: made,
		Info: wrenn.HostInfo{Version: "v1", Driver: "qemu", Capacity: wrenn.Capacity{
			Sandboxes: 9, SandboxesUsed: 1, MemoryMiB: 8, MemoryMiBUsed: 2, DiskMiB: 7, DiskMiBFree: 3, DisksMiB: 6, DisksMiBUsed: 4,
		}},
	}}, nil
}

func (f *fake) ListHosts(context.Context, service.Caller) ([]service.HostState, error) {
	one, err := f.host("h2", wrenn.HostActive)
	return []service.HostState{*one}, err
}

func (f *fake) Host(_ context.Context, _ service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return f.host(id, wrenn.HostActive)
}

func (f *fake) CordonHost(_ context.Context, _ service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return f.host(id, wrenn.HostCordoned)
}

func (f *fake) UncordonHost(_ context.Context, _ service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return f.host(id, wrenn.HostActive)
}

func (f *fake) DrainHost(_ context.Context, _ service.Caller, id wrenn.HostID) (*service.HostState, error) {
	h, err := f.host(id, wrenn.HostDraining)
	if err == nil {
		h.Drain = &postgres.Drained{Left: 2, Stuck: []postgres.NotMoved{{ID: "iabcdefghijklmnopqrst", Reason: "it has a volume"}}}
	}
	return h, err
}

func TestDrainHost(t *testing.T) {
	got, err := serve(t, &fake{}).DrainHost(t.Context(), "h2")
	want := &client.Drain{Left: 2, NotMoved: []client.NotMoved{{Sandbox: "iabcdefghijklmnopqrst", Reason: "it has a volume"}}}
	if err != nil || got.Status != "draining" {
		t.Fatalf("%+v, %v", got, err)
	}
	if diff := cmp.Diff(want, got.Drain); diff != "" {
		t.Error(diff)
	}
}

func (f *fake) RemoveHost(_ context.Context, _ service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return f.host(id, wrenn.HostRemoved)
}

func (f *fake) LoseHost(_ context.Context, _ service.Caller, id wrenn.HostID) (*service.HostState, error) {
	return f.host(id, wrenn.HostLost)
}

func (f *fake) ExplainPlacement(_ context.Context, _ service.Caller, id wrenn.SandboxID) (*service.Placement, error) {
	return &service.Placement{
		Sandbox: &wrenn.Sandbox{ID: id, State: wrenn.Paused, Host: "h2"}, Decisions: []service.Decision{{At: made, Host: "h2", Actor: "system", Reason: "best"}},
		Hosts: []service.HostVerdict{{Host: "h2", Here: true, Fits: true, Reason: "has the sandbox", Cost: -4}},
	}, nil
}

func TestExplainPlacement(t *testing.T) {
	const id = "iabcdefghijklmnopqrst"
	got, err := serve(t, &fake{}).ExplainPlacement(t.Context(), id)
	want := &client.Placement{
		Sandbox: id, State: client.Paused, Host: "h2", Decisions: []client.PlacementDecision{{At: made, Host: "h2", Actor: "system", Reason: "best"}},
		Hosts: []client.PlacementHost{{Host: "h2", Here: true, Fits: true, Reason: "has the sandbox", Cost: -4}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func (f *fake) CreateHostToken(_ context.Context, _ service.Caller, want service.NewHostToken) (*service.HostToken, error) {
	if want.Zone != "a" || want.Labels["gpu"] != "none" || want.TTL != time.Minute {
		return nil, wrenn.Errorf(wrenn.Invalid, "got %+v", want)
	}
	return &service.HostToken{Token: "t", Host: want.Host, ExpiresAt: made}, nil
}

func (f *fake) JoinHost(context.Context, service.JoinHost) (*service.HostCertificate, error) {
	panic("hosts do not use the SDK")
}

func (f *fake) RenewHost(context.Context, service.RenewHost) (*service.HostCertificate, error) {
	panic("hosts do not use the SDK")
}

func TestHostToken(t *testing.T) {
	got, err := serve(t, &fake{}).CreateHostToken(t.Context(), client.CreateHostToken{Host: "h2", Zone: "a", Labels: map[string]string{"gpu": "none"}, TTL: time.Minute})
	if diff := cmp.Diff(&client.HostToken{Token: "t", Host: "h2", ExpiresAt: made}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestHosts(t *testing.T) {
	c := serve(t, &fake{})
	want := &client.Host{
		ID: "h2", Name: "rack 3", URL: "https://10.0.0.2:49980", Zone: "a", Labels: map[string]string{"gpu": "none"}, Status: "active",
		Reachable: true, Version: "v1", Driver: "qemu", CreatedAt: made, Capacity: client.HostCapacity{
			Sandboxes: 9, SandboxesUsed: 1, MemoryMB: 8, MemoryMBUsed: 2, DiskMB: 7, DiskFreeMB: 3, DisksMB: 6, DisksMBUsed: 4,
		},
	}
	list, err := c.Hosts(t.Context())
	if diff := cmp.Diff([]client.Host{*want}, list); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for name, call := range map[string]struct {
		do     func(context.Context, string) (*client.Host, error)
		status string
	}{"get": {c.Host, "active"}, "cordon": {c.CordonHost, "cordoned"}, "uncordon": {c.UncordonHost, "active"}, "remove": {c.RemoveHost, "removed"}, "lost": {c.LoseHost, "lost"}} {
		want.Status = call.status
		got, err := call.do(t.Context(), "h2")
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if _, err := call.do(t.Context(), "missing"); client.CodeOf(err) != client.NotFound {
			t.Errorf("%s of a host that is missing: %v", name, err)
		}
	}
}
