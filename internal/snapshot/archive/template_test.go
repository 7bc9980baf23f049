package archive

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/testkit"
)

func (h *host) uploadTemplate(id string) Stored {
	h.t.Helper()
	stored, err := h.UploadTemplate(h.t.Context(), h.round, team, id)
	testkit.Must(h.t, err)
	return stored
}

// fetchTemplate fetches a template and checks that it is c, and usable.
func (h *host) fetchTemplate(key, id string, c content) {
	h.t.Helper()
	testkit.Must(h.t, h.FetchTemplate(h.t.Context(), team, id, key))
	snap, release, err := h.Snapshots.Load(h.t.Context(), id)
	testkit.Must(h.t, err)
	defer release()
	memory, err := os.ReadFile(snap.Path(snapshot.File{Path: "machine/private/memory"}))
	testkit.Must(h.t, err)
	disk, err := os.ReadFile(snap.Disk())
	testkit.Must(h.t, err)
	if !bytes.Equal(memory, c.memory) || !bytes.Equal(disk, c.disk) || !snap.Pinned || string(snap.Metadata) != "note" {
		h.t.Errorf("another template: %+v", snap.Manifest)
	}
	if got := h.Snapshots.Copies(); got[id].Key != key {
		h.t.Errorf("copies are %v, want %s", got, key)
	}
	testkit.Must(h.t, h.Snapshots.Verify(h.t.Context(), id))
}

func templateManifest(id, base string) snapshot.Manifest {
	return snapshot.Manifest{ID: id, Base: base, Pinned: true, Owner: team, Metadata: []byte("note")}
}

// TestTemplate stores a template that was booted, and one that was made from a sandbox of
// it, and makes them on another host. Sandboxes of them need their own layers only.
func TestTemplate(t *testing.T) {
	s := openDir(t)
	a := newHost(t, s)
	whole := newContent(1)
	derived, paused := whole.changed(1), whole.changed(2)
	a.publish(whole, templateManifest("t1", ""))
	a.publish(derived, templateManifest("t2", "t1"))
	a.publish(paused, snapshot.Manifest{ID: "s1", Base: "t1"})
	if diff := cmp.Diff(map[string]wrenn.Stored{"t1": {}, "t2": {}}, a.Snapshots.Copies()); diff != "" {
		t.Error(diff)
	}
	one, two, again := a.uploadTemplate("t1"), a.uploadTemplate("t2"), a.uploadTemplate("t1")
	if one.Bytes < 6<<20 || again.Bytes > 16<<10 || again.Key != one.Key {
		t.Errorf("sent are %d and %d bytes, to %s and %s", one.Bytes, again.Bytes, one.Key, again.Key)
	}
	sandboxes := a.upload("s1")
	own := objectstest.List(t, s, "teams/"+team+"/templates/t2/")
	if len(own) != 3 {
		t.Errorf("of the second template are stored %v", own)
	}

	b := newHost(t, s)
	b.fetchTemplate(one.Key, "t1", whole)
	b.fetchTemplate(one.Key, "t1", whole) // twice is allowed
	had := len(b.Snapshots.IDs())
	b.fetch(sandboxes.Key, "s1", paused)
	b.fetchTemplate(two.Key, "t2", derived)
	if n := len(b.Snapshots.IDs()); had != 1 || n != 3 {
		t.Errorf("%d and then %d snapshots: the first template is the base of the others", had, n)
	}
	newHost(t, s).fetchTemplate(two.Key, "t2", derived) // without the first

	testkit.Must(t, a.RemoveTemplate(t.Context(), team, "t1"))
	testkit.Must(t, a.RemoveTemplate(t.Context(), team, "t1"))
	if left := objectstest.List(t, s, "teams/"+team+"/templates/"); !cmp.Equal(left, own) {
		t.Errorf("left are %v, want %v", left, own)
	}
	testkit.WantCode(t, newHost(t, s).FetchTemplate(t.Context(), team, "t1", one.Key), wrenn.NotFound)
	c := newHost(t, s) // what others refer to is not the template's
	c.fetch(sandboxes.Key, "s1", paused)
	c.fetchTemplate(two.Key, "t2", derived)
}

