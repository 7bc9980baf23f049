package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/snapshot"
	"wrenn.dev/internal/testkit"
)

const (
	team    = "0b0c7c1e-8d0f-4f6e-9d5e-1f1f4d7c2a11"
	sandbox = "iaaaaaaaaaaaaaaaaaaaa"
)

// host is the snapshots of one host, with an archive in a common store.
type host struct {
	*Archive
	t     *testing.T
	round uint64 // of uploads
}

func newHost(t *testing.T, s objects.Store) *host {
	t.Helper()
	snapshots, err := snapshot.Open(t.TempDir(), durable.NewReserve(filepath.Join(t.TempDir(), "reserve")), slog.New(slog.NewTextHandler(t.Output(), nil)))
	testkit.Must(t, err)
	return &host{&Archive{Objects: s, Snapshots: snapshots, IsShared: func(id string) bool { return strings.HasPrefix(id, "base-") }}, t, 0}
}

func openDir(t *testing.T) objects.Store {
	t.Helper()
	s, err := objects.Open("file://"+t.TempDir(), "", objects.Policy{})
	testkit.Must(t, err)
	return s
}

// content is the memory and the disk of a snapshot.
type content struct{ memory, disk []byte }

func newContent(seed uint64) content {
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := content{make([]byte, 4<<20+100), make([]byte, 8<<20)}
	for i := range 3 << 20 {
		c.memory[i] = byte(rnd.Uint32())
		c.disk[i+1<<20] = byte(rnd.Uint32())
	}
	return c
}

// changed returns the content after a little work of the guest.
func (c content) changed(seed byte) content {
	next := content{bytes.Clone(c.memory), append(bytes.Clone(c.disk), make([]byte, 1<<20)...)} // the disk has grown
	copy(next.memory[1<<20:], bytes.Repeat([]byte{seed, 1, 2}, 1000))
	clear(next.memory[2<<20 : 3<<20])
	copy(next.disk[5<<20:], bytes.Repeat([]byte{seed, 3}, 1000))
	return next
}

// publish makes a snapshot.
func (h *host) publish(c content, man snapshot.Manifest) {
	h.t.Helper()
	st, err := h.Snapshots.Stage()
	testkit.Must(h.t, err)
	testkit.Must(h.t, os.Mkdir(filepath.Join(st.Machine(), "private"), 0o700))
	testkit.Must(h.t, os.WriteFile(filepath.Join(st.Machine(), "private", "memory"), c.memory, 0o444))
	testkit.Must(h.t, os.WriteFile(filepath.Join(st.Machine(), "state"), []byte("device state of "+man.ID), 0o600))
	testkit.Must(h.t, os.WriteFile(st.Disk(), c.disk, 0o600))
	man.Driver, man.MemoryMiB, man.VCPUs, man.Created = "fake", 4, 1, time.Unix(1, 0).UTC()
	_, release, err := st.Publish(h.t.Context(), man)
	testkit.Must(h.t, err)
	release()
}

func (h *host) upload(id string) Stored {
	h.t.Helper()
	stored, err := h.Upload(h.t.Context(), h.round, team, sandbox, id, []byte("state of "+id))
	testkit.Must(h.t, err)
	return stored
}

// fetch fetches a snapshot and checks that it is c.
func (h *host) fetch(key, id string, c content) {
	h.t.Helper()
	snap, state, release, err := h.Fetch(h.t.Context(), team, sandbox, key)
	testkit.Must(h.t, err)
	defer release()
	if snap.ID != id || snap.MemoryMiB != 4 || snap.Driver != "fake" || snap.Pinned || string(state) != "state of "+id {
		h.t.Errorf("%+v, state %q", snap.Manifest, state)
	}
	h.equals(id, c)
	if info, err := os.Stat(snap.Path(snapshot.File{Path: "machine/private/memory"})); err != nil || info.Mode().Perm() != 0o444 {
		h.t.Errorf("%v, %v", info.Mode(), err)
	}
	testkit.Must(h.t, h.Snapshots.Verify(h.t.Context(), id))
}

// equals checks that the host has c as the snapshot.
func (h *host) equals(id string, c content) {
	h.t.Helper()
	snap, release, err := h.Snapshots.Load(h.t.Context(), id)
	testkit.Must(h.t, err)
	defer release()
	for path, want := range map[string][]byte{"machine/private/memory": c.memory, "root.ext4": c.disk, "machine/state": []byte("device state of " + id)} {
		got, err := os.ReadFile(snap.Path(snapshot.File{Path: path}))
		if err != nil || !bytes.Equal(got, want) {
			h.t.Errorf("%s is another: %d bytes, %v", path, len(got), err)
		}
	}
}

