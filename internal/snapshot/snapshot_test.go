package snapshot

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/durable"
	"wrenn.dev/internal/testkit"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, durable.NewReserve(filepath.Join(t.TempDir(), "reserve")), slog.New(slog.NewTextHandler(t.Output(), nil)))
	testkit.Must(t, err)
	s.settle = 0
	return s
}

// stage makes the files that a driver and a clone make: a large memory, a small state, a disk.
func stage(t *testing.T, s *Store) *Staged {
	t.Helper()
	st, err := s.Stage()
	testkit.Must(t, err)
	testkit.Must(t, os.Mkdir(filepath.Join(st.Machine(), "private"), 0o700))
	memory := make([]byte, smallFile+5*chunk)
	copy(memory[3*chunk:], "something in the middle")
	testkit.Must(t, os.WriteFile(filepath.Join(st.Machine(), "private", "memory"), memory, 0o600))
	testkit.Must(t, os.WriteFile(filepath.Join(st.Machine(), "state"), []byte("state"), 0o600))
	testkit.Must(t, os.WriteFile(st.Disk(), []byte("disk"), 0o600))
	return st
}

func publish(t *testing.T, s *Store, man Manifest) (release func()) {
	t.Helper()
	_, release, err := stage(t, s).Publish(t.Context(), man)
	testkit.Must(t, err)
	return release
}

func isHashing(s *Store) bool {
	id, _ := s.unhashed()
	return id != ""
}

// hashAll does what Run does.
func hashAll(t *testing.T, s *Store) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	testkit.WaitUntil(t, "the snapshots are hashed", func() bool { return !isHashing(s) })
	stop()
	testkit.Must(t, <-done)
}

func TestPublishAndLoad(t *testing.T) {
	s := open(t, t.TempDir())
	publish(t, s, Manifest{ID: "one", Driver: "fake", VCPUs: 2, MemoryMiB: 64})()
	for range 2 { // and after a restart
		snap, release, err := s.Load(t.Context(), "one")
		testkit.Must(t, err)
		if disk, err := os.ReadFile(snap.Disk()); err != nil || string(disk) != "disk" {
			t.Errorf("disk = %q, %v", disk, err)
		}
		var paths []string
		for _, f := range snap.Files {
			paths = append(paths, f.Path)
		}
		if diff := cmp.Diff([]string{"machine/private/memory", "machine/state", "root.ext4"}, paths); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
		if snap.VCPUs != 2 || snap.MemoryMiB != 64 || snap.Driver != "fake" {
			t.Errorf("manifest = %+v", snap.Manifest)
		}
		release()
		release() // twice is allowed
		s = open(t, s.dir)
	}
	if _, _, err := s.Load(t.Context(), "two"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Load() of none = %v, want NotFound", err)
	}
}

func TestIDs(t *testing.T) {
	s := open(t, t.TempDir())
	for _, id := range []string{"", "-a", "A", "a/b", "..", stagedPrefix + "1", "a b", "a\n", strings.Repeat("a", 64)} {
		st := stage(t, s)
		if _, _, err := st.Publish(t.Context(), Manifest{ID: id}); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("Publish(%q) = %v, want Invalid", id, err)
		}
		testkit.Must(t, st.Discard(t.Context()))
	}
	publish(t, s, Manifest{ID: "a"})
	st := stage(t, s)
	if _, _, err := st.Publish(t.Context(), Manifest{ID: "a"}); wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("a second Publish() = %v, want AlreadyExists", err)
	}
	testkit.Must(t, errors.Join(st.Discard(t.Context()), st.Discard(t.Context())))
	wantEntries(t, s.dir, "a")
}

func wantEntries(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	testkit.Must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries of the store (-want +got):\n%s", diff)
	}
}

func TestOpenRemovesHalfSnapshots(t *testing.T) {
	s := open(t, t.TempDir())
	publish(t, s, Manifest{ID: "whole"})
	stage(t, s)
	s = open(t, s.dir)
	wantEntries(t, s.dir, "whole")
}

