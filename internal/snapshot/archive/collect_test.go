package archive

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/testkit"
)

// later is after every object of a test was written, whatever the clock of its server says.
func later() time.Time { return time.Now().Add(time.Hour) }

// collect collects the objects of the team, of which some records are needed.
func (h *host) collect(through uint64, records ...string) Collected {
	h.t.Helper()
	done, err := h.Collect(h.t.Context(), team, Needed{Records: records}, Limits{Through: through, Before: later(), Most: 1000})
	testkit.Must(h.t, err)
	return done
}

// pausedTwice stores two snapshots of sandboxes of one template of the team.
func pausedTwice(t *testing.T, a *host) (one, two Stored, base, second content) {
	t.Helper()
	base = newContent(1)
	second = base.changed(2)
	a.publish(base, templateManifest("t1", ""))
	a.publish(base.changed(1), snapshot.Manifest{ID: "s1", Base: "t1"})
	a.publish(second, snapshot.Manifest{ID: "s2", Base: "t1"})
	return a.upload("s1"), a.upload("s2"), base, second
}

func teamObjects(t *testing.T, s objects.Store) []string {
	t.Helper()
	return append(objectstest.List(t, s, "teams/"+team+"/snapshots/"), objectstest.List(t, s, "teams/"+team+"/layers/")...)
}

// TestCollect: what nothing needs goes, with a round that has ended, and what is needed
// can be fetched as before.
func TestCollect(t *testing.T) {
	server := objectstest.StartServer(t)
	s3, err := objects.Open(server.URL(), server.Credentials, objects.Policy{})
	testkit.Must(t, err)
	for name, s := range map[string]objects.Store{"directory": openDir(t), "s3": s3} {
		t.Run(name, func(t *testing.T) {
			a := newHost(t, s)
			a.round = 1
			one, two, _, second := pausedTwice(t, a)
			if !strings.HasSuffix(one.Key, ".1") {
				t.Errorf("the key %s has no round", one.Key)
			}
			objectstest.Put(t, s, "teams/"+team+"/layers/notes", "another program's")
			objectstest.Put(t, s, "teams/"+team+"0/layers/"+strings.Repeat("a", 64), "another team's")
			before := teamObjects(t, s)
			if got := a.collect(0, two.Key); got.Deleted != 0 || got.Young != 3 || got.YoungBytes == 0 {
				t.Errorf("of a round that has not ended were deleted %+v", got)
			}
			early, err := a.Collect(t.Context(), team, Needed{Records: []string{two.Key}}, Limits{Through: 1, Before: time.Now().Add(-time.Hour), Most: 10})
			if err != nil || early.Deleted != 0 || early.Young != 3 {
				t.Errorf("of what is young were deleted %+v, %v", early, err)
			}
			would, err := a.Collect(t.Context(), team, Needed{Records: []string{two.Key}}, Limits{Through: 1, Before: later(), Most: 10, DryRun: true})
			testkit.Must(t, err)
			if diff := cmp.Diff(before, teamObjects(t, s)); diff != "" {
				t.Errorf("before anything is to be deleted (-before +after):\n%s", diff)
			}
			got := a.collect(1, two.Key)
			if got.Deleted != 3 || got.Bytes == 0 || got.Young != 0 || got.More || got.Objects[0].Key != one.Key {
				t.Errorf("deleted are %+v", got)
			}
			if diff := cmp.Diff(would, got); diff != "" {
				t.Errorf("what was to be deleted, and what was (-would +did):\n%s", diff)
			}
			if left := teamObjects(t, s); len(left) != len(before)-3 {
				t.Errorf("left are %v", left)
			}
			newHost(t, s).fetch(two.Key, "s2", second)
			_, _, _, err = newHost(t, s).Fetch(t.Context(), team, sandbox, one.Key)
			testkit.WantCode(t, err, wrenn.NotFound)
			if got := a.collect(1); got.Deleted != 5 { // and the last one: the layers of the template, too
				t.Errorf("deleted are %+v", got)
			}
			if left := objectstest.List(t, s, "teams/"); len(left) != 2 {
				t.Errorf("left are %v", left)
			}
		})
	}
}

