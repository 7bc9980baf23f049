package vmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/vm"
)

func (s *suite) badSpecs(t *testing.T) {
	d := s.Driver(t)
	for name, spoil := range map[string]func(*vm.Spec){
		"id":      func(spec *vm.Spec) { spec.ID = "../up" },
		"vCPUs":   func(spec *vm.Spec) { spec.VCPUs = 0 },
		"memory":  func(spec *vm.Spec) { spec.MemoryMiB = 65 },
		"long":    func(spec *vm.Spec) { spec.Dir = "/tmp/" + string(make([]byte, 60)) },
		"MAC":     func(spec *vm.Spec) { spec.Net.MAC = "x,script=/bin/sh" },
		"kernel":  func(spec *vm.Spec) { spec.Kernel.Image = "" },
		"no disk": func(spec *vm.Spec) { spec.Disks[0].Path = "" },
	} {
		spec, _ := s.newSpec(t, s.RootFS)
		good := spec
		if spoil(&spec); wrenn.CodeOf(startOnly(t, d, spec)) != wrenn.Invalid {
			t.Errorf("%s: not Invalid", name)
		}
		s.wantNothing(t, good)
	}
	spec, _ := s.newSpec(t, s.RootFS)
	file := filepath.Join(spec.Dir, "other")
	must(t, "file", os.WriteFile(file, []byte("x"), 0o600))
	if code := wrenn.CodeOf(startOnly(t, d, spec)); code != wrenn.FailedPrecondition {
		t.Errorf("a directory with a file in it: %s", code)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file in it: %v", err)
	}
}

// startOnly expects Start to fail.
func startOnly(t *testing.T, d vm.Driver, spec vm.Spec) error {
	t.Helper()
	m, err := d.Start(within(t), spec)
	if err == nil {
		must(t, "Stop", m.Stop(within(t)))
	}
	return err
}

func (s *suite) startFailures(t *testing.T) {
	for _, step := range s.StartSteps {
		t.Run(step, func(t *testing.T) {
			spec, _ := s.newSpec(t, s.RootFS)
			err := startOnly(t, s.Failing(t, step), spec)
			if err == nil {
				t.Fatal("Start succeeded")
			}
			t.Log(err)
			s.wantNothing(t, spec)
		})
	}
	t.Run("missing kernel", func(t *testing.T) {
		spec, _ := s.newSpec(t, s.RootFS)
		spec.Kernel.Image = filepath.Join(spec.Dir, "none")
		if err := startOnly(t, s.Driver(t), spec); err == nil {
			t.Error("Start succeeded")
		}
		s.wantNothing(t, spec)
	})
	t.Run("canceled", func(t *testing.T) {
		spec, _ := s.newSpec(t, s.RootFS)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if m, err := s.Driver(t).Start(ctx, spec); err == nil {
			must(t, "Stop", m.Stop(within(t)))
			t.Error("Start succeeded")
		}
		s.wantNothing(t, spec)
	})
}

// life follows one machine from its boot to its end.
func (s *suite) life(t *testing.T) {
	d := s.Driver(t)
	began := time.Now()
	b := s.start(t, d)
	b.ready(t)
	t.Logf("boot to ready took %v", time.Since(began))
	if b.Ref().Driver != d.Name() || b.Ref().ID != b.spec.ID || b.Ref().Dir != b.spec.Dir {
		t.Errorf("Ref() = %+v", b.Ref())
	}
	s.wantIsolated(t, b)
	if code := wrenn.CodeOf(startOnly(t, d, b.spec)); code != wrenn.FailedPrecondition {
		t.Errorf("a second start in the same directory: %s", code)
	}
	must(t, "BusyTimer", b.guest.BusyTimer(within(t)))
	must(t, "Fill", b.guest.Fill(within(t), "base", 'b'))
	must(t, "Fill", b.guest.Fill(within(t), "later", 'l'))
	must(t, "WriteDisk", b.guest.WriteDisk(within(t), "base"))
	must(t, "StartCounter", b.guest.StartCounter(within(t)))
	s.pauseAndResume(t, b)
	s.takeBase(t, b)
	s.growDisk(t, b)
	s.wantWaitEndsWithContext(t, b)
	waits := s.waiters(t, b, 3)
	for range 2 {
		must(t, "Stop", b.Stop(within(t)))
	}
	for err := range waits {
		if err != nil {
			t.Errorf("Wait after Stop = %v", err)
		}
	}
	s.wantNothing(t, b.spec)
	s.wantRefusals(t, b)
}

