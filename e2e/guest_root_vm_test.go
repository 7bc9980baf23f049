//go:build root && vm

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/host"
	"wrenn.dev/internal/host/sandbox"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/network"
)

var small = wrenn.Size{VCPUs: 1, MemoryMiB: 256}

// openHost assembles a host in a new directory.
func openHost(t *testing.T) *host.Host {
	t.Helper()
	return openHostWith(t, nil)
}

// openHostWith is like openHost, with these packages in guests; nil means the usual ones.
func openHostWith(t *testing.T, packages []string) *host.Host {
	t.Helper()
	dir := stateDir(t)
	h, err := host.Open(t.Context(), host.Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"),
		Image:   image.Config{StateDir: needed(t, "WRENN_TEST_IMAGES"), Envd: "../bin/envd", Stage0: "../bin/stage0", Packages: packages},
		Driver:  driver(),
		Network: network.Config{Prefix: prefix, Range: netip.MustParsePrefix("10.213.0.0/16")},
		Out:     t.Output(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return h
}

// keep destroys the sandbox at the end of the test.
func keep(t *testing.T, sb *sandbox.Sandbox, err error) *sandbox.Sandbox {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Destroy(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return sb
}

// collectLast collects unused snapshots at the end of the test, after the sandboxes
// that are passed to keep from now on.
func collectLast(t *testing.T, h *host.Host) {
	t.Helper()
	t.Cleanup(func() {
		if err := h.Manager.Collect(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// sh runs a shell script as root and returns its output without the last newline.
func sh(t *testing.T, sb *sandbox.Sandbox, script string) string {
	t.Helper()
	return shAs(t, sb, "root", script)
}

func shAs(t *testing.T, sb *sandbox.Sandbox, user, script string) string {
	t.Helper()
	res, err := sb.Guest().Exec(t.Context(), wrenn.ExecCommand{Cmd: "/bin/sh", Args: []string{"-c", script}, User: user})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	if res.ExitCode != 0 {
		t.Errorf("%s: %s: %s%s", script, res.Status, res.Stdout, res.Stderr)
	}
	return strings.TrimSuffix(string(res.Stdout), "\n")
}

func TestGuest(t *testing.T) {
	h := openHost(t)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)

	t.Run("programs of the image work", func(t *testing.T) {
		for _, script := range []string{
			"ls /", "nice -n 5 true", "ps -e >/dev/null", "curl --version", "git --version",
			"socat -V", "chronyd --version", "sudo --version", "bash --version", "python3 --version", "ip address",
		} {
			sh(t, sb, script)
		}
	})
	t.Run("users", func(t *testing.T) {
		for script, want := range map[string]string{
			"id -un; id -u; pwd":              "user\n1000\n/home/user",
			"sudo -n id -u":                   "0",
			"echo $HOME $USER $LOGNAME":       "/home/user user user",
			"touch ~/mine && stat -c %U mine": "user",
		} {
			if got := shAs(t, sb, "user", script); got != want {
				t.Errorf("%s printed %q, want %q", script, got, want)
			}
		}
		if got := sh(t, sb, "id -u; pwd"); got != "0\n/root" {
			t.Errorf("root is %q", got)
		}
	})
	t.Run("system", func(t *testing.T) {
		for script, want := range map[string]string{
			"cat /proc/1/comm":             "tini",
			"hostname":                     string(sb.ID()),
			"stat -f -c %T /":              "ext2/ext3",
			"stat -f -c %T /sys/fs/cgroup": "cgroup2fs",
			"stat -f -c %T /dev/shm":       "tmpfs",
			"cat /sys/class/net/lo/operstate /sys/class/net/eth0/address": "unknown\n02:fc:00:00:00:05",
			"ip -4 -o address show dev eth0 | awk '{print $4}'":           "169.254.0.21/30",
		} {
			if got := sh(t, sb, script); got != want {
				t.Errorf("%s printed %q, want %q", script, got, want)
			}
		}
	})
	t.Run("modules", func(t *testing.T) { testModules(t, sb) })
	t.Run("orphans are reaped", func(t *testing.T) {
		sh(t, sb, "for i in $(seq 20); do (sleep 0.01 &) ; done")
		deadline := time.Now().Add(patience)
		for sh(t, sb, "ps -e -o stat= -o comm= | grep -c '^Z.*sleep' || true") != "0" {
			if time.Now().After(deadline) {
				t.Fatalf("zombies stay: %s", sh(t, sb, "ps -e"))
			}
		}
	})
	t.Run("files come back as they went", func(t *testing.T) {
		content := bytes.Repeat([]byte{0, 1, 0xff, '\n', 0x80}, 1<<20)
		if err := sb.Guest().WriteFile(t.Context(), "user", "dir/data.bin", bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		if got, want := sh(t, sb, "sha256sum </home/user/dir/data.bin; stat -c %U /home/user/dir"), fmt.Sprintf("%x  -\nuser", sha256.Sum256(content)); got != want {
			t.Errorf("the guest has %q, want %q", got, want)
		}
		body, err := sb.Guest().ReadFile(t.Context(), "user", "dir/data.bin")
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, content) {
			t.Errorf("read back %d bytes, %v; want %d equal ones", len(got), err, len(content))
		}
	})
	t.Run("the metadata address is out of reach", func(t *testing.T) {
		sh(t, sb, "! curl -s --connect-timeout 3 http://169.254.169.254/")
	})
}

// checkClock fails unless the guest's clock is right: the clock of a restored guest
// that was not set would be behind by the snapshot's age.
func checkClock(t *testing.T, sb *sandbox.Sandbox) {
	t.Helper()
	const slack = time.Second // error of setting the clock over the network of a busy, emulated machine
	before := time.Now()
	ns, err := strconv.ParseInt(sh(t, sb, "date +%s%N"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if now := time.Unix(0, ns); now.Before(before.Add(-slack)) || now.After(time.Now().Add(slack)) {
		t.Errorf("the guest says %s, it is between %s and %s", now, before, time.Now())
	}
	want := "tsc" // all that an emulated guest has
	if driver().Name != host.QEMU {
		want = "kvm-clock"
		sh(t, sb, "test -c /dev/ptp0")
	}
	if got := sh(t, sb, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"); got != want {
		t.Errorf("the guest's clock is %s, want %s", got, want)
	}
}

// checkKernel fails if the guest's kernel has warned (the taint flag W), as it does of a
// processor that contradicts itself. In the nested machine of Firecracker's tests it has:
// see the processors in e2e/nested.
func checkKernel(t *testing.T, sb *sandbox.Sandbox) {
	t.Helper()
	if driver().Name == host.Firecracker {
		return
	}
	if got := sh(t, sb, "echo $(($(cat /proc/sys/kernel/tainted) & 512))"); got != "0" {
		t.Errorf("the guest's kernel has warned: %s", sh(t, sb, "dmesg | grep -A 3 'cut here'"))
	}
}

func TestSnapshotAndRestore(t *testing.T) {
	h := openHost(t)
	collectLast(t, h)
	sb, err := h.Manager.Create(t.Context(), wrenn.NewSandboxID(), small)
	sb = keep(t, sb, err)
	sh(t, sb, settle)
	if err := sb.Snapshot(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	if err := sb.Snapshot(t.Context(), "kept"); wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("a second snapshot of one name = %v, want already exists", err)
	}
	sh(t, sb, "echo changed >/dev/shm/m; echo changed >/root/d") // the sandbox keeps running; the snapshot must not change

	random := map[string]bool{}
	var twins []*sandbox.Sandbox
	for range 2 {
		twin, err := h.Manager.Restore(t.Context(), wrenn.NewSandboxID(), "kept")
		twin = keep(t, twin, err)
		if got := sh(t, twin, state); got != "memory\ndisk\nalive" {
			t.Errorf("the restored guest has %q", got)
		}
		random[sh(t, twin, "od -An -N16 -tx1 /dev/urandom")] = true
		checkClock(t, twin)
		checkKernel(t, twin)
		twins = append(twins, twin)
	}
	if len(random) != 2 {
		t.Error("two restores of one snapshot draw the same random numbers")
	}
	if got := sh(t, sb, state); got != "changed\nchanged\nalive" {
		t.Errorf("the original has %q", got)
	}
	if _, err := h.Manager.Restore(t.Context(), wrenn.NewSandboxID(), "other"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Restore of a missing snapshot = %v, want not found", err)
	}
	if err := h.Manager.RemoveSnapshot(t.Context(), "kept", ""); err != nil {
		t.Error(err)
	}
	if _, err := h.Manager.Restore(t.Context(), wrenn.NewSandboxID(), "kept"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("Restore of a snapshot that was removed = %v, want not found", err)
	}
	for _, twin := range twins { // their memory may still be in the snapshot's files
		if got := sh(t, twin, state); got != "memory\ndisk\nalive" {
			t.Errorf("after the removal the restored guest has %q", got)
		}
	}
}
