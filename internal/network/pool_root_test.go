//go:build root

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/testkit"
)

func waitReady(tb testing.TB, p *Pool, n int) {
	tb.Helper()
	testkit.WaitUntil(tb, fmt.Sprintf("%d slots are ready", n), func() bool { s := p.Stats(); return s.Ready >= n && s.Changing == 0 })
}

func TestPoolFillsAheadAndHandsOutWhatIsReady(t *testing.T) {
	l := newLab(t)
	p := l.open(t, func(c *Config) { c.Ready = 2; c.Max = 2 })
	waitReady(t, p, 2)
	var steps atomic.Int32
	p.hook = func(string) error { steps.Add(1); return nil }
	a, b := acquire(t, p, "a"), acquire(t, p, "b")
	if n := steps.Load(); n != 0 {
		t.Errorf("handing out ready slots took %d steps", n)
	}
	if a.Index() == b.Index() || a.Namespace() == b.Namespace() || a.Ref().ID == b.Ref().ID {
		t.Errorf("two owners of one slot: %+v, %+v", a.Ref(), b.Ref())
	}
	if a.Ref().Owner != "a" || a.TAP() != TAP || a.MAC() != GuestMAC {
		t.Errorf("slot = %+v %s %s", a.Ref(), a.TAP(), a.MAC())
	}
}

func TestPoolRefills(t *testing.T) {
	l := newLab(t)
	p := l.open(t, func(c *Config) { c.Ready = 1 })
	for i := range 3 {
		waitReady(t, p, 1)
		acquire(t, p, fmt.Sprint(i))
	}
	waitReady(t, p, 1)
	if s := p.Stats(); s.Used != 3 {
		t.Errorf("stats = %+v", s)
	}
}

func TestPoolIsBounded(t *testing.T) {
	l := newLab(t)
	p := l.open(t, func(c *Config) { c.Max = 2; c.Ready = 1 })
	a := acquire(t, p, "a")
	acquire(t, p, "b")
	if _, err := p.Acquire(t.Context(), "c"); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("third of two = %v", err)
	}
	testkit.Must(t, a.Release(t.Context()))
	acquire(t, p, "c")
}