// TestCollectInParts: a call deletes no more than it may, and the rest is for the next.
func TestCollectInParts(t *testing.T) {
	s := openDir(t)
	a := newHost(t, s)
	_, two, _, second := pausedTwice(t, a)
	limits := Limits{Before: later(), Most: 2}
	first, err := a.Collect(t.Context(), team, Needed{Records: []string{two.Key}}, limits)
	if err != nil || first.Deleted != 2 || !first.More {
		t.Errorf("%+v, %v", first, err)
	}
	next, err := a.Collect(t.Context(), team, Needed{Records: []string{two.Key}}, limits)
	if err != nil || next.Deleted != 1 || next.More {
		t.Errorf("%+v, %v", next, err)
	}
	newHost(t, s).fetch(two.Key, "s2", second)
}

// TestCollectStopped: a collector that ends at any call of the store leaves what is needed
// whole, and the next one finishes.
func TestCollectStopped(t *testing.T) {
	dir := openDir(t)
	faulty := objectstest.NewFaulty(dir)
	a := newHost(t, faulty)
	_, two, _, second := pausedTwice(t, a)
	for n := 1; ; n++ {
		calls := 0
		faulty.Set(objectstest.Faults{Before: func(context.Context, string, string) error {
			if calls++; calls >= n {
				return wrenn.Errorf(wrenn.Unavailable, "killed")
			}
			return nil
		}})
		_, err := a.Collect(t.Context(), team, Needed{Records: []string{two.Key}}, Limits{Before: later(), Most: 1000})
		faulty.Set(objectstest.Faults{})
		newHost(t, dir).fetch(two.Key, "s2", second)
		if err == nil {
			break
		}
		testkit.WantCode(t, err, wrenn.Unavailable)
	}
	if left := teamObjects(t, dir); len(left) != 5 {
		t.Errorf("left are %v", left)
	}
}

// TestCollectBesideUploads: while a collector deletes the layers that a template's sandboxes
// had, another sandbox of it is stored: by the time that any layer can be deleted, uploads
// use other names, however late the collector is.
func TestCollectBesideUploads(t *testing.T) {
	dir := openDir(t)
	faulty := objectstest.NewFaulty(dir)
	a, b := newHost(t, dir), newHost(t, dir)
	a.round = 1
	_, _, base, _ := pausedTwice(t, a)
	third := base.changed(3)
	b.publish(base, templateManifest("t1", ""))
	b.publish(third, snapshot.Manifest{ID: "s3", Base: "t1"})
	b.round = 2 // the round after: it uses what exists
	if sent := b.upload("s3").Bytes; sent > 256<<10 {
		t.Errorf("the template was sent again: %d bytes", sent)
	}

	deleting, goOn := make(chan struct{}), make(chan struct{})
	first := true
	faulty.Set(objectstest.Faults{Before: func(_ context.Context, call, _ string) error {
		if call == "Delete" && first {
			first = false
			close(deleting)
			<-goOn
		}
		return nil
	}})
	slow := newHost(t, faulty)
	ended := make(chan Collected)
	go func() { ended <- slow.collect(1) }() // nothing is needed
	<-deleting
	b.round, a.round = 3, 3
	stored := b.upload("s3")
	if stored.Bytes < 6<<20 {
		t.Errorf("an upload relies on layers that may be deleted: it sent %d bytes", stored.Bytes)
	}
	a.publish(third, snapshot.Manifest{ID: "s4", Base: "t1"})
	if sent := a.upload("s4").Bytes; sent > 256<<10 { // another host finds what b has stored
		t.Errorf("the template was sent twice in a round: %d bytes", sent)
	}
	close(goOn)
	if got := <-ended; got.Deleted == 0 {
		t.Error("nothing was deleted")
	}
	newHost(t, dir).fetch(stored.Key, "s3", third)
	for _, key := range objectstest.List(t, dir, "teams/"+team+"/layers/") {
		if strings.HasSuffix(key, ".1") {
			t.Errorf("%s is left", key)
		}
	}
}

