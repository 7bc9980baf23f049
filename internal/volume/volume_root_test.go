//go:build root

package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/loop"
	"wrenn.dev/internal/testkit"
)

// TestMain is also the program of TestKilledProcess.
func TestMain(m *testing.M) {
	if dir := os.Getenv("WRENN_TEST_VOLUMES"); dir != "" {
		hold(dir, wrenn.VolumeID(os.Getenv("WRENN_TEST_VOLUME")))
	}
	m.Run()
}

// hold mounts a volume, writes a file, and says so.
func hold(dir string, id wrenn.VolumeID) {
	s, err := Open(dir)
	if err != nil {
		panic(err)
	}
	root, _, err := s.Mount(id)
	if err != nil {
		panic(err)
	}
	f := create(root, "synced")
	if _, err := f.WriteString("kept"); err != nil {
		panic(err)
	}
	if err := f.Sync(); err != nil {
		panic(err)
	}
	if _, err := os.Stdout.WriteString("mounted"); err != nil {
		panic(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
}

func create(root *os.File, name string) *os.File {
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		panic(err)
	}
	return os.NewFile(uintptr(fd), name)
}

func read(t *testing.T, root *os.File, name string) string {
	t.Helper()
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	testkit.Must(t, err)
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	text, err := io.ReadAll(f)
	testkit.Must(t, err)
	return string(text)
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "volumes"))
	testkit.Must(t, err)
	return s
}

func newVolume(t *testing.T, s *Store, sizeMiB int64) wrenn.VolumeID {
	t.Helper()
	id := wrenn.NewVolumeID()
	testkit.Must(t, s.Create(t.Context(), id, sizeMiB))
	return id
}

func attached(t *testing.T, s *Store, id wrenn.VolumeID) bool {
	t.Helper()
	image, err := os.Open(filepath.Join(s.path(id), imageName))
	testkit.Must(t, err)
	defer image.Close()
	device, err := loop.Find(image)
	testkit.Must(t, err)
	if device == nil {
		return false
	}
	testkit.Must(t, device.Close())
	return true
}

func TestVolumeKeepsFiles(t *testing.T) {
	s := newStore(t)
	id := newVolume(t, s, 16)
	root, release, err := s.Mount(id)
	testkit.Must(t, err)
	again, releaseAgain, err := s.Mount(id)
	testkit.Must(t, err)
	if again != root {
		t.Error("two mounts of one volume differ")
	}
	if _, err := create(root, "file").WriteString("text"); err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	testkit.Must(t, err)
	if bytes.Contains(mounts, []byte(s.dir)) {
		t.Error("the volume is mounted on a directory")
	}
	testkit.WantCode(t, s.Delete(id), wrenn.FailedPrecondition, "in use")
	release()
	release()
	testkit.WantCode(t, s.Delete(id), wrenn.FailedPrecondition)
	releaseAgain()
	testkit.Must(t, s.Create(t.Context(), id, 16))
	root, release, err = s.Mount(id)
	testkit.Must(t, err)
	if got := read(t, root, "file"); got != "text" {
		t.Errorf("the file has %q", got)
	}
	release()
	testkit.Must(t, s.Delete(id))
	testkit.Must(t, s.Delete(id))
	_, _, err = s.Mount(id)
	testkit.WantCode(t, err, wrenn.NotFound)
	if ids, err := s.List(); err != nil || len(ids) != 0 {
		t.Errorf("%v are left, %v", ids, err)
	}
}

// A volume's size is its quota, and a new one takes little of the host's disk.
func TestVolumeIsBounded(t *testing.T) {
	s := newStore(t)
	id := newVolume(t, s, 1<<20) // a tebibyte
	var st unix.Stat_t
	testkit.Must(t, unix.Stat(filepath.Join(s.path(id), imageName), &st))
	if took := st.Blocks * 512 >> 20; took > 64 {
		t.Errorf("an empty volume takes %d MiB", took)
	}
	id = newVolume(t, s, 16)
	root, release, err := s.Mount(id)
	testkit.Must(t, err)
	defer release()
	f := create(root, "big")
	defer f.Close()
	n, err := f.Write(make([]byte, 32<<20))
	if err == nil {
		err = f.Sync()
	}
	if n >= 16<<20 || err == nil {
		t.Errorf("%d bytes were written, %v", n, err)
	}
}

func TestKilledProcess(t *testing.T) {
	s := newStore(t)
	id := newVolume(t, s, 16)
	staged := filepath.Join(s.dir, stage+"left")
	testkit.Must(t, os.Mkdir(staged, 0o700))
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), "WRENN_TEST_VOLUMES="+s.dir, "WRENN_TEST_VOLUME="+string(id))
	in, err := child.StdinPipe()
	testkit.Must(t, err)
	defer in.Close()
	out, err := child.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, child.Start())
	if _, err := io.ReadFull(out, make([]byte, len("mounted"))); err != nil {
		t.Fatal(err)
	}
	testkit.Must(t, child.Process.Kill())
	_ = child.Wait() // it was killed
	s, err = Open(s.dir)
	testkit.Must(t, err)
	if _, err := os.Lstat(staged); err == nil {
		t.Error("what a crash left was not removed")
	}
	root, release, err := s.Mount(id)
	testkit.Must(t, err)
	if got := read(t, root, "synced"); got != "kept" {
		t.Errorf("the file has %q", got)
	}
	release()
	testkit.WaitUntil(t, "the loop device is detached", func() bool { return !attached(t, s, id) })
}

// A file system that loses all that was not synced, as by a power failure, has what
// was synced, and no damage.
func TestCrashedHost(t *testing.T) {
	s := newStore(t)
	id := newVolume(t, s, 16)
	root, release, err := s.Mount(id)
	testkit.Must(t, err)
	var synced []string
	for i := range 20 {
		name := fmt.Sprint("synced", i)
		f := create(root, name)
		_, err := f.WriteString(name)
		testkit.Must(t, errors.Join(err, f.Sync(), f.Close()))
		synced = append(synced, name)
		f = create(root, fmt.Sprint("lost", i))
		_, err = f.Write(make([]byte, 100_000))
		testkit.Must(t, errors.Join(err, f.Close()))
		testkit.Must(t, unix.Renameat(int(root.Fd()), fmt.Sprint("lost", i), int(root.Fd()), "moved"))
	}
	const shutDown, withoutLog = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	testkit.Must(t, unix.IoctlSetPointerInt(int(root.Fd()), shutDown, withoutLog))
	if _, err := unix.Openat(int(root.Fd()), "more", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644); err == nil {
		t.Error("the file system works on")
	}
	release()
	testkit.WaitUntil(t, "the mount has ended", func() bool { return !attached(t, s, id) })
	root, release, err = s.Mount(id)
	testkit.Must(t, err)
	for _, name := range synced {
		if got := read(t, root, name); got != name {
			t.Errorf("%s has %q", name, got)
		}
	}
	release()
	testkit.WaitUntil(t, "the mount has ended again", func() bool { return !attached(t, s, id) })
	if out, err := exec.CommandContext(t.Context(), "e2fsck", "-f", "-n", filepath.Join(s.path(id), imageName)).CombinedOutput(); err != nil {
		t.Errorf("damage: %v\n%s", err, out)
	}
}