// The last slot may be being released or made.
func TestAcquireWaitsForASlotThatIsComing(t *testing.T) {
	l := newLab(t)
	p := l.open(t, func(c *Config) { c.Ready = 1; c.Max = 1 })
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range 5 {
		s, err := p.Acquire(t.Context(), fmt.Sprint(i))
		testkit.Must(t, err)
		wg.Go(func() {
			if err := s.Release(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
		for p.Stats().Used == 1 { // else there is nothing to wait for
			runtime.Gosched()
		}
	}
}

func TestReleaseTwiceNeverTouchesTheNextOwner(t *testing.T) {
	for _, ready := range []int{0, 1} { // removed and made again; recycled
		t.Run(fmt.Sprint("ready ", ready), func(t *testing.T) {
			l := newLab(t)
			p := l.open(t, func(c *Config) { c.Ready = ready; c.Max = 1 })
			waitReady(t, p, ready)
			first := acquire(t, p, "first")
			testkit.Must(t, first.Release(t.Context()))
			second := acquire(t, p, "second")
			if second.Index() != first.Index() || second.Ref().ID == first.Ref().ID {
				t.Fatalf("first %+v, second %+v: want the same slot with another id", first.Ref(), second.Ref())
			}
			g := newGuest(t, second)
			serve(t, g.path, 49983)
			for range 2 {
				testkit.Must(t, first.Release(t.Context()))
			}
			if _, err := first.DialContext(t.Context(), "tcp", EnvdAddress); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
				t.Errorf("a released slot dials: %v", err)
			}
			conn, err := second.DialContext(t.Context(), "tcp", EnvdAddress)
			testkit.Must(t, err)
			echo(t, conn)
			conn.Close()
			g.stop()
		})
	}
}

func TestReleaseAtOnceIsOneRelease(t *testing.T) {
	l := newLab(t)
	p := l.open(t, func(c *Config) { c.Ready = 1 })
	s := acquire(t, p, "a")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	waitReady(t, p, 1)
	if s := p.Stats(); s.Used != 0 || s.Ready > 2 {
		t.Errorf("stats = %+v", s)
	}
}

func flows(t *testing.T, path string) []*netlink.ConntrackFlow {
	t.Helper()
	var all []*netlink.ConntrackFlow
	inside(t, path, func(nl *netlink.Handle) {
		var err error
		all, err = nl.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		testkit.Must(t, err)
	})
	return all
}

func TestRecycledSlotIsAsGoodAsNew(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	p := l.open(t, func(c *Config) { c.Ready = 1; c.Max = 1 })
	waitReady(t, p, 1)
	first := acquire(t, p, "first")
	g := newGuest(t, first)
	conn, err := dial(t.Context(), g.path, "tcp4", worldPublic+":80")
	testkit.Must(t, err)
	defer conn.Close() // a machine that is stopped closes nothing
	echo(t, conn)
	knock(t, g.path, "tcp4", GatewayAddress+":80", func() uint64 {
		return counted(t, first.Namespace(), slotTable, "to the gateway")
	})
	if len(flows(t, first.Namespace())) == 0 || len(flows(t, l.host)) == 0 {
		t.Fatal("no connection is tracked: this test shows nothing")
	}
	g.stop()
	link := linkOf(t, first)
	testkit.Must(t, first.Release(t.Context()))
	for _, path := range []string{first.Namespace(), l.host} {
		if left := flows(t, path); len(left) != 0 {
			t.Errorf("connections left in %s: %v", path, left)
		}
	}
	if n := counted(t, first.Namespace(), slotTable, "to the gateway"); n != 0 {
		t.Errorf("a counter of the rules is still %d", n)
	}
	testkit.Must(t, netns.Delete(filepath.Base(g.path))) // newGuest makes it again
	second := acquire(t, p, "second")
	if linkOf(t, second) != link {
		t.Error("the slot was replaced")
	}
	again := newGuest(t, second)
	conn, err = dial(t.Context(), again.path, "tcp4", worldPublic+":80")
	testkit.Must(t, err)
	echo(t, conn)
	conn.Close()
	again.stop()
}

func TestReleaseLeavesTheConnectionsOfOthers(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	p := l.open(t, nil)
	a, b := acquire(t, p, "a"), acquire(t, p, "b")
	var conns []net.Conn
	for _, s := range []*Slot{a, b} {
		conn, err := dial(t.Context(), newGuest(t, s).path, "tcp4", worldPublic+":80")
		testkit.Must(t, err)
		defer conn.Close()
		echo(t, conn)
		conns = append(conns, conn)
	}
	testkit.Must(t, a.Release(t.Context()))
	for _, f := range flows(t, l.host) {
		if got, want := f.Forward.SrcIP.String(), p.cfg.slotAddr(b.Index()).String(); got != want {
			t.Errorf("a connection from %s is left, want those from %s alone", got, want)
		}
	}
	if len(flows(t, l.host)) == 0 {
		t.Error("the other slot's connection is gone")
	}
	echo(t, conns[1])
}

func TestSlotWithATAPInUseIsNotRecycled(t *testing.T) {
	l := newLab(t)
	p := l.open(t, func(c *Config) { c.Ready = 1; c.Max = 1 })
	waitReady(t, p, 1)
	s := acquire(t, p, "a")
	tap := openTAP(t, s.Namespace(), s.TAP())
	defer tap.Close()
	old := linkOf(t, s)
	testkit.Must(t, s.Release(t.Context()))
	if fresh := acquire(t, p, "b"); linkOf(t, fresh) == old {
		t.Error("the namespace in which the TAP is in use was handed out")
	}
}

// linkOf is the kernel's index of the slot's link on the host: a recycled slot
// keeps it, and the kernel does not give it to another link.
func linkOf(t *testing.T, s *Slot) int {
	t.Helper()
	var index int
	inside(t, s.pool.cfg.HostNamespace, func(nl *netlink.Handle) {
		link, err := nl.LinkByName(s.pool.cfg.name(s.Index()))
		testkit.Must(t, err)
		index = link.Attrs().Index
	})
	return index
}

func TestTenAtOnce(t *testing.T) {
	l := newLab(t)
	heard := serve(t, l.world, 80)
	p := l.open(t, func(c *Config) { c.Ready = 3 })
	slots := make([]*Slot, 10)
	var wg sync.WaitGroup
	for i := range slots {
		wg.Go(func() {
			s, err := p.Acquire(t.Context(), fmt.Sprint(i))
			if err != nil {
				t.Error(err)
				return
			}
			slots[i] = s
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	seen := map[int]bool{}
	for _, s := range slots {
		if seen[s.Index()] {
			t.Errorf("slot %d was handed out twice", s.Index())
		}
		seen[s.Index()] = true
		wg.Go(func() {
			conn, err := dial(t.Context(), newGuest(t, s).path, "tcp4", worldPublic+":80")
			if err != nil {
				t.Error(err)
				return
			}
			conn.Close()
		})
	}
	wg.Wait()
	testkit.WaitUntil(t, "there are ten visitors", func() bool { return len(heard()) == 10 })
	for _, s := range slots {
		wg.Go(func() {
			if err := s.Release(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCrashedAgentsSlotsAreAdoptedOrSwept(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	dead, err := Open(t.Context(), l.cfg)
	testkit.Must(t, err)
	kept, err := dead.Acquire(t.Context(), "kept")
	testkit.Must(t, err)
	lost, err := dead.Acquire(t.Context(), "lost")
	testkit.Must(t, err)
	g := newGuest(t, kept)
	conn, err := dial(t.Context(), g.path, "tcp4", worldPublic+":80")
	testkit.Must(t, err)
	defer conn.Close()
	// One slot is half made, and of another only the namespace is left.
	firstFour := func(m *maker) []rollback.Step { return makeSteps(m)[:4] }
	if _, err := dead.host.run(t.Context(), 7, firstFour, nil); err != nil {
		t.Fatal(err)
	}
	_, err = netns.Create(l.cfg.name(9))
	testkit.Must(t, err)
	l.abandon(dead)
	echo(t, conn)

	p := l.open(t, func(c *Config) { c.Ready = 2 })
	echo(t, conn) // the guest does not notice
	adopted, err := p.Adopt(t.Context(), kept.Ref())
	testkit.Must(t, err)
	if adopted.Ref() != kept.Ref() || adopted.Namespace() != kept.Namespace() {
		t.Errorf("adopted %+v, want %+v", adopted.Ref(), kept.Ref())
	}
	if _, err := p.Adopt(t.Context(), kept.Ref()); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("second Adopt() = %v", err)
	}
	for name, ref := range map[string]SlotRef{
		"earlier owner": {Index: lost.Index(), ID: "EARLIER"},
		"half-made":     {Index: 7},
		"never made":    {Index: 1000, ID: "X"},
		"nonsense":      {Index: -1, ID: "X"},
	} {
		if _, err := p.Adopt(t.Context(), ref); wrenn.CodeOf(err) != wrenn.NotFound {
			t.Errorf("Adopt of %s = %v", name, err)
		}
	}
	testkit.Must(t, p.Sweep(t.Context()))
	waitReady(t, p, 2)
	if s := p.Stats(); s != (Stats{Ready: 2, Used: 1}) {
		t.Errorf("stats = %+v", s)
	}
	if _, err := p.Adopt(t.Context(), lost.Ref()); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Adopt of a swept slot = %v", err)
	}
	echo(t, conn)
	g.stop()
	testkit.Must(t, adopted.Release(t.Context()))
}

func TestCloseLeavesSlotsInUse(t *testing.T) {
	l := newLab(t)
	serve(t, l.world, 80)
	first, err := Open(t.Context(), l.cfg)
	testkit.Must(t, err)
	s, err := first.Acquire(t.Context(), "a")
	testkit.Must(t, err)
	g := newGuest(t, s)
	for range 2 {
		testkit.Must(t, first.Close(t.Context()))
	}
	if _, err := first.Acquire(t.Context(), "b"); wrenn.CodeOf(err) != wrenn.Unavailable {
		t.Errorf("Acquire after Close = %v", err)
	}
	if err := s.Release(t.Context()); wrenn.CodeOf(err) != wrenn.Unavailable {
		t.Errorf("Release after Close = %v", err)
	}
	conn, err := dial(t.Context(), g.path, "tcp4", worldPublic+":80")
	testkit.Must(t, err)
	echo(t, conn)
	conn.Close()
	g.stop()
	testkit.Must(t, l.open(t, nil).Sweep(t.Context()))
}

// A slot that was not adopted and has processes in it is reported, and kept.
func TestSweepSparesWhatIsLivedIn(t *testing.T) {
	l := newLab(t)
	dead, err := Open(t.Context(), l.cfg)
	testkit.Must(t, err)
	var slots []*Slot
	for _, owner := range []string{"empty", "lived", "adopted"} {
		s, err := dead.Acquire(t.Context(), owner)
		testkit.Must(t, err)
		slots = append(slots, s)
	}
	var lodgers []*exec.Cmd
	for _, s := range slots[1:] {
		cmd := exec.Command("sleep", "600")
		testkit.Must(t, netns.Do(s.Namespace(), cmd.Start))
		t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended already unless the test failed
		lodgers = append(lodgers, cmd)
	}
	l.abandon(dead)
	p := l.open(t, nil)
	adopted, err := p.Adopt(t.Context(), slots[2].Ref())
	testkit.Must(t, err)
	want := []Tenant{{Slot: filepath.Base(slots[1].Namespace()), PIDs: []int{lodgers[0].Process.Pid}}}
	for range 2 {
		if got, err := p.Tenants(); err != nil || !cmp.Equal(want, got) {
			t.Errorf("Tenants() = %+v, %v; want %+v", got, err, want)
		}
		testkit.Must(t, p.Sweep(t.Context()))
		if s := p.Stats(); s.Leftover != 1 || s.Used != 1 {
			t.Errorf("stats after the sweep = %+v", s)
		}
	}
	for _, cmd := range lodgers {
		testkit.Must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed
	}
	testkit.Must(t, adopted.Release(t.Context()))
	testkit.Must(t, p.Sweep(t.Context()))
	if got, err := p.Tenants(); err != nil || len(got) != 0 || p.Stats().Leftover != 0 {
		t.Errorf("Tenants() = %+v, %v; stats %+v", got, err, p.Stats())
	}
}

func TestSlotsOfAnotherRangeAreNotAdopted(t *testing.T) {
	l := newLab(t)
	dead, err := Open(t.Context(), l.cfg)
	testkit.Must(t, err)
	s, err := dead.Acquire(t.Context(), "a")
	testkit.Must(t, err)
	l.abandon(dead)
	p := l.open(t, func(c *Config) { c.Range = freeTestRange })
	if _, err := p.Adopt(t.Context(), s.Ref()); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Adopt() = %v", err)
	}
	testkit.Must(t, p.Sweep(t.Context()))
}

var errInjected = errors.New("injected")

// failOnce returns a hook that fails the first call for point.
func failOnce(point string) func(string) error {
	var mu sync.Mutex
	done := false
	return func(p string) error {
		mu.Lock()
		defer mu.Unlock()
		if p != point || done {
			return nil
		}
		done = true
		return errInjected
	}
}

// names returns the names of steps, for a maker whose steps are not run.
func names(steps func(*maker) []rollback.Step) []string {
	var all []string
	for _, s := range steps(&maker{}) {
		all = append(all, s.Name)
	}
	return all
}

func TestEachStepOfMakingFailsOnceAndLeavesNothing(t *testing.T) {
	l := newLab(t)
	for _, point := range names(makeSteps) {
		t.Run(point, func(t *testing.T) {
			p := l.open(t, nil)
			p.hook = failOnce(point)
			if _, err := p.Acquire(t.Context(), "a"); !errors.Is(err, errInjected) {
				t.Fatalf("Acquire() = %v", err)
			}
			if left := l.left(t); !slices.Equal(left, []string{"table " + l.cfg.Prefix}) {
				t.Errorf("left: %v", left)
			}
			if s := p.Stats(); s != (Stats{}) {
				t.Errorf("stats = %+v", s)
			}
			acquire(t, p, "a")
		})
	}
}

func TestEachStepOfRecyclingFailsOnceAndTheSlotIsRemoved(t *testing.T) {
	l := newLab(t)
	for _, point := range names(recycleSteps) {
		t.Run(point, func(t *testing.T) {
			p := l.open(t, func(c *Config) { c.Ready = 1; c.Max = 1 })
			waitReady(t, p, 1)
			s := acquire(t, p, "a")
			old := linkOf(t, s)
			p.hook = failOnce(point)
			testkit.Must(t, s.Release(t.Context()))
			if fresh := acquire(t, p, "b"); linkOf(t, fresh) == old {
				t.Error("a slot in doubt was handed out")
			}
		})
	}
}

func TestSlotThatCannotBeRemovedStaysOut(t *testing.T) {
	l := newLab(t)
	p := l.open(t, func(c *Config) { c.Max = 1 })
	for name, again := range map[string]func(*Slot) error{
		"Release": func(s *Slot) error { return s.Release(t.Context()) },
		"Sweep":   func(*Slot) error { return p.Sweep(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			s := acquire(t, p, "a")
			p.hook = failOnce("remove")
			if err := s.Release(t.Context()); !errors.Is(err, errInjected) {
				t.Fatalf("Release() = %v", err)
			}
			if _, err := p.Acquire(t.Context(), "b"); wrenn.CodeOf(err) != wrenn.Exhausted {
				t.Errorf("Acquire() = %v", err)
			}
			if got := p.Stats(); got != (Stats{Broken: 1}) {
				t.Errorf("stats = %+v", got)
			}
			testkit.Must(t, again(s))
			if got := p.Stats(); got != (Stats{}) {
				t.Errorf("stats = %+v", got)
			}
		})
	}
}

func TestCanceledAcquireLeavesNothing(t *testing.T) {
	l := newLab(t)
	p := l.open(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	p.hook = func(point string) error {
		if point == "veth" {
			cancel()
		}
		return nil
	}
	if _, err := p.Acquire(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("Acquire() = %v", err)
	}
	if left := l.left(t); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestCyclesLeakNothing(t *testing.T) {
	for _, ready := range []int{0, 2} {
		t.Run(fmt.Sprint("ready ", ready), func(t *testing.T) {
			l := newLab(t)
			p := l.open(t, func(c *Config) { c.Ready = ready })
			cycle := func() {
				s, err := p.Acquire(t.Context(), "a")
				testkit.Must(t, err)
				testkit.Must(t, s.Release(t.Context()))
			}
			cycle()
			waitReady(t, p, ready)
			fds, goroutines := openFiles(t), runtime.NumGoroutine()
			for range 100 {
				cycle()
			}
			waitReady(t, p, ready)
			testkit.WaitUntil(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutines })
			if n := openFiles(t); n > fds {
				t.Errorf("%d open files, %d before", n, fds)
			}
			if s := p.Stats(); s.Ready > 2*ready || s.Used+s.Broken+s.Changing != 0 {
				t.Errorf("stats = %+v", s)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	testkit.Must(t, err)
	return len(entries)
}

const attachAs = "WRENN_TEST_ATTACH_TAP" // set in the child of the next test

// The VMM of a slot runs as a user without capabilities.
func TestOwnerAttachesToTheTAPWithoutCapabilities(t *testing.T) {
	if os.Getenv(attachAs) != "" {
		testkit.Must(t, attachTAP(3, TAP))
		return
	}
	l := newLab(t)
	const firstUID = 200_000
	s := acquire(t, l.open(t, func(c *Config) { c.FirstUID = firstUID }), "a")
	binary := readableCopy(t)
	for _, tc := range []struct {
		name string
		uid  int
		want bool
	}{
		{"owner", firstUID + s.Index(), true},
		{"another user", firstUID + s.Index() + 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var tun *os.File
			testkit.Must(t, netns.Do(s.Namespace(), func() (err error) { // it belongs to the namespace it was opened in
				tun, err = os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
				return err
			}))
			defer tun.Close()
			cmd := exec.CommandContext(t.Context(), binary, "-test.run=^"+"TestOwnerAttachesToTheTAPWithoutCapabilities"+"$")
			cmd.Env = []string{attachAs + "=1"}
			cmd.ExtraFiles = []*os.File{tun}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(tc.uid), Gid: uint32(tc.uid)}}
			out, err := cmd.CombinedOutput()
			if (err == nil) != tc.want {
				t.Errorf("attached: %t, want %t: %v\n%s", err == nil, tc.want, err, out)
			}
		})
	}
}

// readableCopy copies the test binary to where other users can run it.
func readableCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wrenn-network-*") //nolint:usetesting // others cannot enter t.TempDir
	testkit.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	testkit.Must(t, os.Chmod(dir, 0o755))
	self, err := os.ReadFile("/proc/self/exe")
	testkit.Must(t, err)
	path := filepath.Join(dir, "test")
	testkit.Must(t, os.WriteFile(path, self, 0o755))
	return path
}

// BenchmarkSlot prints the costs of making, acquiring and releasing a slot.
func BenchmarkSlot(b *testing.B) {
	for name, ready := range map[string]int{"pool": 2, "nothing": 0} {
		b.Run("from the "+name, func(b *testing.B) {
			l := newLab(b)
			p := l.open(b, func(c *Config) { c.Ready = ready })
			var acquire, release []time.Duration
			for b.Loop() {
				waitReady(b, p, ready)
				began := time.Now()
				s, err := p.Acquire(b.Context(), "bench")
				acquire = append(acquire, time.Since(began))
				testkit.Must(b, err)
				began = time.Now()
				testkit.Must(b, s.Release(b.Context()))
				release = append(release, time.Since(began))
			}
			for what, times := range map[string][]time.Duration{"acquire": acquire, "release": release} {
				slices.Sort(times)
				b.ReportMetric(float64(times[len(times)/2].Microseconds()), what+"-p50-µs")
				b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), what+"-p99-µs")
			}
		})
	}
}

func BenchmarkDial(b *testing.B) {
	l := newLab(b)
	s := acquire(b, l.open(b, nil), "bench")
	g := newGuest(b, s)
	serve(b, g.path, 49983)
	for b.Loop() {
		conn, err := s.DialContext(b.Context(), "tcp", EnvdAddress)
		testkit.Must(b, err)
		conn.Close()
	}
}
