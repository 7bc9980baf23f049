//go:build vm

package firecracker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"wrenn/internal/envdclient"
	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func place(t *testing.T, n int) (vm.NIC, *envdclient.Client) {
	name := fmt.Sprintf("smoke%d", n)
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(done)
		h, err := netns.NewNamed(name)
		if err != nil {
			t.Error(err)
			return
		}
		defer h.Close()
		la := netlink.NewLinkAttrs()
		la.Name = "tap0"
		tap := &netlink.Tuntap{LinkAttrs: la, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_DEFAULTS | netlink.TUNTAP_VNET_HDR}
		if err := netlink.LinkAdd(tap); err != nil {
			t.Error(err)
		}
		l, err := netlink.LinkByName("tap0")
		if err != nil {
			t.Error(err)
			return
		}
		a, _ := netlink.ParseAddr("169.254.0.22/30")
		netlink.AddrAdd(l, a)
		netlink.LinkSetUp(l)
	}()
	<-done
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		var c net.Conn
		err := onThread(func() error {
			h, err := netns.GetFromName(name)
			if err != nil {
				return err
			}
			defer h.Close()
			if err := netns.Set(h); err != nil {
				return err
			}
			var d net.Dialer
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	return vm.NIC{Namespace: "/run/netns/" + name, TAP: "tap0", MAC: "02:fc:00:00:00:05"},
		envdclient.New(envdclient.Config{Dial: dial, Address: "169.254.0.21:49983"})
}

func TestSmoke(t *testing.T) {
	for _, uid := range []uint32{0, 20000} {
		t.Run(fmt.Sprint(uid), func(t *testing.T) { smoke(t, uid) })
	}
}

func smoke(t *testing.T, uid uint32) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	d, err := New(ctx, Config{Program: os.Getenv("WRENN_TEST_FIRECRACKER"), Jailer: os.Getenv("WRENN_TEST_JAILER"), Log: slog.Default()})
	must(t, err)
	scratch := t.TempDir()
	mk := func(n int, disk string) (vm.Spec, *envdclient.Client) {
		dir, _ := os.MkdirTemp("", "sm")
		nic, c := place(t, n+int(uid))
		path := filepath.Join(scratch, fmt.Sprint("disk", n))
		_, err := storage.Clone(ctx, path, disk, 0o600)
		must(t, err)
		return vm.Spec{ID: fmt.Sprintf("smoke-%d", n), Dir: dir, VCPUs: 1, MemoryMiB: 256,
			Kernel: vm.Kernel{Image: os.Getenv("WRENN_TEST_KERNEL"), Initrd: os.Getenv("WRENN_TEST_INITRD"), Args: []string{
				"root=/dev/vda", "rw", "ip=169.254.0.21::169.254.0.22:255.255.255.252:sandbox:eth0:off", "init=/usr/local/bin/wrenn-init"}},
			Disks: []vm.Disk{{Path: path}}, Net: nic, UID: uid, GID: uid}, c
	}
	begin := time.Now()
	spec, c := mk(1, os.Getenv("WRENN_TEST_ROOTFS"))
	m, err := d.Start(ctx, spec)
	must(t, err)
	t.Log("started", time.Since(begin))
	if err := c.WaitReady(ctx, m.Wait); err != nil {
		t.Log(string(m.(*machine).Console()))
		t.Fatal(err)
	}
	t.Log("ready", time.Since(begin))
	must(t, m.Pause(ctx))
	must(t, m.Pause(ctx))
	snap := filepath.Join(scratch, "snap")
	must(t, os.Mkdir(snap, 0o700))
	begin = time.Now()
	must(t, m.Snapshot(ctx, snap))
	t.Log("snapshot", time.Since(begin))
	spec2, c2 := mk(2, spec.Disks[0].Path)
	must(t, m.Resume(ctx))
	must(t, m.Resume(ctx))
	begin = time.Now()
	m2, err := d.Restore(ctx, spec2, snap)
	must(t, err)
	t.Log("restored", time.Since(begin))
	must(t, c2.WaitReady(ctx, m2.Wait))
	t.Log("ready", time.Since(begin))
	must(t, m2.Stop(ctx))
	must(t, m.Stop(ctx))
	must(t, m.Stop(ctx))
	for _, dir := range []string{spec.Dir, spec2.Dir, "/sys/fs/cgroup/wrenn"} {
		es, _ := os.ReadDir(dir)
		for _, e := range es {
			if e.IsDir() || dir == spec.Dir {
				t.Error("left", dir, e.Name())
			}
		}
	}
	t.Log(m.Wait(ctx), m2.Wait(ctx), m.Pause(ctx))
	t.Log(m.Ref())
}
