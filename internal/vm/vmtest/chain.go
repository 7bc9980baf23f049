package vmtest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/vm"
)

// contents is what must be in a guest: files in its memory, and the disk's text.
type contents struct {
	files map[string]byte
	disk  string
}

func (c contents) clone() contents { return contents{maps.Clone(c.files), c.disk} }

// fill changes a file of the guest, and what must be in it.
func (c *contents) fill(t *testing.T, b *machine, name string, with byte) {
	t.Helper()
	must(t, "Fill", b.guest.Fill(within(t), name, with))
	c.files[name] = with
}

func (c *contents) writeDisk(t *testing.T, b *machine, text string) {
	t.Helper()
	must(t, "WriteDisk", b.guest.WriteDisk(within(t), text))
	c.disk = text
}

func (s *suite) wantContents(t *testing.T, b *machine, want contents) {
	t.Helper()
	for name, with := range want.files {
		s.wantFilled(t, b, name, with)
	}
	if text, err := b.guest.ReadDisk(within(t)); err != nil || text != want.disk {
		t.Errorf("ReadDisk() = %q, %v; want %q", text, err, want.disk)
	}
}

func baseContents() contents {
	return contents{map[string]byte{"base": 'b', "later": 'l'}, "base"}
}

// chain snapshots restored machines again and again: what they changed,
// what they changed into zeros and out of them, and what they never touched. Some
// snapshots are one of several of one machine; all stay what they were.
func (s *suite) chain(t *testing.T) { s.chainOf(t, false) }

// exclusiveChain does the same with machines that are restored as exclusive.
func (s *suite) exclusiveChain(t *testing.T) { s.chainOf(t, true) }

func (s *suite) chainOf(t *testing.T, exclusive bool) {
	t.Helper()
	d := s.Driver(t)
	b := s.restore(t, d, s.base)
	want := baseContents()
	between, betweenWant := s.base, want.clone()
	var last snapshot
	for round := range 3 {
		want.fill(t, b, fmt.Sprint("new", round), 'A'+byte(round))
		want.fill(t, b, "later", []byte{0, 'L', 0}[round])
		want.writeDisk(t, b, fmt.Sprint("round", round))
		if round == 1 { // one that the machine survives, and changes what it had changed before
			between, betweenWant = s.snapshot(t, b), want.clone()
			want.fill(t, b, "new1", 0)
			want.fill(t, b, "later", 'L')
		}
		last = s.snapshot(t, b)
		must(t, "Fill", b.guest.Fill(within(t), "later", 'x')) // too late to be in it
		must(t, "Stop", b.Stop(within(t)))
		b = s.restoreAs(t, d, last, exclusive)
		s.wantContents(t, b, want)
	}
	s.counted(t, b, s.counted(t, b, 0))
	s.wantContents(t, s.restoreAs(t, d, last, exclusive), want) // beside b: exclusive is a hint
	must(t, "Stop", b.Stop(within(t)))
	s.wantContents(t, s.restore(t, d, between), betweenWant)
	s.wantBase(t, s.restore(t, d, s.base))
}

// preparedSnapshots prepares snapshots ahead: one that is taken, one that
// another one overtakes, and one that is never taken.
func (s *suite) preparedSnapshots(t *testing.T) {
	d := s.Driver(t)
	b := s.restore(t, d, s.base)
	prepare := func() snapshot {
		t.Helper()
		snap := snapshot{dir: s.newDir(t)}
		must(t, "PrepareSnapshot", b.Machine.(vm.SnapshotPreparer).PrepareSnapshot(within(t), snap.dir))
		return snap
	}
	want := baseContents()
	first := prepare()
	want.fill(t, b, "later", 0)
	want.fill(t, b, "new", 'n')
	want.writeDisk(t, b, "first")
	s.snapshotInto(t, b, &first)
	firstWant := want.clone()

	overtaken := prepare()
	want.fill(t, b, "new", 'o')
	s.snapshot(t, b)
	want.fill(t, b, "later", 'p')
	s.snapshotInto(t, b, &overtaken)
	prepare()
	must(t, "Stop", b.Stop(within(t)))
	s.wantContents(t, s.restore(t, d, overtaken), want)
	s.wantContents(t, s.restore(t, d, first), firstWant)
}

// fullDisk takes a snapshot when there is not a byte left, and then another one
// that must have all that the first would have had.
func (s *suite) fullDisk(t *testing.T) {
	var root, scratch unix.Statfs_t
	must(t, "statfs", errors.Join(unix.Statfs("/", &root), unix.Statfs(s.scratch, &scratch)))
	if root.Fsid == scratch.Fsid || scratch.Type != unix.XFS_SUPER_MAGIC {
		t.Skip("the snapshots are not on a separate file system that can be filled")
	}
	d := s.Driver(t)
	b := s.restore(t, d, s.base)
	want := baseContents()
	want.fill(t, b, "later", 0)
	want.fill(t, b, "new", 'n')
	want.writeDisk(t, b, "full")
	must(t, "Pause", b.Pause(within(t)))
	for _, prepared := range []bool{false, true} { // the first fails at its beginning, the second when the memory is written
		dir := s.newDir(t)
		if prepared {
			must(t, "PrepareSnapshot", b.Machine.(vm.SnapshotPreparer).PrepareSnapshot(within(t), dir))
		}
		empty := s.fillDisk(t)
		err := b.Snapshot(within(t), dir)
		empty()
		t.Log(err)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("prepared %v: Snapshot() = %v, want ENOSPC", prepared, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("prepared %v: the failed snapshot left %v, %v", prepared, entries, err)
		}
	}
	must(t, "Resume", b.Resume(within(t)))
	want.fill(t, b, "new", 'm')
	s.wantContents(t, b, want)
	last := s.snapshot(t, b)
	must(t, "Stop", b.Stop(within(t)))
	s.wantContents(t, s.restore(t, d, last), want)
}

// fillDisk takes all that is free where snapshots go, and returns what gives it back.
func (s *suite) fillDisk(t *testing.T) (empty func()) {
	t.Helper()
	path := filepath.Join(s.newDir(t), "full")
	f, err := os.Create(path)
	must(t, "create", err)
	defer f.Close()
	size := int64(0)
	for piece := int64(1 << 30); piece >= 4096; {
		switch err := unix.Fallocate(int(f.Fd()), 0, size, piece); {
		case err == nil:
			size += piece
		case errors.Is(err, unix.ENOSPC):
			piece /= 2
		case !errors.Is(err, unix.EINTR):
			t.Fatalf("fill the disk: %v", err)
		}
	}
	must(t, "sync", f.Sync())
	return func() { must(t, "remove", os.Remove(path)) }
}

// snapshot takes one of a running machine and lets that go on.
func (s *suite) snapshot(t *testing.T, b *machine) snapshot {
	t.Helper()
	snap := snapshot{dir: s.newDir(t)}
	s.snapshotInto(t, b, &snap)
	return snap
}

func (s *suite) snapshotInto(t *testing.T, b *machine, snap *snapshot) {
	t.Helper()
	must(t, "Pause", b.Pause(within(t)))
	snap.disk = s.cloneDisk(t, b.spec.Disks[0].Path)
	began := time.Now()
	must(t, "Snapshot", b.Snapshot(within(t), snap.dir))
	t.Logf("snapshot took %v", time.Since(began))
	must(t, "Resume", b.Resume(within(t)))
}
