//go:build root

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn"
	"wrenn/internal/guest"
	"wrenn/internal/guest/guesttest"
	"wrenn/internal/netns"
	"wrenn/internal/network"
	"wrenn/internal/vm"
	"wrenn/internal/vm/vmfake"
)

// patience bounds what must happen, on a busy machine too.
const patience = 20 * time.Second

var (
	labs  atomic.Int32
	shape = Shape{VCPUs: 1, MemoryMiB: 64}
)

// lab is a host: directories, network slots in a namespace of their own, and
// a world in which fake machines run the real agent.
type lab struct {
	cfg     Config
	network network.Config
	world   *vmfake.World
	agent   agent
	noSweep bool // as an agent with sandboxes in quarantine
	// fault is the driver's.
	fault func(vmfake.Step) error
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root")
	}
	prefix := fmt.Sprintf("f%05x%02x", os.Getpid()&0xfffff, labs.Add(1)&0xff) // 8 letters, the most that a pool takes
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	l := &lab{agent: agent{log: log}}
	l.network = network.Config{
		Prefix: prefix, Range: netip.MustParsePrefix("10.215.0.0/24"), Max: 2, RunDir: t.TempDir(),
		HostNamespace: newNamespace(t, prefix+"host"), Log: log,
	}
	l.world = &vmfake.World{Boot: func(g *vmfake.Guest) (func(), error) {
		spec, err := g.Spec()
		if err != nil {
			return nil, err
		}
		return l.agent.boot(spec.Net.Namespace)
	}}
	l.cfg = Config{
		StateDir: t.TempDir(), RunDir: shortDir(t), ReadyTimeout: patience, Log: log,
		Driver: vmfake.New(vmfake.Config{World: l.world, Fault: func(s vmfake.Step) error {
			if l.fault == nil {
				return nil
			}
			return l.fault(s)
		}}),
		Guest: Guest{RootFS: newFile(t, "rootfs"), Kernel: vm.Kernel{Image: newFile(t, "kernel")}},
	}
	// The agent's programs find a sync that does not write the disks of this machine.
	t.Setenv("PATH", script(t, "sync", "exit 0")+":"+os.Getenv("PATH"))
	return l
}

