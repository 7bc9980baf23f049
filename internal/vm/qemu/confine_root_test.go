//go:build root

package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/launch"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm"
)

// TestVMMIsConfined looks at what a VMM has of the host, also a restored one.
func TestVMMIsConfined(t *testing.T) {
	d := testDriver(t)
	booted, _ := startIdle(t, d, "")
	wantConfined(t, booted)
	testkit.Must(t, booted.Pause(t.Context()))
	snapshot := t.TempDir()
	testkit.Must(t, booted.Snapshot(t.Context(), snapshot))
	restored, _ := startIdle(t, d, snapshot)
	wantConfined(t, restored)
}

func wantConfined(t *testing.T, m *machine) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", m.ref.PID)
	root, err := os.ReadDir(proc + "/root")
	testkit.Must(t, err)
	for _, e := range root {
		if !slices.Contains([]string{"dev", "etc", "lib", "lib64", "proc", "usr"}, e.Name()) {
			t.Errorf("the VMM sees /%s", e.Name())
		}
	}
	for _, path := range []string{"/etc/passwd", "/usr/bin/sh", "/proc/1/status", "/proc/meminfo", "/proc/sys"} {
		if _, err := os.Stat(proc + "/root" + path); err == nil {
			if path == "/proc/1/status" { // root sees it; its user does not, see package launch
				continue
			}
			t.Errorf("the VMM sees %s", path)
		}
	}
	for _, ns := range []string{"pid", "mnt", "ipc"} {
		its, err := os.Readlink(proc + "/ns/" + ns)
		testkit.Must(t, err)
		if ours, _ := os.Readlink("/proc/self/ns/" + ns); its == ours {
			t.Errorf("the VMM is in the host's %s namespace", ns)
		}
	}
	status, err := os.ReadFile(proc + "/status")
	testkit.Must(t, err)
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "Uid:\t64321\t64321\t64321\t64321"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the VMM's status has no %q", want)
		}
	}
	wantOnlyItsFiles(t, proc+"/fd", m.ref.Driver == NameKVM)
	wantItsKVM(t, proc+"/root"+kvmDevice, m.ref.Driver == NameKVM)
}

// wantItsKVM fails unless a VMM has a device file of KVM that belongs to its user, or,
// without KVM, none.
func wantItsKVM(t *testing.T, path string, kvm bool) {
	t.Helper()
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	if (err == nil) != kvm {
		t.Errorf("%s: %v, want one: %t", path, err, kvm)
	}
	if err == nil && (stat.Uid != 64_321 || stat.Mode != unix.S_IFCHR|0o600) {
		t.Errorf("%s belongs to %d, with mode %o", path, stat.Uid, stat.Mode)
	}
}

// wantOnlyItsFiles fails if a VMM has a file open that it was not passed and did not
// make itself.
func wantOnlyItsFiles(t *testing.T, dir string, kvm bool) {
	t.Helper()
	fds, err := os.ReadDir(dir)
	testkit.Must(t, err)
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		testkit.Must(t, err)
		ok := slices.ContainsFunc([]string{"/dev/null", "/memfd:", "socket:", "anon_inode:"}, func(p string) bool { return strings.HasPrefix(target, p) }) ||
			slices.ContainsFunc([]string{"/disk", "/kernel", "/state"}, func(s string) bool { return strings.HasSuffix(target, s) })
		if !ok && (!kvm || target != kvmDevice) {
			t.Errorf("the VMM has %s open", target)
		}
	}
}

// TestExchangedMemoryIsRefused is about a VMM that has put another file under the
// descriptor of its memory: one that it was passed, or that only root may open.
func TestExchangedMemoryIsRefused(t *testing.T) {
	const size = 1 << 20
	other := filepath.Join(t.TempDir(), "store.xfs")
	testkit.Must(t, os.WriteFile(other, make([]byte, size), 0o600))
	secret, err := os.Open(other)
	testkit.Must(t, err)
	defer secret.Close()
	memory, err := newMemory("memory", size)
	testkit.Must(t, err)
	defer memory.Close()
	passed := encode(key(t, memory))
	restored := map[string]string{refBase: t.TempDir()}
	for name, c := range map[string]struct {
		has     *os.File
		private map[string]string
		ok      bool
	}{
		"its memory":                         {memory, map[string]string{refMemory: passed}, true},
		"another file":                       {secret, map[string]string{refMemory: passed}, false},
		"its memory, of an older agent":      {memory, nil, true},
		"another file, of an older agent":    {secret, nil, false},
		"another file, of an older restored": {secret, restored, false},
	} {
		t.Run(name, func(t *testing.T) {
			proc, err := launch.Start(launch.Command{Path: "/bin/sleep", Args: []string{"1000"}, Files: []*os.File{c.has}})
			testkit.Must(t, err)
			t.Cleanup(func() { testkit.Must(t, proc.Kill(context.WithoutCancel(t.Context()))) })
			m := &machine{proc: proc, ref: vm.Ref{PID: proc.Identity().PID, Private: c.private}}
			f, err := m.openMemory(size)
			if (err == nil) != c.ok {
				t.Fatalf("openMemory() = %v, want success: %v", err, c.ok)
			}
			if f != nil {
				f.Close()
			}
		})
	}
}

// A VMM that keeps the file of its device state cannot change the snapshot later.
func TestStateIsNotTheVMMsFile(t *testing.T) {
	state, err := newMemory("state", 0)
	testkit.Must(t, err)
	defer state.Close()
	_, err = state.WriteString("state")
	testkit.Must(t, err)
	kept, err := dup(state)
	testkit.Must(t, err)
	defer kept.Close()
	testkit.Must(t, sealAll(state))
	if _, err := kept.WriteString("more"); err == nil {
		t.Error("the VMM wrote to a sealed file")
	}
	mapped, err := newMemory("state", pageSize)
	testkit.Must(t, err)
	defer mapped.Close()
	m, err := unix.Mmap(int(mapped.Fd()), 0, pageSize, unix.PROT_WRITE|unix.PROT_READ, unix.MAP_SHARED)
	testkit.Must(t, err)
	defer unix.Munmap(m)
	if err := sealAll(mapped); err == nil {
		t.Error("a file that the VMM can still change was accepted")
	}
}
