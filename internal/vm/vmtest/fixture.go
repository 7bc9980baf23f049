package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wrenn.dev/internal/storage"
	"wrenn.dev/internal/vm"
)

// timeout bounds each call of a guest. It is long, because guests are emulated and
// the host has other work.
const timeout = 2 * time.Minute

type suite struct {
	Harness
	scratch  string // for disks and snapshots
	base     snapshot
	machines atomic.Int32
}

// machine is a machine under test.
type machine struct {
	vm.Machine
	spec  vm.Spec
	guest Guest
}

// snapshot is a machine's memory and its disk at the same moment.
type snapshot struct{ dir, disk string }

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), timeout)
	t.Cleanup(cancel)
	return ctx
}

// kernelDigest stands for the digest of the harness's kernel.
const kernelDigest = "sha256:vmtest"

// newSpec prepares a place, a directory and a disk that is a copy of the file disk.
func (s *suite) newSpec(t *testing.T, disk string) (vm.Spec, Guest) {
	t.Helper()
	n := s.machines.Add(1)
	place := s.Place(t)
	dir := tempDir(t, os.TempDir()) // t.TempDir's names are too long for a socket
	must(t, "chmod", os.Chmod(dir, 0o711))
	path := s.cloneDisk(t, disk)
	spec := vm.Spec{
		ID:        fmt.Sprintf("vmtest-%d-%d", os.Getpid(), n),
		Dir:       dir,
		VCPUs:     s.VCPUs,
		MemoryMiB: s.MemoryMiB,
		Kernel:    s.Kernel,
		Disks:     []vm.Disk{{Path: path, MaxBytes: largest(t, path)}},
		Net:       place.NIC,
	}
	spec.Kernel.Digest = kernelDigest
	if s.UID != 0 {
		spec.UID = s.UID + uint32(n)%32
		spec.GID = spec.UID
	}
	return spec, s.Guest(t, place)
}

// largest returns how large the tests make a disk.
func largest(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, "stat", err)
	return info.Size() + grownBy
}

func (s *suite) cloneDisk(t *testing.T, disk string) string {
	t.Helper()
	path := filepath.Join(s.newDir(t), "disk")
	if disk == "" {
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if _, err := storage.Clone(t.Context(), path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newDir makes a directory in the scratch space, away when t ends.
func (s *suite) newDir(t *testing.T) string {
	t.Helper()
	return tempDir(t, s.scratch)
}

func tempDir(t *testing.T, in string) string {
	t.Helper()
	dir, err := os.MkdirTemp(in, "vmt") //nolint:usetesting // where it is matters
	must(t, "directory", err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// watch makes a machine under test of a new one: it is stopped when t ends, and must leave nothing.
func (s *suite) watch(t *testing.T, m vm.Machine, spec vm.Spec, guest Guest) *machine {
	t.Helper()
	t.Cleanup(func() {
		if console, ok := m.(vm.ConsoleReader); ok && t.Failed() {
			t.Logf("the console of %s: %q", spec.ID, console.Console())
		}
		if err := m.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("Stop: %v", err)
		}
		s.wantNothing(t, spec)
	})
	return &machine{Machine: m, spec: spec, guest: guest}
}

func (s *suite) start(t *testing.T, d vm.Driver) *machine {
	t.Helper()
	spec, guest := s.newSpec(t, s.RootFS)
	m, err := d.Start(within(t), spec)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	return s.watch(t, m, spec, guest)
}

func (s *suite) restore(t *testing.T, d vm.Driver, from snapshot) *machine {
	t.Helper()
	return s.restoreAs(t, d, from, false)
}

func (s *suite) restoreAs(t *testing.T, d vm.Driver, from snapshot, exclusive bool) *machine {
	t.Helper()
	spec, guest := s.newSpec(t, from.disk)
	spec.Exclusive = exclusive
	m, err := d.Restore(within(t), spec, from.dir)
	if err != nil {
		t.Fatalf("Restore: %v", err)
	}
	b := s.watch(t, m, spec, guest)
	b.ready(t)
	return b
}

func (b *machine) ready(t *testing.T) {
	t.Helper()
	if err := b.guest.WaitReady(within(t), b.Wait); err != nil {
		t.Fatalf("guest: %v", err)
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// wantNothing fails when anything of the machine is left.
func (s *suite) wantNothing(t *testing.T, spec vm.Spec) {
	t.Helper()
	entries, err := os.ReadDir(spec.Dir)
	if err != nil {
		t.Errorf("the machine's directory: %v", err)
	}
	for _, e := range entries {
		t.Errorf("left in the machine's directory: %s", e.Name())
	}
	for _, left := range append(processesNaming(spec.ID), mountsNaming(spec.Dir)...) {
		t.Errorf("left: %s", left)
	}
	if s.Leftovers != nil {
		for _, left := range s.Leftovers(t, spec) {
			t.Errorf("left: %s", left)
		}
	}
}

// processesNaming finds running processes with the word in their command line.
func processesNaming(word string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		cmdline, err := os.ReadFile(file)
		if err == nil && bytes.Contains(cmdline, []byte(word)) {
			found = append(found, "process "+filepath.Base(filepath.Dir(file))+": "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func mountsNaming(word string) []string {
	var found []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, word) {
			found = append(found, "mount "+line)
		}
	}
	return found
}

// seed is of hashes that are compared within one process: a cryptographic hash
// of a memory file takes an emulated machine ten seconds.
var seed = maphash.MakeSeed()

// hashes returns the digest of every file under dir.
func hashes(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		out[path] = maphash.Bytes(seed, data)
		return err
	})
	if err != nil || len(out) == 0 {
		t.Fatalf("hash %s: %d files, %v", dir, len(out), err)
	}
	return out
}

// wantIsolated checks that the VMM runs as the user of the spec, in its own
// namespaces.
func (s *suite) wantIsolated(t *testing.T, b *machine) {
	t.Helper()
	if s.UID == 0 {
		return
	}
	proc := filepath.Join("/proc", strconv.Itoa(b.Ref().PID))
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	must(t, "status of the VMM", err)
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", b.spec.UID),
		fmt.Sprintf("Gid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", b.spec.GID),
		"CapEff:\t0000000000000000\n",
		"Seccomp:\t2\n", // a filter, see proc_pid_status(5)
	} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("the VMM's status lacks %q", want)
		}
	}
	if sameFile(t, proc+"/ns/mnt", "/proc/self/ns/mnt") {
		t.Error("the VMM is in our mount namespace")
	}
	if !sameFile(t, proc+"/ns/net", b.spec.Net.Namespace) {
		t.Error("the VMM is not in its network namespace")
	}
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	var sa, sb syscall.Stat_t
	must(t, a, syscall.Stat(a, &sa))
	must(t, b, syscall.Stat(b, &sb))
	return sa.Dev == sb.Dev && sa.Ino == sb.Ino
}
