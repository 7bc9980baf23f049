// Package fakeguest is the inside of vmfake's machines for tests of what
// composes them: the real agent, in a network namespace, behind a slot's TAP. It
// has the file system and the processes of the machine that runs the tests. Needs root.
package fakeguest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/guest"
	"wrenn.dev/internal/guest/guesttest"
	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
)

// Config says which guest boots. Slot and Log are needed.
type Config struct {
	Slot  string // the path of the network slot's namespace, see vm.NIC
	Stuck bool   // its agent is healthy but never done with /init
	// Silent, while it is true, keeps frames from passing in either direction, as when
	// the guest's kernel has halted or its network is down. May be nil.
	Silent *atomic.Bool
	Log    *slog.Logger
}

// Boot serves an agent in a namespace that stands for the guest's inside, and
// whose card is connected to the slot's TAP, as a VMM would. stop is the end of
// the machine.
func Boot(cfg Config) (stop func(), err error) {
	name := filepath.Base(cfg.Slot) + "guest"
	inside, err := netns.Create(name)
	if err != nil {
		return nil, err
	}
	unplug, err := plug(cfg.Slot, inside, cfg.Silent)
	if err != nil {
		return nil, errors.Join(err, netns.Delete(name))
	}
	l, err := listen(inside)
	if err != nil {
		unplug()
		return nil, errors.Join(err, netns.Delete(name))
	}
	ctx, cancel := context.WithCancel(context.Background()) // until the machine is gone
	machine := &fixedMachine{}
	if cfg.Stuck {
		machine.stuck = ctx.Done()
	}
	served := make(chan error, 1)
	go func() {
		served <- guest.New(guest.Config{Machine: machine, Log: cfg.Log}).Serve(ctx, l)
	}()
	return func() {
		unplug() // connections get no answer any more, as when a machine has ended
		cancel()
		if err := errors.Join(<-served, netns.Delete(name)); err != nil {
			cfg.Log.Error("agent", slog.Any("err", err))
		}
	}, nil
}

// Serve serves an agent, as Boot does, in a process that is the machine: it is in the
// slot's namespace, and has the inside of the guest in one that ends with it. It returns
// when ctx has ended.
func Serve(ctx context.Context, log *slog.Logger) error {
	var inside *os.File
	err := launch.OnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		inside, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return err
	}
	defer inside.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", inside.Fd())
	unplug, err := plug("/proc/self/ns/net", path, nil)
	if err != nil {
		return err
	}
	defer unplug()
	l, err := listen(path)
	if err != nil {
		return err
	}
	return guest.New(guest.Config{Machine: &fixedMachine{}, Log: log}).Serve(ctx, l)
}

// listen listens where the agent of a guest does.
func listen(inside string) (l net.Listener, err error) {
	err = netns.Do(inside, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", network.EnvdAddress)
		return err
	})
	return l, err
}

// plug connects a card in the namespace inside to the TAP of the slot.
func plug(slot, inside string, silent *atomic.Bool) (unplug func(), err error) {
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
	pumps.Go(func() { pump(tap, card, silent) })
	pumps.Go(func() { pump(card, tap, silent) })
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

func pump(to, from *os.File, silent *atomic.Bool) {
	frame := make([]byte, 1<<17)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		if silent != nil && silent.Load() {
			continue
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
