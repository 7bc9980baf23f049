package probe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
)

// bench is a probe, a kernel to try, and a guest that does what the test says.
type bench struct {
	Probe
	kernel vm.Kernel
	world  *vmfake.World
	hook   func(vmfake.Step) error
	boots  int
}

func newBench(t *testing.T, guest func(*vmfake.Guest) error) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "probe-test") //nolint:usetesting // t.TempDir's names are too long for a machine
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{Probe: Probe{Memory: filepath.Join(t.TempDir(), "probe.json"), Dir: dir}}
	b.kernel = newKernel(t, "one")
	b.world = &vmfake.World{Boot: func(g *vmfake.Guest) (func(), error) {
		b.boots++
		return nil, guest(g)
	}}
	return b
}

func newKernel(t *testing.T, content string) vm.Kernel {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Kernel{Image: path}
}

func (b *bench) driver() vm.Driver { return vmfake.New(vmfake.Config{World: b.world, Hook: b.hook}) }

// ask probes, and checks that nothing of the machine is left.
func (b *bench) ask(t *testing.T, ctx context.Context, driver vm.Driver, version string) (Verdict, error) {
	t.Helper()
	v, err := b.Boots(ctx, driver, version, b.kernel)
	if left := vm.CheckEmpty(b.Dir); left != nil {
		t.Error(left)
	}
	if running := b.world.Running(); len(running) != 0 {
		t.Errorf("still running: %v", running)
	}
	return v, err
}

func prints(g *vmfake.Guest) error { return g.Print("[    0.000000] Linux version 6.1\n") }

func silent(*vmfake.Guest) error { return nil }

func dies(g *vmfake.Guest) error { return g.Die("exit status 1") }

func TestBoots(t *testing.T) {
	for _, tc := range []struct {
		name   string
		guest  func(*vmfake.Guest) error
		works  bool
		reason string
	}{
		{"the kernel prints", prints, true, "booted"},
		{"the kernel prints nothing", silent, false, "nothing within 15s"},
		{"the VMM prints an empty line", func(g *vmfake.Guest) error { return g.Print("\r\n") }, false, "nothing within 15s"},
		{"the VMM dies first", dies, false, "exit status 1"},
		{"the kernel prints and the VMM dies", func(g *vmfake.Guest) error { return errors.Join(prints(g), dies(g)) }, true, "booted"},
		{"the guest powers off in silence", func(g *vmfake.Guest) error { return g.PowerOff(context.Background()) }, false, "ended before"},
		{"the kernel is slow", slow, true, "booted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, tc.guest)
				v, err := b.ask(t, t.Context(), b.driver(), "1")
				if err != nil || v.Works != tc.works || !strings.Contains(v.Reason, tc.reason) {
					t.Errorf("Boots() = %+v, %v; want works %t because %q", v, err, tc.works, tc.reason)
				}
				again, err := b.ask(t, t.Context(), b.driver(), "1")
				if err != nil || again != v || b.boots != 1 {
					t.Errorf("the second time: %+v, %v after %d boots; want the same of one boot", again, err, b.boots)
				}
			})
		})
	}
}

// slow prints just before the deadline, between two looks.
func slow(g *vmfake.Guest) error {
	go func() {
		time.Sleep(defaultDeadline - time.Millisecond)
		_ = prints(g) // the test sees what became of it
	}()
	return nil
}

// named is a driver of another name.
type named struct {
	vm.Driver
	name string
}

func (n named) Name() string { return n.name }

// A verdict is of one driver, one version of its VMM, one kernel and one boot
// of the host; another probes again.
func TestWhatAVerdictIsOf(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *bench) (vm.Driver, string){
		"another driver": func(t *testing.T, b *bench) (vm.Driver, string) {
			t.Helper()
			return named{b.driver(), "other"}, "1"
		},
		"another version": func(t *testing.T, b *bench) (vm.Driver, string) {
			t.Helper()
			return b.driver(), "2"
		},
		"another kernel": func(t *testing.T, b *bench) (vm.Driver, string) {
			t.Helper()
			b.kernel = newKernel(t, "two")
			return b.driver(), "1"
		},
		"another boot": func(t *testing.T, b *bench) (vm.Driver, string) {
			t.Helper()
			edit(t, b.Memory, func(s string) string { return strings.ReplaceAll(s, " boot-", " boot-0") })
			return b.driver(), "1"
		},
		"a damaged file": func(t *testing.T, b *bench) (vm.Driver, string) {
			t.Helper()
			edit(t, b.Memory, func(s string) string { return s[:len(s)/2] })
			return b.driver(), "1"
		},
		"a file that is too large": func(t *testing.T, b *bench) (vm.Driver, string) {
			t.Helper()
			edit(t, b.Memory, func(s string) string { return strings.Repeat(" ", maxVerdicts) + s })
			return b.driver(), "1"
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, prints)
			if _, err := b.ask(t, t.Context(), b.driver(), "1"); err != nil {
				t.Fatal(err)
			}
			driver, version := change(t, b)
			for range 2 {
				if v, err := b.ask(t, t.Context(), driver, version); err != nil || !v.Works {
					t.Errorf("Boots() = %+v, %v", v, err)
				}
			}
			if b.boots != 2 {
				t.Errorf("%d boots, want one before and one after", b.boots)
			}
		})
	}
}

