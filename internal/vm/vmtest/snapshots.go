package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
)

func (s *suite) snapshotRefused(t *testing.T) {
	b := s.restore(t, s.Driver(t), s.base)
	dir := s.newDir(t)
	if code := wrenn.CodeOf(b.Snapshot(within(t), dir)); code != wrenn.FailedPrecondition {
		t.Errorf("snapshot of a running machine: %s", code)
	}
	must(t, "Pause", b.Pause(within(t)))
	file := filepath.Join(dir, "other")
	must(t, "file", os.WriteFile(file, []byte("x"), 0o600))
	for name, bad := range map[string]string{"a full directory": dir, "no directory": filepath.Join(dir, "none")} {
		if code := wrenn.CodeOf(b.Snapshot(within(t), bad)); code != wrenn.FailedPrecondition {
			t.Errorf("snapshot into %s: %s", name, code)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("a refused snapshot left %v", entries)
	}
	must(t, "Resume", b.Resume(within(t)))
	s.counted(t, b, 0)
}

// restoreOnly expects Restore to fail.
func (s *suite) restoreOnly(t *testing.T, d vm.Driver, spec vm.Spec, dir string) error {
	t.Helper()
	m, err := d.Restore(within(t), spec, dir)
	if err == nil {
		must(t, "Stop", m.Stop(within(t)))
		t.Error("Restore succeeded")
	}
	s.wantNothing(t, spec)
	return err
}

func (s *suite) restoreFailures(t *testing.T) {
	for _, step := range s.RestoreSteps {
		t.Run(step, func(t *testing.T) {
			spec, _ := s.newSpec(t, s.base.disk)
			t.Log(s.restoreOnly(t, s.Failing(t, step), spec, s.base.dir))
		})
	}
}

func (s *suite) otherShape(t *testing.T) {
	d := s.Driver(t)
	for name, change := range map[string]func(*vm.Spec){
		"vCPUs":  func(spec *vm.Spec) { spec.VCPUs++ },
		"memory": func(spec *vm.Spec) { spec.MemoryMiB += 2 },
		"disks":  func(spec *vm.Spec) { spec.Disks = append(spec.Disks, spec.Disks[0]) },
		"MAC":    func(spec *vm.Spec) { spec.Net.MAC = "02:fc:00:00:00:06" },
		"kernel": func(spec *vm.Spec) { spec.Kernel.Digest += "2" },
	} {
		spec, _ := s.newSpec(t, s.base.disk)
		change(&spec)
		if err := s.restoreOnly(t, d, spec, s.base.dir); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("%s: Restore() = %v, want FailedPrecondition", name, err)
		}
	}
}

// damagedSnapshot takes each file away, cuts it, and flips bits in it, one at a
// time. The content of the memory file is not read before a guest reads it.
func (s *suite) damagedSnapshot(t *testing.T) {
	d := s.Driver(t)
	spec, _ := s.newSpec(t, s.base.disk)
	before := hashes(t, s.base.dir)
	refused := func(t *testing.T, what, path string) {
		t.Helper()
		err := s.restoreOnly(t, d, spec, s.base.dir)
		if name := filepath.Base(path); wrenn.CodeOf(err) != wrenn.FailedPrecondition || !strings.Contains(err.Error(), name) {
			t.Errorf("%s %s: Restore() = %v, want FailedPrecondition that names it", name, what, err)
		}
	}
	for path := range before {
		aside := filepath.Join(s.newDir(t), "aside")
		must(t, "move", os.Rename(path, aside))
		refused(t, "is missing", path)
		info, err := os.Stat(aside)
		must(t, "stat", err)
		if _, err := storage.Clone(t.Context(), path, aside, info.Mode().Perm()|0o200); err != nil {
			t.Fatal(err)
		}
		if !s.unread(path) {
			for _, at := range []int64{0, info.Size() / 2, info.Size() - 1} {
				flip(t, path, at)
				refused(t, fmt.Sprintf("has a flipped bit at %d", at), path)
				flip(t, path, at)
			}
		}
		for _, size := range []int64{info.Size() + 1, info.Size() - 1, info.Size() / 2, 0} {
			must(t, "cut", os.Truncate(path, size))
			refused(t, fmt.Sprintf("has %d bytes", size), path)
		}
		must(t, "move back", os.Rename(aside, path))
	}
	wantSame(t, before, hashes(t, s.base.dir))
	if code := wrenn.CodeOf(s.restoreOnly(t, d, spec, filepath.Join(s.scratch, "none"))); code != wrenn.FailedPrecondition {
		t.Errorf("without a snapshot: %s", code)
	}
}