// TestAnotherHost stores the snapshots of two sandboxes of one template, and makes them
// on a host that never had the template.
func TestAnotherHost(t *testing.T) {
	server := objectstest.StartServer(t)
	s3, err := objects.Open(server.URL(), server.Credentials, objects.Policy{})
	testkit.Must(t, err)
	for name, s := range map[string]objects.Store{"directory": openDir(t), "s3": s3} {
		t.Run(name, func(t *testing.T) {
			a := newHost(t, s)
			base := newContent(1)
			one, two := base.changed(1), base.changed(2)
			a.publish(base, snapshot.Manifest{ID: "base-1", Pinned: true})
			a.publish(one, snapshot.Manifest{ID: "s1", Base: "base-1"})
			a.publish(two, snapshot.Manifest{ID: "s2", Base: "base-1"})
			first, second, again := a.upload("s1"), a.upload("s2"), a.upload("s1")
			if first.Bytes < 6<<20 || second.Bytes > 256<<10 || again.Bytes > 16<<10 || again.Key != first.Key {
				t.Errorf("sent are %d, %d and %d bytes, the keys are %s and %s", first.Bytes, second.Bytes, again.Bytes, first.Key, again.Key)
			}
			if shared, own := objectstest.List(t, s, "shared/"), objectstest.List(t, s, "teams/"+team+"/"); len(shared) != 2 || len(own) != 6 {
				t.Errorf("shared are %v, and the team's %v", shared, own)
			}
			b := newHost(t, s)
			b.fetch(first.Key, "s1", one)
			had := len(b.Snapshots.IDs())
			b.fetch(second.Key, "s2", two)
			b.fetch(second.Key, "s2", two) // twice is allowed
			if ids := b.Snapshots.IDs(); had != 2 || len(ids) != 3 {
				t.Errorf("the host has %d and then %v: the base is to be fetched once", had, ids)
			}
			testGoesOn(t, a, b, two.changed(7))
		})
	}
}

// testGoesOn: what a sandbox does on b after s2 is stored as the difference to its
// template there, and comes back to a, which has the template.
func testGoesOn(t *testing.T, a, b *host, later content) {
	t.Helper()
	b.publish(later, snapshot.Manifest{ID: "s3", Base: b.Snapshots.BaseOf("s2")})
	third := b.upload("s3")
	if third.Bytes > 256<<10 {
		t.Errorf("sent are %d bytes", third.Bytes)
	}
	had := len(a.Snapshots.IDs())
	a.fetch(third.Key, "s3", later)
	if n := len(a.Snapshots.IDs()); n != had+1 {
		t.Errorf("%d snapshots more: the host has the template", n-had)
	}
	testkit.Must(t, b.Snapshots.Collect(t.Context(), func() map[string]bool { return map[string]bool{"s3": true} }))
	if ids := b.Snapshots.IDs(); len(ids) != 2 {
		t.Errorf("left are %v, want s3 and its base", ids)
	}
	testkit.Must(t, b.Snapshots.Collect(t.Context(), func() map[string]bool { return nil }))
	if ids := b.Snapshots.IDs(); len(ids) != 0 {
		t.Errorf("left are %v", ids)
	}
}

