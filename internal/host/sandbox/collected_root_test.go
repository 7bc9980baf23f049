//go:build root

package sandbox

import (
	"context"
	"slices"
	"sync"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/testkit"
)

// TestCollectStore pauses a sandbox twice, and deletes what is stored of the first pause:
// the second one and the checkpoint of before are as they were, on another host.
func TestCollectStore(t *testing.T) {
	s := newObjects(t)
	a, spec := storedLab(t, s)
	m := a.open(t)
	t.Cleanup(m.Close)
	startRound := func(round, oldest uint64) {
		t.Helper()
		if got, err := m.StartRound(round); err != nil || !got.Known || got.Current != round || got.Oldest != oldest {
			t.Errorf("StartRound(%d) = %+v, %v", round, got, err)
		}
	}
	startRound(1, 1)
	must(t, m.Warm(t.Context(), small))
	sb := ensure(t, m, spec)
	must(t, a.mark(t.Context(), sb, 'x'))
	first, err := sb.Checkpoint(t.Context(), "first", "")
	must(t, err)
	gone, err := sb.Checkpoint(t.Context(), "gone", "")
	must(t, err)
	running(t, m)
	must(t, sb.Pause(t.Context()))
	before := waitStored(t, sb)
	must(t, sb.Resume(t.Context()))
	checkpoints := sb.Checkpoints().List
	goneKey := checkpoints[1].Stored.Key
	must(t, sb.DeleteCheckpoint(t.Context(), gone.ID))
	must(t, a.mark(t.Context(), sb, 'y'))

	// The upload of the second pause is at work when the next rounds begin.
	uploading, goOn := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(uploading); <-goOn })
	s.Set(objectstest.Faults{Before: func(_ context.Context, method, _ string) error {
		if method == "Put" {
			once()
		}
		return nil
	}})
	must(t, sb.Pause(t.Context()))
	<-uploading
	startRound(2, 1)
	close(goOn)
	stored := waitStored(t, sb)
	testkit.WaitUntil(t, "the upload counts no more", func() bool { got, err := m.StartRound(3); return err == nil && got.Oldest == 3 })

	refs := m.StoreReferences(team)
	if len(refs.Keys) != 2 || !slices.Contains(refs.Keys, stored.Key) || len(refs.Unknown) != 0 || len(m.StoreReferences("another").Keys) != 0 {
		t.Errorf("the host refers to %+v", refs)
	}
	had := len(objectstest.List(t, s, "teams/"))
	got, err := m.CollectStore(t.Context(), wrenn.StoreCollection{Team: team, Records: []string{stored.Key}, Through: 1, DryRun: true})
	must(t, err)
	if n := len(objectstest.List(t, s, "teams/")); n != had {
		t.Errorf("a dry run has deleted %d objects", had-n)
	}
	did, err := m.CollectStore(t.Context(), wrenn.StoreCollection{Team: team, Records: []string{stored.Key}, Through: 1})
	must(t, err)
	keys := map[string]bool{}
	for _, o := range did.Listed {
		keys[o.Key] = true
	}
	if !keys[before.Key] || !keys[goneKey] || keys[stored.Key] || did.Objects != got.Objects || int(did.Objects) != had-len(objectstest.List(t, s, "teams/")) {
		t.Errorf("deleted are %+v, and were to be %+v", did, got)
	}

	b, _ := storedLab(t, s)
	other := b.open(t)
	t.Cleanup(other.Close)
	fetched, err := other.Fetch(t.Context(), sb.ID(), wrenn.StoredSandbox{Team: team, Key: stored.Key})
	must(t, err)
	destroyLater(t, fetched)
	must(t, fetched.Resume(t.Context()))
	b.wantMark(t, fetched, 'y')
	must(t, fetched.RestoreCheckpoint(t.Context(), first.ID)) // which the record of the pause names
	b.wantMark(t, fetched, 'x')
	_, err = other.CollectStore(t.Context(), wrenn.StoreCollection{Team: team, Records: []string{before.Key}})
	testkit.WantCode(t, err, wrenn.NotFound)
}

// TestReferencesInQuarantine: a host says that it cannot tell what a sandbox refers to
// whose journal it cannot read.
func TestReferencesInQuarantine(t *testing.T) {
	l, _ := storedLab(t, newObjects(t))
	m := l.open(t)
	t.Cleanup(m.Close)
	id := wrenn.NewSandboxID()
	m.quarantine(t.Context(), string(id), "its journal cannot be read", nil)
	if refs := m.StoreReferences(team); len(refs.Unknown) != 1 || refs.Unknown[0] != id {
		t.Errorf("%+v", refs)
	}
}