// TestTemplateRefusals: objects that are cut, swapped, of another team or template are
// refused, and nothing of the template is left on the host.
func TestTemplateRefusals(t *testing.T) {
	dir := t.TempDir()
	s, err := objects.Open("file://"+dir, "", objects.Policy{})
	testkit.Must(t, err)
	a := newHost(t, s)
	a.publish(newContent(1), templateManifest("t1", ""))
	a.publish(newContent(2), templateManifest("t2", ""))
	a.publish(newContent(3), snapshot.Manifest{ID: "s1"})
	one, two, sandboxes := a.uploadTemplate("t1"), a.uploadTemplate("t2"), a.upload("s1")
	fetch := func(owner, id, key string) error {
		b := newHost(t, s)
		err := b.FetchTemplate(t.Context(), owner, id, key)
		if left := b.Snapshots.IDs(); err != nil && len(left) > 0 {
			t.Errorf("left are %v", left)
		}
		return err
	}
	other := strings.Repeat("1", 36)
	for _, refused := range [][3]string{
		{other, "t1", one.Key}, {team, "t2", one.Key}, {team, "t1", sandboxes.Key}, {team, "t1", ""}, {team, "../t1", one.Key},
		{team, "t1", strings.Replace(one.Key, team, other, 1)}, {team, "t1", one.Key + "0"}, {Shared, "t1", "shared/templates/t1/" + one.Key[len(one.Key)-64:]},
	} {
		testkit.WantCode(t, fetch(refused[0], refused[1], refused[2]), wrenn.FailedPrecondition)
	}
	_, err = a.UploadTemplate(t.Context(), 0, Shared, "t1")
	testkit.WantCode(t, err, wrenn.Invalid)
	testkit.WantCode(t, a.RemoveTemplate(t.Context(), "..", "t1"), wrenn.Invalid)

	file := func(key string) string { return filepath.Join(dir, filepath.FromSlash(key)) }
	read := func(key string) []byte {
		text, err := os.ReadFile(file(key))
		testkit.Must(t, err)
		return text
	}
	write := func(key string, text []byte) {
		testkit.Must(t, os.MkdirAll(filepath.Dir(file(key)), 0o700))
		testkit.Must(t, os.WriteFile(file(key), text, 0o600))
	}
	record := read(one.Key)
	for says, text := range map[string][]byte{"damaged": record[:len(record)/2], "another snapshot": read(two.Key)} {
		write(one.Key, text)
		testkit.WantCode(t, fetch(team, "t1", one.Key), wrenn.FailedPrecondition, says)
	}
	// Records that were copied to another team or another template.
	moved := strings.Replace(one.Key, team, other, 1)
	write(moved, record)
	testkit.WantCode(t, fetch(other, "t1", moved), wrenn.FailedPrecondition, "another team")
	moved = strings.Replace(one.Key, "/t1/", "/t3/", 1)
	write(moved, record)
	testkit.WantCode(t, fetch(team, "t3", moved), wrenn.FailedPrecondition, "of template")

	write(one.Key, record)
	layers := objectstest.List(t, s, "teams/"+team+"/templates/t1/layers/")
	whole := read(layers[0])
	for _, change := range [][]byte{whole[:len(whole)/2], read(layers[1]), bytes.ReplaceAll(whole, whole[100:104], []byte("xxxx"))} {
		write(layers[0], change)
		testkit.WantCode(t, fetch(team, "t1", one.Key), wrenn.FailedPrecondition)
	}
	testkit.Must(t, os.Remove(file(layers[0])))
	testkit.WantCode(t, fetch(team, "t1", one.Key), wrenn.NotFound)
	write(layers[0], whole)
	testkit.Must(t, fetch(team, "t1", one.Key))
}

// TestTemplateInterrupted: uploads, fetches and removals that fail at any call are
// finished by the next ones.
func TestTemplateInterrupted(t *testing.T) {
	dir, err := objects.OpenDir(t.TempDir())
	testkit.Must(t, err)
	faulty := objectstest.NewFaulty(dir)
	a, b := newHost(t, faulty), newHost(t, faulty)
	whole := newContent(1)
	a.publish(whole, templateManifest("t1", ""))
	until := func(try func() error) {
		t.Helper()
		for n := 1; ; n++ {
			left := n
			faulty.Set(objectstest.Faults{Before: func(context.Context, string, string) error {
				if left--; left == 0 {
					return wrenn.Errorf(wrenn.Unavailable, "the store failed")
				}
				return nil
			}})
			if err := try(); err == nil {
				return
			}
		}
	}
	var key string
	until(func() error {
		stored, err := a.UploadTemplate(t.Context(), 0, team, "t1")
		key = stored.Key
		return err
	})
	until(func() error {
		err := b.FetchTemplate(t.Context(), team, "t1", key)
		if len(b.Snapshots.IDs()) > 0 != (err == nil) {
			t.Errorf("after %v the host has %v", err, b.Snapshots.IDs())
		}
		return err
	})
	faulty.Set(objectstest.Faults{})
	b.fetchTemplate(key, "t1", whole)
	until(func() error { return a.RemoveTemplate(t.Context(), team, "t1") })
	faulty.Set(objectstest.Faults{})
	if left := objectstest.List(t, faulty, "teams/"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}