// unread reports whether a file holds a guest's memory.
func (s *suite) unread(path string) bool { return s.RootFS != "" && filepath.Base(path) == "memory" }

// flip flips a bit of the byte at the offset.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, "open", err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(t, "read", err)
	b[0] ^= 1
	_, err = f.WriteAt(b, at)
	must(t, "write", err)
}

func (s *suite) restoreElsewhere(t *testing.T) {
	before := hashes(t, s.base.dir)
	began := time.Now()
	b := s.restore(t, s.Driver(t), s.base)
	t.Logf("restore to ready took %v", time.Since(began))
	s.wantIsolated(t, b)
	s.wantBase(t, b)
	must(t, "Fill", b.guest.Fill(within(t), "base", 'y'))
	must(t, "WriteDisk", b.guest.WriteDisk(within(t), "changed"))
	must(t, "Stop", b.Stop(within(t)))
	wantSame(t, before, hashes(t, s.base.dir))
	s.wantBase(t, s.restore(t, s.Driver(t), s.base))
}

// wantBase checks that the guest is as it was when the base snapshot was taken.
func (s *suite) wantBase(t *testing.T, b *machine) {
	t.Helper()
	s.wantFilled(t, b, "base", 'b')
	s.wantFilled(t, b, "later", 'l')
	text, err := b.guest.ReadDisk(within(t))
	if err != nil || text != "base" {
		t.Errorf("ReadDisk() = %q, %v; want base", text, err)
	}
	n := s.counted(t, b, 0) // the process that counts has survived, and runs
	s.counted(t, b, n)
}

func wantSame(t *testing.T, before, after map[string]uint64) {
	t.Helper()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the snapshot changed (-before +after):\n%s", diff)
	}
}

// tenRestores restores the base ten times at once, each of which writes its own.
func (s *suite) tenRestores(t *testing.T) {
	const n = 10
	d := s.Driver(t)
	before := hashes(t, s.base.dir)
	specs, guests := make([]vm.Spec, n), make([]Guest, n)
	for i := range n {
		specs[i], guests[i] = s.newSpec(t, s.base.disk)
	}
	machines, errs := make([]*machine, n), make([]error, n)
	ctx := within(t)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			m, err := d.Restore(ctx, specs[i], s.base.dir)
			if err == nil {
				machines[i] = &machine{Machine: m, spec: specs[i], guest: guests[i]}
				err = guests[i].WaitReady(ctx, m.Wait)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	t.Logf("%d restores at once, all ready after %v", n, time.Since(began))
	for i, b := range machines {
		if b != nil {
			s.watch(t, b.Machine, b.spec, b.guest)
		}
		if errs[i] != nil {
			t.Fatalf("restore %d: %v", i, errs[i])
		}
	}
	oneByOne(t, machines, func(i int, b *machine) { must(t, "Fill", b.guest.Fill(within(t), "later", 'A'+byte(i))) })
	oneByOne(t, machines, func(i int, b *machine) {
		s.wantFilled(t, b, "base", 'b')
		s.wantFilled(t, b, "later", 'A'+byte(i))
	})
	wantSame(t, before, hashes(t, s.base.dir))
}

// oneByOne lets one machine run at a time: ten emulated ones would share the
// host's few CPUs for a minute.
func oneByOne(t *testing.T, machines []*machine, fn func(int, *machine)) {
	t.Helper()
	for _, b := range machines {
		must(t, "Pause", b.Pause(within(t)))
	}
	for i, b := range machines {
		must(t, "Resume", b.Resume(within(t)))
		fn(i, b)
		must(t, "Pause", b.Pause(within(t)))
	}
}