// A verdict on one driver does not displace those on the others, which a host tries as
// well at each start.
func TestVerdictsOnSeveralDrivers(t *testing.T) {
	b := newBench(t, prints)
	first, second := b.driver(), named{b.driver(), "other"}
	for range 2 {
		for _, driver := range []vm.Driver{first, second} {
			if _, err := b.ask(t, t.Context(), driver, "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if b.boots != 2 {
		t.Errorf("%d boots, want one for each driver", b.boots)
	}
	b.kernel = newKernel(t, "two")
	if _, err := b.ask(t, t.Context(), second, "2"); err != nil {
		t.Fatal(err)
	}
	for key := range Stored(b.Memory) {
		if DriverOf(key) != "other" || !strings.Contains(key, " 2 ") {
			t.Errorf("a verdict on another kernel is still stored: %s", key)
		}
	}
	if n := len(Stored(b.Memory)); n != 1 {
		t.Errorf("%d verdicts are stored, want the new one", n)
	}
}

func edit(t *testing.T, path string, change func(string) string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(change(string(data))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The same kernel under another name needs no new probe.
func TestAVerdictIsOfTheKernelsContent(t *testing.T) {
	b := newBench(t, prints)
	for range 2 {
		b.kernel = newKernel(t, "same")
		if _, err := b.ask(t, t.Context(), b.driver(), "1"); err != nil {
			t.Fatal(err)
		}
	}
	if b.boots != 1 {
		t.Errorf("%d boots of one kernel", b.boots)
	}
}

// A VMM that could not be started is no verdict on the kernel: it is tried again.
func TestAFailedStartIsNotRemembered(t *testing.T) {
	b := newBench(t, prints)
	b.hook = vmfake.FailAt(vmfake.StepProcess)
	v, err := b.ask(t, t.Context(), b.driver(), "1")
	if err != nil || v.Works || !strings.Contains(v.Reason, "injected fault") {
		t.Errorf("Boots() = %+v, %v; want the reason of Start", v, err)
	}
	b.hook = nil
	if v, err := b.ask(t, t.Context(), b.driver(), "1"); err != nil || !v.Works {
		t.Errorf("afterwards: Boots() = %+v, %v", v, err)
	}
}

func TestACanceledProbeIsNotRemembered(t *testing.T) {
	why := errors.New("enough")
	for name, during := range map[string]bool{"before it starts": false, "while it waits": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			b := newBench(t, func(*vmfake.Guest) error {
				go cancel(why)
				return nil
			})
			b.Deadline = time.Hour
			if !during {
				cancel(why)
			}
			if v, err := b.ask(t, ctx, b.driver(), "1"); !errors.Is(err, why) || v.Works {
				t.Errorf("Boots() = %+v, %v; want the context's cause", v, err)
			}
			if _, err := os.Stat(b.Memory); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something was remembered: %v", err)
			}
		})
	}
}

func TestAMissingKernel(t *testing.T) {
	b := newBench(t, prints)
	b.kernel.Image = filepath.Join(b.Dir, "none")
	if _, err := b.ask(t, t.Context(), b.driver(), "1"); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("Boots() = %v, want FailedPrecondition", err)
	}
}

// mute is a driver whose machines have no console.
type mute struct{ vm.Driver }

func (m mute) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	machine, err := m.Driver.Start(ctx, spec)
	return struct{ vm.Machine }{machine}, err
}

func TestADriverWithoutAConsole(t *testing.T) {
	b := newBench(t, prints)
	if _, err := b.ask(t, t.Context(), mute{b.driver()}, "1"); err == nil {
		t.Error("a machine without a console was judged")
	}
}
