//go:build vm

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmtest"
)

// The network that every guest is in.
const (
	hostAddr  = "169.254.0.22/30"
	guestAddr = "169.254.0.21"
	guestMAC  = "02:fc:00:00:00:05"
	hostMAC   = "02:fc:00:00:00:06" // the same in every place: a restored guest remembers it
	envdPort  = "49983"
)

func TestMain(m *testing.M) {
	vmtest.Main(m, func() (vm.Driver, error) { return newDriver(context.Background()) })
}

// testFile is the file that an environment variable names.
func testFile(tb testing.TB, name string) string {
	tb.Helper()
	path := os.Getenv(name)
	if path == "" {
		if os.Getenv("WRENN_CI") == "1" {
			tb.Fatalf("%s is not set", name)
		}
		tb.Skipf("%s is not set: run host-agent image prepare --export", name)
	}
	return path
}

func harness(t *testing.T) vmtest.Harness {
	t.Helper()
	return vmtest.Harness{
		Driver: func(t *testing.T) vm.Driver {
			t.Helper()
			return testDriver(t)
		},
		Failing: func(t *testing.T, step string) vm.Driver {
			t.Helper()
			d := testDriver(t)
			d.runner.Hook = func(now string) error {
				if now == step {
					return errors.New("injected")
				}
				return nil
			}
			return d
		},
		StartSteps:   stepNames(&assembly{}),
		RestoreSteps: stepNames(&assembly{snap: &snapshot{}}),
		Place: func(t *testing.T) vmtest.Place {
			t.Helper()
			return testPlace(t)
		},
		Guest: func(t *testing.T, p vmtest.Place) vmtest.Guest {
			t.Helper()
			return vmtest.Envd(t, p, vmtest.EnvdConfig{Address: net.JoinHostPort(guestAddr, envdPort), PowerOff: "o"})
		},
		Elsewhere:   vmtest.Elsewhere,
		Kill:        vmtest.Kill,
		FillConsole: fillConsole(),
		Quiet:       true,
		Kernel:      testKernel(t),
		RootFS:      testFile(t, "WRENN_TEST_ROOTFS"),
		VCPUs:       1,
		MemoryMiB:   256,
		UID:         64_200,
	}
}

// fillConsole is nil where the guest itself can fill the console: without KVM. On a KVM
// that is emulated each byte costs it a millisecond.
func fillConsole() func(*testing.T, vm.Ref) {
	if os.Getenv(kvmEnv) == "1" {
		return vmtest.FillConsole
	}
	return nil
}

func testKernel(tb testing.TB) vm.Kernel {
	tb.Helper()
	return vm.Kernel{
		Image:  testFile(tb, "WRENN_TEST_KERNEL"),
		Initrd: testFile(tb, "WRENN_TEST_INITRD"),
		Args: []string{
			"root=/dev/vda", "rw", "init=/usr/local/bin/wrenn-init",
			"ip=" + guestAddr + "::169.254.0.22:255.255.255.252:sandbox:eth0:off",
		},
	}
}

func stepNames(a *assembly) []string {
	var names []string
	for _, s := range a.steps() {
		names = append(names, s.Name)
	}
	return names
}

var places atomic.Int32

// testPlace is a network namespace with a TAP in it and nothing else.
func testPlace(tb testing.TB) vmtest.Place {
	tb.Helper()
	name := fmt.Sprintf("vmtest-%d-%d", os.Getpid(), places.Add(1))
	path, err := netns.Create(name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := netns.Delete(name); err != nil {
			tb.Error(err)
		}
	})
	if err := netns.Do(path, makeTAP); err != nil {
		tb.Fatal(err)
	}
	return vmtest.Place{
		NIC: vm.NIC{Namespace: path, TAP: "tap0", MAC: guestMAC},
		Dial: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = netns.Do(path, func() (err error) {
				var d net.Dialer
				conn, err = d.DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}
}

func makeTAP() error {
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_ONE_QUEUE | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(hostAddr)
	if err != nil {
		return err
	}
	guest, guestErr := net.ParseMAC(guestMAC)
	host, hostErr := net.ParseMAC(hostMAC)
	return errors.Join(guestErr, hostErr,
		netlink.LinkSetHardwareAddr(tap, host),
		netlink.AddrAdd(tap, addr),
		netlink.LinkSetUp(tap),
		netlink.NeighAdd(&netlink.Neigh{LinkIndex: tap.Index, IP: net.ParseIP(guestAddr), HardwareAddr: guest, State: netlink.NUD_PERMANENT}),
	)
}

func TestConformance(t *testing.T) { vmtest.Run(t, harness(t)) }