// A snapshot that is not what was published is refused by name, and the others can be loaded.
func TestDamagedSnapshotsAreRefused(t *testing.T) {
	memory := filepath.Join(machineName, "private", "memory")
	change := func(file string) func(string) error {
		return func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return err
			}
			data[len(data)/2] ^= 1
			return os.WriteFile(filepath.Join(dir, file), data, 0o600)
		}
	}
	cut := func(file string) func(string) error {
		return func(dir string) error { return os.Truncate(filepath.Join(dir, file), 3) }
	}
	for _, tc := range []struct {
		name   string
		damage func(dir string) error
		want   string
	}{
		{"memory cut", cut(memory), "machine/private/memory has 3 bytes"},
		{"memory changed", change(memory), "content of its file machine/private/memory"},
		{"memory gone", func(dir string) error { return os.Remove(filepath.Join(dir, memory)) }, "machine/private/memory is missing"},
		{"state changed", change(filepath.Join(machineName, "state")), "content of its file machine/state"},
		{"disk cut", cut(diskName), "root.ext4 has 3 bytes"},
		{"manifest cut", cut(manifestName), "manifest snapshot.json is damaged"},
		{"manifest gone", func(dir string) error { return os.Remove(filepath.Join(dir, manifestName)) }, "manifest snapshot.json is missing"},
		{"another's manifest", func(dir string) error {
			other, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "good", manifestName))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, manifestName), other, 0o600)
		}, `manifest is that of snapshot "good"`},
		{"a newer format", func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, manifestName))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, manifestName), bytes.Replace(data, []byte(`"format": 2`), []byte(`"format": 3`), 1), 0o600)
		}, "it has format 3, and this version reads format 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := open(t, t.TempDir())
			publish(t, s, Manifest{ID: "bad"})()
			publish(t, s, Manifest{ID: "good"})()
			hashAll(t, s)
			testkit.Must(t, tc.damage(s.path("bad")))
			for range 2 { // and after a restart
				_, _, err := s.Load(t.Context(), "bad")
				if wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), "snapshot bad") || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("Load() = %v, want FailedPrecondition with %q", err, tc.want)
				}
				testkit.Must(t, s.Verify(t.Context(), "good"))
				s = open(t, s.dir)
			}
		})
	}
}

// Files copied from another host are read once, and unchanged files are not.
func TestLargeFilesAreReadOnceAfterACopy(t *testing.T) {
	there := open(t, t.TempDir())
	publish(t, there, Manifest{ID: "one"})()
	hashAll(t, there)
	here := t.TempDir()
	testkit.Must(t, os.CopyFS(filepath.Join(here, "one"), os.DirFS(there.path("one"))))
	s := open(t, here)
	var recorded []hashes
	for range 3 {
		recorded = append(recorded, readHashes(s.path("one")))
		_, release, err := s.Load(t.Context(), "one")
		testkit.Must(t, err)
		release()
	}
	if cmp.Equal(recorded[0], recorded[1]) || !cmp.Equal(recorded[1], recorded[2]) {
		t.Errorf("hashes before and after two loads: %v, want the copy's file recorded once", recorded)
	}
	testkit.Must(t, s.Verify(t.Context(), "one"))

	// Verify finds rot that changes no mtime.
	memory := filepath.Join(s.path("one"), machineName, "private", "memory")
	info, err := os.Stat(memory)
	testkit.Must(t, err)
	f, err := os.OpenFile(memory, os.O_WRONLY, 0)
	testkit.Must(t, err)
	_, err = f.WriteAt([]byte("x"), 7)
	testkit.Must(t, errors.Join(err, f.Close(), os.Chtimes(memory, info.ModTime(), info.ModTime())))
	if err := s.Verify(t.Context(), "one"); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("Verify() = %v, want FailedPrecondition", err)
	}
}

func TestDigestDoesNotDependOnHoles(t *testing.T) {
	const size = 10*chunk + 100
	data := make([]byte, size)
	copy(data[4*chunk-2:], "over a boundary")
	data[size-1] = 1
	full, sparse := filepath.Join(t.TempDir(), "full"), filepath.Join(t.TempDir(), "sparse")
	testkit.Must(t, os.WriteFile(full, data, 0o600))
	testkit.Must(t, os.WriteFile(sparse, nil, 0o600))
	testkit.Must(t, os.Truncate(sparse, size))
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	testkit.Must(t, err)
	for _, at := range [][2]int{{4*chunk - 2, 4*chunk + 20}, {size - 1, size}} {
		_, err = f.WriteAt(data[at[0]:at[1]], int64(at[0]))
		testkit.Must(t, err)
	}
	testkit.Must(t, f.Close())
	want, err := hashFile(t.Context(), full)
	testkit.Must(t, err)
	got, err := hashFile(t.Context(), sparse)
	testkit.Must(t, err)
	if want.SHA256 != got.SHA256 {
		t.Error("the digests differ")
	}
	testkit.Must(t, os.Truncate(sparse, size+1))
	if longer, err := hashFile(t.Context(), sparse); err != nil || longer.SHA256 == want.SHA256 {
		t.Errorf("a longer file has the same digest (%v)", err)
	}
}

