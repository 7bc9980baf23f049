//go:build root && vm

// Package e2e shows the product from outside: its programs, with real guests.
package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wrenn.dev/internal/host"
)

// patience is long enough for a cold boot under emulation on a busy machine.
const patience = 3 * time.Minute

// prefix is different from an agent's, so that the tests' namespaces and links have their own names.
const prefix = "we2e"

// stateDir returns a short temporary directory: sockets live below it.
func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "we2e") //nolint:usetesting // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := leftovers(t, dir); len(left) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// leftovers returns the processes, mounts, namespaces and links of the test's
// state directory that still exist.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	left := processes(t, dir)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) || strings.Contains(line, "/netns/"+prefix) {
			left = append(left, "mount "+line)
		}
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if strings.HasPrefix(link.Name(), prefix) {
			left = append(left, "link "+link.Name())
		}
	}
	for _, pattern := range []string{"run/vm/*", "state/sandboxes/*", "state/store/sandboxes/*", "state/snapshots/*", "state/store/snapshots/*"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, files...)
	}
	return left
}

// processes returns the processes that have dir in their command lines.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range cmdlines {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(dir)) {
			found = append(found, "process "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// driver returns QEMU's emulation, or what the environment names, as in the nested
// test: a Firecracker, or QEMU with KVM. In all cases the guest's programs are in ../bin.
func driver() host.DriverConfig {
	if program := os.Getenv("WRENN_TEST_FIRECRACKER"); program != "" {
		return host.DriverConfig{Name: host.Firecracker, Firecracker: program, Jailer: os.Getenv("WRENN_TEST_JAILER")}
	}
	name := host.QEMU
	if os.Getenv("WRENN_TEST_KVM") == "1" {
		name = host.QEMUKVM
	}
	return host.DriverConfig{Name: name, QEMU: "qemu-system-x86_64"}
}

func hostAgent(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../bin/host-agent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: make build first", err)
	}
	return path
}

// needed returns a setting of the tests. Without the setting it skips the test, or
// fails it where nothing may be skipped.
func needed(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" && os.Getenv("WRENN_CI") == "1" {
		t.Fatalf("%s is not set", name)
	}
	if value == "" {
		t.Skipf("%s is not set: see CONTRIBUTING.md", name)
	}
	return value
}
