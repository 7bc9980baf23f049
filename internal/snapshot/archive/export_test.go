package archive

import (
	"bytes"
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/testkit"
)

// TestExport: what one host sends of a snapshot another one makes the same of, whether the
// store has nothing of it, has its base, or does not answer. What is cut, too large, or of
// another team is refused, and leaves nothing.
func TestExport(t *testing.T) {
	s := objectstest.NewFaulty(openDir(t))
	a := newHost(t, s)
	base := newContent(1)
	one, two := base.changed(1), base.changed(2)
	a.publish(base, snapshot.Manifest{ID: "base-1", Pinned: true})
	a.publish(one, snapshot.Manifest{ID: "s1", Base: "base-1"})
	a.publish(two, snapshot.Manifest{ID: "s2", Base: "base-1"})
	export := func() []byte {
		t.Helper()
		var sent bytes.Buffer
		testkit.Must(t, a.Export(t.Context(), 0, team, sandbox, "s1", []byte("state of s1"), &sent))
		return sent.Bytes()
	}
	imported := func(sent []byte) {
		t.Helper()
		b := newHost(t, s)
		id, state, release, err := b.Import(t.Context(), team, sandbox, bytes.NewReader(sent), 1<<30)
		testkit.Must(t, err)
		defer release()
		if id != "s1" || string(state) != "state of s1" {
			t.Errorf("%s, %q", id, state)
		}
		testkit.Must(t, b.Snapshots.Verify(t.Context(), id))
		b.equals(id, one)
	}
	whole := export()
	imported(whole)
	down := objectstest.Faults{Before: func(context.Context, string, string) error {
		return wrenn.Errorf(wrenn.Unavailable, "the store is down")
	}}
	s.Set(down)
	imported(export())
	s.Set(objectstest.Faults{})
	a.upload("s2") // and with it the base
	small := export()
	if len(small) > 512<<10 || len(whole) < 6<<20 {
		t.Errorf("sent are %d and then %d bytes", len(whole), len(small))
	}
	imported(small)

	refused := func(owner string, sent []byte, most int64) {
		t.Helper()
		b := newHost(t, s)
		if _, _, _, err := b.Import(t.Context(), owner, sandbox, bytes.NewReader(sent), most); err == nil {
			t.Errorf("%d bytes of %s, of at most %d, are accepted", len(sent), owner, most)
		}
		if diff := cmp.Diff(0, len(b.Snapshots.IDs())); diff != "" && len(sent) < 1024 {
			t.Errorf("left are %v", b.Snapshots.IDs())
		}
	}
	for _, at := range []int{0, 100, 512, len(small) / 2, len(small) - 2048} {
		refused(team, small[:at], 1<<30)
	}
	refused(team, small, int64(len(small)/2))
	refused("0b0c7c1e-8d0f-4f6e-9d5e-1f1f4d7c2a12", small, 1<<30)
	damaged := bytes.Clone(small)
	damaged[len(damaged)/3] ^= 1
	refused(team, damaged, 1<<30)
}
