//go:build root

package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/testkit"
)

// TestStoreFullOrReadOnly: while the store's file system is full, and while it cannot be
// written, pauses and resumes work, and what is stored resumes on another host. What waits
// is stored when there is room again.
func TestStoreFullOrReadOnly(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	s, err := objects.OpenDir(dir)
	must(t, err)
	l, spec := storedLab(t, s)
	m := l.open(t)
	t.Cleanup(m.Close)
	running(t, m)
	sb := ensure(t, m, spec)
	must(t, sb.Pause(t.Context()))
	waitStored(t, sb)

	filler := filepath.Join(dir, "filler")
	full := func() { // until nothing more fits
		f, err := os.Create(filler)
		must(t, err)
		defer f.Close()
		for block := make([]byte, 4096); err == nil; {
			_, err = f.Write(block)
		}
	}
	readOnly := func() { must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=4m")) }
	writable := func() { must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=4m")) }
	for name, fault := range map[string]struct{ begin, end func() }{
		"full":      {full, func() { must(t, os.Remove(filler)) }},
		"read-only": {readOnly, writable},
	} {
		fault.begin()
		failed := m.StoreStats().Failed
		must(t, sb.Resume(t.Context()))
		must(t, l.mark(t.Context(), sb, 'x')) // there is something new to store
		must(t, sb.Pause(t.Context()))
		testkit.WaitUntil(t, "an upload fails: "+name, func() bool { return m.StoreStats().Failed > failed })
		if sb.Info().Stored.Key != "" || m.StoreStats().Waiting != 1 {
			t.Errorf("%s: %+v, %+v", name, sb.Info().Stored, m.StoreStats())
		}
		must(t, sb.Resume(t.Context()))
		wantAlive(t, sb)
		must(t, sb.Pause(t.Context()))
		fault.end()
		waitStored(t, sb)
	}
}