func TestCollect(t *testing.T) {
	for _, tc := range []struct {
		name  string
		man   Manifest
		refs  []string
		lease bool
		unpin bool
		stays bool
	}{
		{name: "unused"},
		{name: "referenced", refs: []string{"it"}, stays: true},
		{name: "leased", lease: true, stays: true},
		{name: "pinned", man: Manifest{Pinned: true}, stays: true},
		{name: "unpinned", man: Manifest{Pinned: true}, unpin: true},
		{name: "unpinned but referenced", man: Manifest{Pinned: true}, unpin: true, refs: []string{"it"}, stays: true},
		{name: "transient", man: Manifest{Transient: true}},
		{name: "transient and referenced", man: Manifest{Transient: true}, refs: []string{"it"}, stays: true},
	} {
		for _, restarted := range []bool{false, true} {
			if restarted && tc.lease {
				continue // a lease ends with its process
			}
			t.Run(tc.name+map[bool]string{true: ", after a restart"}[restarted], func(t *testing.T) {
				s := open(t, t.TempDir())
				tc.man.ID = "it"
				publish(t, s, tc.man)()
				if tc.unpin {
					testkit.Must(t, s.Unpin("it"))
				}
				if restarted {
					s = open(t, s.dir)
				}
				if tc.lease {
					_, release, err := s.Load(t.Context(), "it")
					testkit.Must(t, err)
					defer release()
				}
				testkit.Must(t, s.Collect(t.Context(), func() map[string]bool {
					refs := map[string]bool{}
					for _, id := range tc.refs {
						refs[id] = true
					}
					return refs
				}))
				if s.Has("it") != tc.stays {
					t.Errorf("Has() = %v, want %v", s.Has("it"), tc.stays)
				}
				if tc.stays {
					wantEntries(t, s.dir, "it")
				} else {
					wantEntries(t, s.dir)
				}
			})
		}
	}
}

// A snapshot that is leased while Collect looks for references stays, even if the
// new reference comes too late for Collect.
func TestCollectSparesANewLease(t *testing.T) {
	s := open(t, t.TempDir())
	publish(t, s, Manifest{ID: "it"})()
	testkit.Must(t, s.Collect(t.Context(), func() map[string]bool {
		_, release, err := s.Load(t.Context(), "it")
		testkit.Must(t, err)
		release()
		return nil
	}))
	if !s.Has("it") {
		t.Error("it was collected")
	}
}

// An unreadable snapshot stays: its owner is unknown.
func TestCollectSparesUnreadableSnapshots(t *testing.T) {
	s := open(t, t.TempDir())
	publish(t, s, Manifest{ID: "it"})()
	testkit.Must(t, os.WriteFile(filepath.Join(s.path("it"), manifestName), nil, 0o600))
	s = open(t, s.dir)
	testkit.Must(t, s.Collect(t.Context(), func() map[string]bool { return nil }))
	wantEntries(t, s.dir, "it")
	testkit.Must(t, s.Unpin("it"))
	testkit.Must(t, s.Collect(t.Context(), func() map[string]bool { return nil }))
	wantEntries(t, s.dir)
}

// A snapshot is not hashed while its sandbox may be resumed at once.
func TestHashingWaits(t *testing.T) {
	s := open(t, t.TempDir())
	s.settle = time.Hour
	publish(t, s, Manifest{ID: "one", Driver: "fake"})()
	s.settle = time.Minute
	publish(t, s, Manifest{ID: "two", Driver: "fake"})()
	id, due := s.unhashed()
	if wait := time.Until(due); id != "two" || wait <= 0 || wait > time.Minute {
		t.Errorf("next is %q, in %v; want two, within a minute", id, wait)
	}
}

// TestUnused: fetched snapshots without a lease for some time are unused, others are not.
func TestUnused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	stored := wrenn.Stored{Key: "somewhere"}
	publish(t, s, Manifest{ID: "fetched", Pinned: true, Owner: "team", Copy: stored, Fetched: true})()
	leased := publish(t, s, Manifest{ID: "leased", Pinned: true, Owner: "team", Copy: stored, Fetched: true})
	publish(t, s, Manifest{ID: "built", Pinned: true, Owner: "team", Copy: stored})()
	publish(t, s, Manifest{ID: "removed", Owner: "team", Copy: stored, Fetched: true})()
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	want := func(since time.Time, want ...string) {
		t.Helper()
		got := s.Unused(since)
		for _, id := range want {
			if got[id] != stored {
				t.Errorf("%s is not in %v", id, got)
			}
		}
		if len(got) != len(want) {
			t.Errorf("unused are %v, want %v", got, want)
		}
	}
	want(past)
	want(future, "fetched")
	leased()
	want(future, "fetched", "leased")
	s = open(t, dir)
	want(past)
	want(future, "fetched", "leased")
}