// TestWithoutBase: a snapshot whose base is gone is stored whole.
func TestWithoutBase(t *testing.T) {
	s := openDir(t)
	a := newHost(t, s)
	c := newContent(3)
	a.publish(c, snapshot.Manifest{ID: "s1", Base: "gone"})
	stored := a.upload("s1")
	newHost(t, s).fetch(stored.Key, "s1", c)
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	s, err := objects.Open("file://"+dir, "", objects.Policy{})
	testkit.Must(t, err)
	a := newHost(t, s)
	a.publish(newContent(1), snapshot.Manifest{ID: "s1"})
	a.publish(newContent(2), snapshot.Manifest{ID: "s2"})
	one, two := a.upload("s1"), a.upload("s2")
	fetch := func(owner, of, key string) error {
		_, _, _, err := newHost(t, s).Fetch(t.Context(), owner, of, key)
		return err
	}
	other := strings.Repeat("1", 36)
	testkit.WantCode(t, fetch(other, sandbox, one.Key), wrenn.FailedPrecondition, "team")
	testkit.WantCode(t, fetch(team, "ibbbbbbbbbbbbbbbbbbbb", one.Key), wrenn.FailedPrecondition, "of sandbox")
	for _, key := range []string{"", "shared/layers/x", "teams/" + team + "/layers/x", one.Key + "0", "teams/" + team + "/snapshots/../x"} {
		testkit.WantCode(t, fetch(team, sandbox, key), wrenn.FailedPrecondition)
	}
	testkit.WantCode(t, fetch(team, sandbox, one.Key[:len(one.Key)-4]+"0000"), wrenn.NotFound)
	_, err = a.Upload(t.Context(), 0, "../x", sandbox, "s1", nil)
	testkit.WantCode(t, err, wrenn.Invalid)

	file := func(key string) string { return filepath.Join(dir, filepath.FromSlash(key)) }
	read := func(key string) []byte {
		text, err := os.ReadFile(file(key))
		testkit.Must(t, err)
		return text
	}
	record := read(one.Key)
	for says, text := range map[string][]byte{"damaged": record[:len(record)/2], "another snapshot": read(two.Key)} {
		testkit.Must(t, os.WriteFile(file(one.Key), text, 0o600))
		testkit.WantCode(t, fetch(team, sandbox, one.Key), wrenn.FailedPrecondition, says)
	}
	// A record under another team's prefix.
	testkit.Must(t, os.MkdirAll(filepath.Dir(file("teams/"+other+"/snapshots/x")), 0o700))
	moved := strings.Replace(one.Key, team, other, 1)
	testkit.Must(t, os.WriteFile(file(moved), record, 0o600))
	testkit.WantCode(t, fetch(other, sandbox, moved), wrenn.FailedPrecondition, "another team")

	testkit.Must(t, os.WriteFile(file(one.Key), record, 0o600))
	layers := objectstest.List(t, s, "teams/"+team+"/layers/")
	whole := read(layers[0])
	for _, change := range [][]byte{whole[:len(whole)/2], read(layers[1]), bytes.ReplaceAll(whole, whole[100:104], []byte("xxxx"))} {
		testkit.Must(t, os.WriteFile(file(layers[0]), change, 0o600))
		if err := errors.Join(fetch(team, sandbox, one.Key), fetch(team, sandbox, two.Key)); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("a layer was changed: %v", err)
		}
	}
	testkit.Must(t, os.Remove(file(layers[0])))
	if err := errors.Join(fetch(team, sandbox, one.Key), fetch(team, sandbox, two.Key)); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("a layer is missing: %v", err)
	}
}

// TestInterrupted: uploads and fetches that fail at any call leave nothing on the hosts,
// and are finished by the next ones.
func TestInterrupted(t *testing.T) {
	dir, err := objects.OpenDir(t.TempDir())
	testkit.Must(t, err)
	faulty := objectstest.NewFaulty(dir)
	a := newHost(t, faulty)
	base := newContent(1)
	one := base.changed(1)
	a.publish(base, snapshot.Manifest{ID: "base-1", Pinned: true})
	a.publish(one, snapshot.Manifest{ID: "s1", Base: "base-1"})
	failAt := func(n int) {
		faulty.Set(objectstest.Faults{Before: func(context.Context, string, string) error {
			if n--; n == 0 {
				return wrenn.Errorf(wrenn.Exhausted, "the store is full")
			}
			return nil
		}})
	}
	var key string
	for n := 1; key == ""; n++ {
		failAt(n)
		stored, err := a.Upload(t.Context(), 0, team, sandbox, "s1", []byte("state of s1"))
		if err == nil {
			key = stored.Key
		}
		if diff := cmp.Diff([]string{"base-1", "s1"}, a.Snapshots.IDs()); diff != "" {
			t.Error(diff)
		}
	}
	b := newHost(t, faulty)
	for n := 1; ; n++ {
		failAt(n)
		_, _, release, err := b.Fetch(t.Context(), team, sandbox, key)
		if err == nil {
			release()
			break
		}
		testkit.WantCode(t, err, wrenn.Exhausted)
	}
	faulty.Set(objectstest.Faults{Body: func(_ string, r io.ReadCloser) io.ReadCloser { return r }})
	b.fetch(key, "s1", one)
}