// TestCollectKeeps: records keep what their states refer to, once. A record that must
// exist and does not, or that is of a newer version, stops the collection.
func TestCollectKeeps(t *testing.T) {
	s := openDir(t)
	a := newHost(t, s)
	stored := map[string]Stored{}
	for i, id := range []string{"c1", "c2", "p1", "s9"} {
		a.publish(newContent(uint64(i)), snapshot.Manifest{ID: id})
		stored[id] = a.upload(id)
	}
	refers := map[string]string{"state of p1": "c2", "state of c2": "c1"}
	references := func(state []byte) ([]string, error) {
		if id := refers[string(state)]; id != "" {
			return []string{stored[id].Key}, nil
		}
		return nil, nil
	}
	collect := func(needed Needed) (Collected, error) {
		needed.References = references
		return a.Collect(t.Context(), team, needed, Limits{Before: later(), Most: 1000})
	}
	missing := strings.Replace(stored["p1"].Key, ".", ".0", 1)[:len(stored["p1"].Key)]
	before := teamObjects(t, s)
	for name, c := range map[string]struct {
		needed Needed
		code   wrenn.Code
	}{
		"a record is missing":     {Needed{Records: []string{missing}}, wrenn.NotFound},
		"a record is a layer":     {Needed{Records: objectstest.List(t, s, "teams/"+team+"/layers/")}, wrenn.FailedPrecondition},
		"a key of another team":   {Needed{Others: []string{"teams/x/snapshots/x.y"}}, wrenn.Invalid},
		"a key of no team at all": {Needed{Records: []string{""}}, wrenn.Invalid},
	} {
		_, err := collect(c.needed)
		if wrenn.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	_, err := a.Collect(t.Context(), Shared, Needed{}, Limits{Before: later(), Most: 1})
	testkit.WantCode(t, err, wrenn.Invalid)
	newer := "teams/" + team + "/snapshots/n1." + strings.Repeat("0", 64) + ".7"
	objectstest.Put(t, s, newer, `{"format":99}`)
	_, err = collect(Needed{Others: []string{newer}})
	testkit.WantCode(t, err, wrenn.FailedPrecondition, "newer version")
	testkit.Must(t, s.Delete(t.Context(), newer))
	if diff := cmp.Diff(before, teamObjects(t, s)); diff != "" {
		t.Fatalf("something was deleted (-before +after):\n%s", diff)
	}
	damaged := "teams/" + team + "/snapshots/d1." + strings.Repeat("0", 64)
	objectstest.Put(t, s, damaged, "{")
	kept, err := collect(Needed{Records: []string{stored["p1"].Key}, Lost: []string{missing, damaged, stored["c2"].Key, stored["s9"].Key}})
	if err != nil || kept.Deleted != 0 {
		t.Errorf("deleted are %+v, %v; want nothing: c1 is named by what was lost", kept, err)
	}
	got, err := collect(Needed{Records: []string{stored["p1"].Key}, Others: []string{stored["s9"].Key, missing, damaged}})
	if err != nil || got.Deleted != 3 || got.Objects[0].Key != stored["c1"].Key {
		t.Errorf("deleted are %+v, %v; want c1, which only a checkpoint names", got, err)
	}
	for i, id := range []string{"c2", "p1", "s9"} {
		newHost(t, s).fetch(stored[id].Key, id, newContent(uint64(i+1)))
	}
}

// TestRoundsOfNames: which names have which rounds.
func TestRoundsOfNames(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for key, want := range map[string]uint64{
		"teams/t/layers/" + sum: 0, "teams/t/layers/" + sum + ".12": 12,
		"teams/t/snapshots/s1." + sum: 0, "teams/t/snapshots/s1." + sum + ".3": 3,
	} {
		if got, ok := roundOfKey(key); !ok || got != want {
			t.Errorf("%s is of round %d, %v; want %d", key, got, ok, want)
		}
	}
	for _, key := range []string{"teams/t/layers/x", "teams/t/layers/" + sum + ".0", "teams/t/layers/" + sum + ".01", "teams/t/layers/" + sum + ".x", "teams/t/snapshots/" + sum, "teams/t/snapshots/s1." + sum + ".1.2", "teams/t/other/" + sum} {
		if got, ok := roundOfKey(key); ok {
			t.Errorf("%s is of round %d", key, got)
		}
	}
}
