package service_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/hostclient/hosttest"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
	hostagentv1 "wrenn.dev/proto/gen/hostagent/v1"
)

func createVolume(t *testing.T, s *service.Service, c service.Caller, name string) *wrenn.Volume {
	t.Helper()
	v, err := s.CreateVolume(t.Context(), c, service.CreateVolume{Name: name, SizeMiB: 64})
	testkit.Must(t, err)
	return v
}

// mounting is a request for a sandbox that has volumes.
func mounting(names ...string) service.CreateSandbox {
	var req service.CreateSandbox
	for i, name := range names {
		req.Volumes = append(req.Volumes, wrenn.VolumeMount{Name: name, Path: fmt.Sprintf("/data/%d", i)})
	}
	return req
}

// roomy is a host with that much free disk.
func roomy(freeMiB uint64) *hosttest.Agent {
	return &hosttest.Agent{Capacity: hostagentv1.Capacity{DiskMbFree: 4096 + freeMiB}}
}

// A volume is on one host, where its sandboxes run, and outlives them.
func TestVolumeLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, roomy(1000), roomy(2000))
	s, _ := w.replica(t, nil)
	v := createVolume(t, s, w.caller, "data")
	if diff := cmp.Diff([]string{string(v.ID)}, w.agents[1].Volumes()); diff != "" || v.Host != hostID(1) {
		t.Errorf("the host with the most free disk (-want +got):\n%s", diff)
	}
	for _, name := range []string{"data", string(v.ID)} {
		got, err := s.Volume(t.Context(), w.caller, name)
		if diff := cmp.Diff(v, got); diff != "" || err != nil {
			t.Errorf("volume %s: %v\n%s", name, err, diff)
		}
	}
	_, err := s.CreateVolume(t.Context(), w.caller, service.CreateVolume{Name: "data"})
	testkit.WantCode(t, err, wrenn.AlreadyExists, "data")

	var all []*wrenn.Sandbox
	for range 3 {
		sb, err := s.CreateSandbox(t.Context(), w.caller, mounting("data"))
		testkit.Must(t, err)
		want := []wrenn.VolumeMount{{Volume: v.ID, Name: "data", Path: "/data/0"}}
		if diff := cmp.Diff(want, sb.Volumes); diff != "" || sb.Host != v.Host {
			t.Errorf("on host %s (-want +got):\n%s", sb.Host, diff)
		}
		all = append(all, sb)
	}
	testkit.WantCode(t, s.DeleteVolume(t.Context(), w.caller, "data"), wrenn.FailedPrecondition, "has volume data")
	copies, err := s.ForkSandbox(t.Context(), w.caller, all[0].ID, service.ForkSandbox{Count: 1})
	testkit.Must(t, err)
	if diff := cmp.Diff(all[0].Volumes, copies.Sandboxes[0].Volumes); diff != "" {
		t.Errorf("a copy (-want +got):\n%s", diff)
	}
	_, err = s.BuildTemplate(t.Context(), w.caller, service.BuildTemplate{Name: "x", Spec: wrenn.TemplateSpec{From: wrenn.TemplateSource{Sandbox: all[0].ID}}})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "mounts volumes")
	for _, sb := range all {
		testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, sb.ID))
	}
	_, err = s.PauseSandbox(t.Context(), w.caller, copies.Sandboxes[0].ID)
	testkit.Must(t, err)
	testkit.WantCode(t, s.DeleteVolume(t.Context(), w.caller, "data"), wrenn.FailedPrecondition, string(copies.Sandboxes[0].ID))
	testkit.Must(t, s.DeleteSandbox(t.Context(), w.caller, copies.Sandboxes[0].ID))

	testkit.Must(t, s.DeleteVolume(t.Context(), w.caller, "data"))
	if left := w.agents[1].Volumes(); len(left) > 0 {
		t.Errorf("left on the host: %v", left)
	}
	_, err = s.CreateSandbox(t.Context(), w.caller, mounting("data"))
	testkit.WantCode(t, err, wrenn.NotFound, "no volume data")
	if again := createVolume(t, s, w.caller, "data"); again.ID == v.ID {
		t.Error("a new volume is the old one")
	}
}

// Teams cannot see, mount or delete each other's volumes, by name or id.
func TestVolumesOfAnotherTeam(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	v, other := createVolume(t, s, w.caller, "data"), w.team(t, "other")
	for _, name := range []string{v.Name, string(v.ID)} {
		_, err := s.Volume(t.Context(), other, name)
		testkit.WantCode(t, err, wrenn.NotFound, name)
		testkit.WantCode(t, s.DeleteVolume(t.Context(), other, name), wrenn.NotFound, name)
		_, err = s.CreateSandbox(t.Context(), other, mounting(name))
		testkit.WantCode(t, err, wrenn.NotFound, name)
	}
	if list, err := s.ListVolumes(t.Context(), other); err != nil || len(list) > 0 {
		t.Errorf("the list of the other team: %v, %v", list, err)
	}
	theirs := createVolume(t, s, other, "data")
	sb, err := s.CreateSandbox(t.Context(), other, mounting("data"))
	testkit.Must(t, err)
	if theirs.ID == v.ID || sb.Volumes[0].Volume != theirs.ID {
		t.Errorf("the other team's sandbox has %v, want %s", sb.Volumes, theirs.ID)
	}
	// Not even a caller that skips the look-up can insert such a row.
	row := *sb
	row.ID = wrenn.NewSandboxID()
	row.Volumes = []wrenn.VolumeMount{{Volume: v.ID, Path: "/data"}}
	_, err = w.store.CreateSandbox(t.Context(), row, postgres.Limits{Sandboxes: 9, TeamMemoryMB: 1 << 20}, "test")
	testkit.WantCode(t, err, wrenn.NotFound, "volume")
}

func TestVolumeRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, roomy(1000), roomy(2000))
	s, _ := w.replica(t, func(cfg *service.Config) { cfg.Limits.Volumes, cfg.Limits.TeamVolumeMiB = 3, 200 })
	for _, req := range []service.CreateVolume{{}, {Name: "a/b"}, {Name: "a", SizeMiB: 1}, {Name: "a", SizeMiB: -64}, {Name: "a", SizeMiB: 201}} {
		_, err := s.CreateVolume(t.Context(), w.caller, req)
		testkit.WantCode(t, err, wrenn.Invalid)
	}
	createVolume(t, s, w.caller, "one")
	_, err := s.CreateVolume(t.Context(), w.caller, service.CreateVolume{Name: "big", SizeMiB: 137})
	testkit.WantCode(t, err, wrenn.Exhausted, "64 MiB of at most 200 MiB")
	createVolume(t, s, w.caller, "two")
	_, err = s.CreateVolume(t.Context(), w.caller, service.CreateVolume{Name: "three", SizeMiB: 16})
	testkit.Must(t, err)
	_, err = s.CreateVolume(t.Context(), w.caller, service.CreateVolume{Name: "four", SizeMiB: 16})
	testkit.WantCode(t, err, wrenn.Exhausted, "limit of 3 volumes")

	twice := mounting("one", "one")
	_, err = s.CreateSandbox(t.Context(), w.caller, twice)
	testkit.WantCode(t, err, wrenn.Invalid, "mounted once")
	system := mounting("one")
	system.Volumes[0].Path = "/etc/x"
	_, err = s.CreateSandbox(t.Context(), w.caller, system)
	testkit.WantCode(t, err, wrenn.Invalid, "/etc")

	// What is on two hosts cannot be in one sandbox.
	w.sql(t, "UPDATE volumes SET host_id = 'h1' WHERE name = 'one'")
	_, err = s.CreateSandbox(t.Context(), w.caller, mounting("one", "two"))
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "different hosts")
	w.sql(t, "UPDATE volumes SET host_id = 'h9' WHERE name = 'one'")
	_, err = s.CreateSandbox(t.Context(), w.caller, mounting("one"))
	testkit.WantCode(t, err, wrenn.Unavailable, "h9")
}

// A volume that was not made, or not deleted, is removed later, and its name is free at once.
func TestVolumeLeftovers(t *testing.T) {
	t.Parallel()
	var failing atomic.Pointer[string]
	agent := &hosttest.Agent{After: func(_ context.Context, method, _ string) error {
		if m := failing.Load(); m != nil && *m == method {
			return wrenn.Errorf(wrenn.Unavailable, "the answer is lost")
		}
		return nil
	}}
	w := newWorld(t, agent)
	s, _ := w.replica(t, nil)
	failing.Store(new("CreateVolume"))
	_, err := s.CreateVolume(t.Context(), w.caller, service.CreateVolume{Name: "data"})
	testkit.WantCode(t, err, wrenn.Unavailable, "lost")
	if left := agent.Volumes(); len(left) > 0 {
		t.Errorf("left on the host: %v", left)
	}
	failing.Store(new("DeleteVolume"))
	createVolume(t, s, w.caller, "data")
	testkit.Must(t, s.DeleteVolume(t.Context(), w.caller, "data"))
	kept := createVolume(t, s, w.caller, "data")
	// The row of a create whose control plane was killed.
	w.sql(t, "INSERT INTO volumes (id, team_id, name, host_id, size_mib, worker) SELECT 'v00000000000000000000', id, 'gone', 'h1', 64, 7 FROM teams")
	w.sql(t, "UPDATE volumes SET updated_at = updated_at - interval '1 minute'")
	failing.Store(nil)
	w.replica(t, func(cfg *service.Config) { cfg.ReconcileEvery = 20 * time.Millisecond })
	testkit.WaitUntil(t, "one row is left", func() bool { return w.dump(t, "SELECT string_agg(id, ' ') FROM volumes") == string(kept.ID) })
	if diff := cmp.Diff([]string{string(kept.ID)}, agent.Volumes()); diff != "" {
		t.Errorf("on the host (-want +got):\n%s", diff)
	}
}

// Of a create and a delete at the same time, one is refused.
func TestVolumeRace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, &hosttest.Agent{})
	s, _ := w.replica(t, nil)
	other, _ := w.replica(t, nil)
	for i := range 10 {
		name := fmt.Sprint("v", i)
		createVolume(t, s, w.caller, name)
		var wg sync.WaitGroup
		var created, deleted error
		wg.Go(func() { _, created = s.CreateSandbox(t.Context(), w.caller, mounting(name)) })
		wg.Go(func() { deleted = other.DeleteVolume(t.Context(), w.caller, name) })
		wg.Wait()
		if created == nil {
			testkit.WantCode(t, deleted, wrenn.FailedPrecondition, name)
		} else {
			testkit.WantCode(t, created, wrenn.NotFound, "volume")
			testkit.Must(t, deleted)
		}
	}
}