func newNamespace(t *testing.T, name string) string {
	t.Helper()
	path, err := netns.Create(name)
	must(t, err)
	t.Cleanup(func() {
		if err := netns.Delete(name); err != nil {
			t.Error(err)
		}
	})
	return path
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sbx") //nolint:usetesting // t.TempDir's names are too long for a machine
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// script makes a program in a directory of its own, which it returns.
func script(t *testing.T, name, body string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	return dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens the pool and the manager, as an agent does when it starts.
func (l *lab) open(t *testing.T) *Manager {
	t.Helper()
	m, err := l.tryOpen(t)
	must(t, err)
	return m
}

func (l *lab) tryOpen(t *testing.T) (*Manager, error) {
	t.Helper()
	pool, err := network.Open(t.Context(), l.network)
	must(t, err)
	l.cfg.Slots = pool
	t.Cleanup(func() { must(t, pool.Close(context.WithoutCancel(t.Context()))) })
	m, err := Open(t.Context(), l.cfg)
	if !l.noSweep {
		must(t, pool.Sweep(t.Context()))
	}
	return m, err
}

// crash is the end of an agent: its sandboxes are not destroyed, and another
// agent can have the pool. The directories and the machines stay.
func (l *lab) crash(t *testing.T) {
	t.Helper()
	must(t, l.cfg.Slots.Close(t.Context()))
}

// wantClean fails when anything of a sandbox is left.
func (l *lab) wantClean(t *testing.T, m *Manager) {
	t.Helper()
	left, err := m.Leftovers()
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if running := l.world.Running(); len(running) != 0 {
		t.Errorf("still running: %v", running)
	}
	if s := l.cfg.Slots.Stats(); s.Used+s.Leftover+s.Broken != 0 {
		t.Errorf("slots: %+v", s)
	}
	staged, err := filepath.Glob(filepath.Join(snapshotDir(m), ".*"))
	if err != nil || len(staged) != 0 {
		t.Errorf("left of a snapshot: %v, %v", staged, err)
	}
}

// create makes a sandbox that is destroyed when t ends, at the latest.
func create(t *testing.T, m *Manager) *Sandbox {
	t.Helper()
	sb, err := m.Create(t.Context(), wrenn.NewSandboxID(), shape)
	must(t, err)
	destroyLater(t, sb)
	return sb
}

func destroyLater(t *testing.T, sb *Sandbox) {
	t.Helper()
	t.Cleanup(func() {
		if err := sb.Destroy(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// agent makes the agents of the lab's guests, and says how they behave.
type agent struct {
	log *slog.Logger
	// mute agents do not exist; stuck ones are healthy but never done with /init.
	mute, stuck bool
}

// boot serves an agent in a namespace that stands for the guest's inside, and
// whose card is connected to the slot's TAP, as a VMM would.
func (a *agent) boot(slot string) (stop func(), err error) {
	if a.mute {
		return nil, nil
	}
	name := filepath.Base(slot) + "guest"
	inside, err := netns.Create(name)
	if err != nil {
		return nil, err
	}
	unplug, err := plug(slot, inside)
	if err != nil {
		return nil, errors.Join(err, netns.Delete(name))
	}
	var l net.Listener
	err = netns.Do(inside, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", network.EnvdAddress)
		return err
	})
	if err != nil {
		unplug()
		return nil, errors.Join(err, netns.Delete(name))
	}
	ctx, cancel := context.WithCancel(context.Background()) // until the machine is gone
	machine := &fixedMachine{}
	if a.stuck {
		machine.stuck = ctx.Done()
	}
	served := make(chan error, 1)
	go func() {
		served <- guest.New(guest.Config{Machine: machine, Log: a.log}).Serve(ctx, l)
	}()
	return func() {
		unplug() // whoever is connected hears nothing more, as when a machine is gone
		cancel()
		if err := errors.Join(<-served, netns.Delete(name)); err != nil {
			a.log.Error("agent", slog.Any("err", err))
		}
	}, nil
}

// plug connects a card in the namespace inside to the TAP of the slot.
func plug(slot, inside string) (unplug func(), err error) {
	tap, err := openTAP(slot, network.TAP)
	if err != nil {
		return nil, err
	}
	card, err := openTAP(inside, "eth0")
	if err == nil {
		err = netns.Do(inside, setUpCard)
	}
	if err != nil {
		tap.Close()
		if card != nil {
			card.Close()
		}
		return nil, err
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(tap, card) })
	pumps.Go(func() { pump(card, tap) })
	return func() {
		tap.Close()
		card.Close()
		pumps.Wait()
	}, nil
}

func openTAP(namespace, name string) (*os.File, error) {
	fd := -1
	err := netns.Do(namespace, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
	if err != nil {
		_ = unix.Close(fd) // the first error is the one that counts
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil // not before it has a device: only then it can be polled
}

func setUpCard() error {
	card, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(network.GuestMAC)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(network.GuestAddress + "/30")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetHardwareAddr(card, mac), netlink.AddrAdd(card, addr), netlink.LinkSetUp(card))
}

func pump(to, from *os.File) {
	frame := make([]byte, 1<<17)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		if _, err := to.Write(frame[:n]); err != nil && !errors.Is(err, unix.EIO) { // EIO: not up yet
			return
		}
	}
}

// fixedMachine leaves the clock of the machine that runs the tests alone.
type fixedMachine struct {
	guesttest.Inert
	stuck <-chan struct{}
}

func (*fixedMachine) Now() time.Time          { return time.Now() }
func (*fixedMachine) SetTime(time.Time) error { return nil }
func (f *fixedMachine) AddEntropy([]byte) error {
	if f.stuck != nil {
		<-f.stuck
	}
	return nil
}
