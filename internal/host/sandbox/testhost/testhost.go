// Package testhost makes hosts for tests: directories, network slots in their own
// namespace, and a world of fake machines in which the real guest agent runs. It
// needs root, but no VMM. What composes them (the manager, a whole agent) is the
// test's.
package testhost

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"wrenn.dev/internal/host/sandbox/fakeguest"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/rollback"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
	"wrenn.dev/internal/vm/vmfake"
)

// Config says what the host is like. The zero value is a host with two slots.
type Config struct {
	Slots int // network slots at a time; default 2
	// Hook, if set, is that of vmfake.
	Hook rollback.Hook
	// Boot, if set, is called in place of fakeguest.Boot.
	Boot func(fakeguest.Config) (stop func(), err error)
	Log  *slog.Logger // default: to the test's output
}

// Host is a host without an agent.
type Host struct {
	Network          network.Config
	World            *vmfake.World
	Driver           vm.Driver // of the machines of World
	StateDir, RunDir string
	Image            string // a file: the guest's root file system, and its kernel
	Log              *slog.Logger
}

var hosts atomic.Int32

// New makes a host. Everything goes with the test, but its machines and slots,
// which must have ended by then.
func New(t *testing.T, cfg Config) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if cfg.Boot == nil {
		cfg.Boot = fakeguest.Boot
	}
	prefix := fmt.Sprintf("t%05x%02x", os.Getpid()&0xfffff, hosts.Add(1)&0xff) // 8 letters, the most that a pool takes
	h := &Host{StateDir: t.TempDir(), RunDir: shortDir(t), Image: filepath.Join(t.TempDir(), "image"), Log: cfg.Log}
	testkit.Must(t, os.WriteFile(h.Image, []byte("image"), 0o600))
	h.Network = network.Config{
		Prefix: prefix, Range: netip.MustParsePrefix("10.221.0.0/24"), Max: cmp.Or(cfg.Slots, 2), RunDir: h.RunDir,
		HostNamespace: namespace(t, prefix+"host"), Log: cfg.Log,
	}
	h.World = &vmfake.World{Boot: func(g *vmfake.Guest) (func(), error) {
		spec, err := g.Spec()
		if err != nil {
			return nil, err
		}
		return cfg.Boot(fakeguest.Config{Slot: spec.Net.Namespace, Log: cfg.Log})
	}}
	h.Driver = vmfake.New(vmfake.Config{World: h.World, Hook: cfg.Hook})
	// Guests find a sync that does not write the disks of this machine.
	bin := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(bin, "sync"), []byte("#!/bin/sh\nexit 0\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return h
}

func namespace(tb testing.TB, name string) string {
	tb.Helper()
	path, err := netns.Create(name)
	testkit.Must(tb, err)
	tb.Cleanup(func() { testkit.Must(tb, netns.Delete(name)) })
	return path
}

func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "th") //nolint:usetesting // t.TempDir's names are too long for sockets
	testkit.Must(tb, err)
	tb.Cleanup(func() { testkit.Must(tb, os.RemoveAll(dir)) })
	return dir
}
