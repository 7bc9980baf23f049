//go:build root

package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/testkit"
)

// waitTemplate waits until a template of the manager is stored, and returns where.
func waitTemplate(t *testing.T, m *Manager, id wrenn.BuildID) string {
	t.Helper()
	testkit.WaitUntil(t, "the template is stored", func() bool { return m.StoredSnapshots()[string(id)].Key != "" })
	return m.StoredSnapshots()[string(id)].Key
}

// newTemplate makes a template from a sandbox with the mark x, which is destroyed.
func newTemplate(t *testing.T, l *lab, m *Manager, spec wrenn.SandboxSpec) wrenn.BuildID {
	t.Helper()
	sb, err := m.Ensure(t.Context(), wrenn.NewSandboxID(), spec)
	must(t, err)
	must(t, l.mark(t.Context(), sb, 'x'))
	id := wrenn.NewBuildID()
	must(t, sb.SnapshotFor(t.Context(), team, string(id), false))
	must(t, sb.Destroy(t.Context()))
	return id
}

// TestTemplateOnAnotherHost stores a template, also by an agent after the one that built
// it, and makes sandboxes of it on a host that never had it: all at once fetch it once.
func TestTemplateOnAnotherHost(t *testing.T) {
	s := newObjects(t)
	a, spec := storedLab(t, s)
	a.cfg.Adopt = true
	m := a.open(t)
	id := newTemplate(t, a, m, spec)
	if n := m.StoreStats().Waiting; n != 1 {
		t.Errorf("%d wait to be stored", n)
	}
	m.Close()
	a.crash(t)
	m = a.open(t) // the queue is in the manifests
	t.Cleanup(m.Close)
	revision := m.SnapshotsRevision()
	stop := running(t, m)
	key := waitTemplate(t, m, id)
	stop()
	if m.SnapshotsRevision() == revision || m.StoreStats().Waiting != 0 || !(wrenn.Stored{Key: key}).IsTemplate(team, id) {
		t.Errorf("revision %d, then %d; %+v; key %s", revision, m.SnapshotsRevision(), m.StoreStats(), key)
	}

	b, _ := storedLab(t, s)
	b.cfg.Adopt = true
	other := b.open(t)
	t.Cleanup(func() { other.Close() })
	var records atomic.Int32
	begun := make(chan struct{})
	var once sync.Once
	s.Set(objectstest.Faults{Before: func(_ context.Context, method, name string) error {
		if method == "Get" && name == key {
			records.Add(1)
		}
		once.Do(func() { close(begun) })
		return nil
	}})
	spec.Template, spec.Build, spec.BuildKey, spec.Size = "mine", id, key, wrenn.Size{}
	var made sync.WaitGroup
	errs := make([]error, 2)
	boxes := make([]*Sandbox, 2)
	for i := range boxes {
		made.Go(func() { boxes[i], errs[i] = other.Ensure(t.Context(), wrenn.NewSandboxID(), spec) })
	}
	<-begun
	made.Wait()
	for i, sb := range boxes {
		must(t, errs[i])
		wantAlive(t, sb)
		b.wantMark(t, sb, 'x')
	}
	must(t, boxes[0].Destroy(t.Context()))
	destroyLater(t, boxes[1])
	if n := records.Load(); n != 1 {
		t.Errorf("the template was fetched %d times", n)
	}
	if other.FetchesTemplate(id) || other.StoredSnapshots()[string(id)].Key != key || other.StoreStats().Waiting != 0 {
		t.Errorf("after the fetch: %v, %+v", other.StoredSnapshots(), other.StoreStats())
	}

	// A template that was removed while a sandbox needs it is back by another create.
	must(t, other.RemoveSnapshot(t.Context(), string(id), ""))
	sb := ensure(t, other, spec)
	b.wantMark(t, sb, 'x')
}