// pauseAndResume leaves the machine running.
func (s *suite) pauseAndResume(t *testing.T, b *machine) {
	t.Helper()
	before := s.counted(t, b, 0)
	for range 2 {
		must(t, "Pause", b.Pause(within(t)))
	}
	ctx, cancel := context.WithTimeout(within(t), 500*time.Millisecond)
	defer cancel()
	if n, err := b.guest.Counter(ctx); err == nil {
		t.Errorf("a paused guest answered: %d", n)
	}
	for range 2 {
		must(t, "Resume", b.Resume(within(t)))
	}
	s.counted(t, b, before)
}

// counted waits until the guest's counter is greater than after.
func (s *suite) counted(t *testing.T, b *machine, after int) int {
	t.Helper()
	ctx := within(t)
	for {
		n, err := b.guest.Counter(ctx)
		must(t, "Counter", err)
		if n > after {
			return n
		}
	}
}

// takeBase makes the snapshot that the suite restores, and checks that the
// machine going on does not reach it.
func (s *suite) takeBase(t *testing.T, b *machine) {
	t.Helper()
	must(t, "Pause", b.Pause(within(t)))
	base := snapshot{dir: filepath.Join(s.scratch, "base"), disk: filepath.Join(s.scratch, "base.disk")}
	must(t, "mkdir", os.Mkdir(base.dir, 0o700))
	must(t, "disk", os.Rename(s.cloneDisk(t, b.spec.Disks[0].Path), base.disk))
	must(t, "Snapshot", b.Snapshot(within(t), base.dir))
	s.base = base
	before := hashes(t, base.dir)
	must(t, "Resume", b.Resume(within(t)))
	must(t, "Fill", b.guest.Fill(within(t), "later", 'x'))
	disk := &b.spec.Disks[0].Path
	must(t, "rename the disk", os.Rename(*disk, *disk+".renamed"))
	*disk += ".renamed"
	must(t, "WriteDisk", b.guest.WriteDisk(within(t), "later"))
	s.wantFilled(t, b, "later", 'x')
	wantSame(t, before, hashes(t, base.dir))
	s.snapshot(t, b) // once more: the first must not have spoilt anything
	s.counted(t, b, 0)
}

// grownBy is how much larger a disk of a test may become.
const grownBy = 1 << 30

// growDisk makes the disk, which takeBase has renamed, larger under the running guest.
func (s *suite) growDisk(t *testing.T, b *machine) {
	t.Helper()
	disk := strings.TrimSuffix(b.spec.Disks[0].Path, ".renamed")
	must(t, "rename the disk", os.Rename(b.spec.Disks[0].Path, disk))
	b.spec.Disks[0].Path = disk
	info, err := os.Stat(disk)
	must(t, "stat", err)
	size := info.Size() + grownBy
	must(t, "truncate", os.Truncate(disk, size))
	for range 2 {
		must(t, "ResizeDisk", b.ResizeDisk(within(t), 0, size))
	}
	began := time.Now()
	for range 2 {
		must(t, "GrowDisk", b.guest.GrowDisk(within(t), size))
	}
	t.Logf("the file system grew by a GiB in %v", time.Since(began))
	must(t, "WriteDisk", b.guest.WriteDisk(within(t), "grown"))
}

func (s *suite) wantWaitEndsWithContext(t *testing.T, b *machine) {
	t.Helper()
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(within(t))
	cancel(why)
	if err := b.Wait(ctx); !errors.Is(err, why) {
		t.Errorf("Wait() = %v, want the context's cause", err)
	}
}

// waiters calls Wait n times at once. The channel is closed when all have returned.
func (s *suite) waiters(t *testing.T, b *machine, n int) <-chan error {
	t.Helper()
	results := make(chan error, n)
	ctx := within(t)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() { results <- b.Wait(ctx) })
	}
	go func() {
		wg.Wait()
		close(results)
	}()
	return results
}

// wantRefusals checks the errors of a machine that has ended.
func (s *suite) wantRefusals(t *testing.T, b *machine) {
	t.Helper()
	for what, err := range map[string]error{
		"Pause":      b.Pause(within(t)),
		"Resume":     b.Resume(within(t)),
		"Snapshot":   b.Snapshot(within(t), s.newDir(t)),
		"ResizeDisk": b.ResizeDisk(within(t), 0, 1<<40),
	} {
		if _, ok := errors.AsType[*vm.ExitError](err); !ok || wrenn.CodeOf(err) != wrenn.FailedPrecondition {
			t.Errorf("%s of a machine that is gone = %v, want FailedPrecondition with an ExitError", what, err)
		}
	}
}

func (s *suite) wantFilled(t *testing.T, b *machine, name string, want byte) {
	t.Helper()
	ok, err := b.guest.Filled(within(t), name, want)
	must(t, "Filled", err)
	if !ok {
		t.Errorf("the guest's memory %q does not hold %q any more", name, want)
	}
}