// TestRemoveSharedTemplate: with its owner a template goes from the store as well, also
// while it is uploaded; if the store fails it stays.
func TestRemoveSharedTemplate(t *testing.T) {
	s := newObjects(t)
	l, spec := storedLab(t, s)
	m := l.open(t)
	t.Cleanup(m.Close)
	stored, uploading := newTemplate(t, l, m, spec), wrenn.BuildID("")
	stop := running(t, m)
	waitTemplate(t, m, stored)
	hung := make(chan struct{}, 100)
	s.Set(objectstest.Faults{Before: func(ctx context.Context, method, _ string) error {
		if method != "Put" {
			return nil
		}
		hung <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	uploading = newTemplate(t, l, m, spec)
	<-hung
	must(t, m.RemoveSnapshot(t.Context(), string(uploading), team)) // ends the upload
	s.Set(objectstest.Faults{Before: func(context.Context, string, string) error {
		return wrenn.Errorf(wrenn.Unavailable, "the store failed")
	}})
	testkit.WantCode(t, m.RemoveSnapshot(t.Context(), string(stored), team), wrenn.Unavailable)
	s.Set(objectstest.Faults{})
	if m.StoredSnapshots()[string(stored)].Key == "" {
		t.Error("a template is gone whose objects could not be deleted")
	}
	must(t, m.RemoveSnapshot(t.Context(), string(stored), team))
	stop()
	if left := objectstest.List(t, s, "teams/"+string(team)+"/templates/"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	testkit.WantCode(t, m.RemoveSnapshot(t.Context(), string(stored), team), wrenn.NotFound)
}

// TestFetchTemplateRefuses: what is stored is another team's or template's, damaged or
// gone, or the host has no store or room. Nothing is left on the host.
func TestFetchTemplateRefuses(t *testing.T) {
	dir := t.TempDir()
	s, err := objects.OpenDir(dir)
	must(t, err)
	a, spec := storedLab(t, s)
	m := a.open(t)
	t.Cleanup(m.Close)
	id := newTemplate(t, a, m, spec)
	stop := running(t, m)
	key := waitTemplate(t, m, id)
	stop()

	l, _ := storedLab(t, s)
	other := l.open(t)
	t.Cleanup(other.Close)
	create := func(team wrenn.TeamID, id wrenn.BuildID, key string) error {
		_, err := other.Ensure(t.Context(), wrenn.NewSandboxID(), wrenn.SandboxSpec{Template: "mine", Build: id, BuildKey: key, Team: team})
		return err
	}
	testkit.WantCode(t, create(wrenn.TeamID(strings.Repeat("1", 36)), id, key), wrenn.FailedPrecondition, "team")
	testkit.WantCode(t, create(team, wrenn.NewBuildID(), key), wrenn.FailedPrecondition, "not this one")
	testkit.WantCode(t, create(team, id, ""), wrenn.NotFound, "not on this host")
	record, err := os.ReadFile(filepath.Join(dir, key))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, key), record[:100], 0o600))
	testkit.WantCode(t, create(team, id, key), wrenn.FailedPrecondition, "damaged")
	must(t, os.Remove(filepath.Join(dir, key)))
	testkit.WantCode(t, create(team, id, key), wrenn.NotFound)
	must(t, os.WriteFile(filepath.Join(dir, key), record, 0o600))
	other.registry.limits.DiskFreeMiB = 1 << 40
	testkit.WantCode(t, create(team, id, key), wrenn.Exhausted, "disk is full")
	other.registry.limits.DiskFreeMiB = 0
	other.cfg.Objects = nil
	testkit.WantCode(t, create(team, id, key), wrenn.FailedPrecondition, "store.url")
	other.cfg.Objects = s
	must(t, other.Collect(t.Context()))
	wantSnapshots(t, other)
	l.wantClean(t, other)
	must(t, other.FetchTemplate(t.Context(), team, id, key))
	wantSnapshots(t, other, string(id))
}

// TestUnusedTemplate: a fetched template that is not used is removed, unless it could not
// be fetched again, and a create fetches it again.
func TestUnusedTemplate(t *testing.T) {
	s := newObjects(t)
	a, spec := storedLab(t, s)
	m := a.open(t)
	t.Cleanup(m.Close)
	id := newTemplate(t, a, m, spec)
	running(t, m)
	key := waitTemplate(t, m, id)
	later := time.Now().Add(time.Hour)
	m.removeUnused(t.Context(), later)
	if !slices.Contains(m.KeptSnapshots(), string(id)) {
		t.Error("the host that built the template does not have it")
	}

	b, _ := storedLab(t, s)
	other := b.open(t)
	t.Cleanup(other.Close)
	has := func(want bool) {
		t.Helper()
		must(t, other.Collect(t.Context()))
		if got := slices.Contains(other.snapshots.IDs(), string(id)); got != want {
			t.Errorf("the host has the template: %t, want %t", got, want)
		}
	}
	spec.Template, spec.Build, spec.BuildKey, spec.Size = "mine", id, key, wrenn.Size{}
	for range 2 {
		sb := ensure(t, other, spec)
		b.wantMark(t, sb, 'x')
		other.removeUnused(t.Context(), later)
		has(true) // it is used
		must(t, sb.Destroy(t.Context()))
		s.Set(objectstest.Faults{Before: func(context.Context, string, string) error { return wrenn.Errorf(wrenn.NotFound, "it is gone") }})
		other.removeUnused(t.Context(), later)
		has(true) // it could not be fetched again
		s.Set(objectstest.Faults{})
		other.removeUnused(t.Context(), time.Now().Add(-time.Hour))
		has(true) // it was used since
		other.removeUnused(t.Context(), later)
		has(false)
	}
}
