package qemu

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/vm"
)

var runsAreEqual = cmp.AllowUnexported(run{})

// TestFillIn writes into this process's private mapping, as into that of a VMM that
// has just started.
func TestFillIn(t *testing.T) {
	older, want := testMemory(t)
	mapped, err := unix.Mmap(int(older.Fd()), 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	before := bytes.Clone(want)
	newer := make([]byte, len(want))
	rand.Read(newer)
	const p = pageSize
	clear(newer[4*p : 5*p]) // was zeroed
	runs := []run{{0, 2 * p}, {3 * p, 5 * p}, {(testPages - 1) * p, testPages * p}}
	for _, r := range runs {
		copy(want[r.start:r.end], newer[r.start:r.end])
	}
	if err := fillIn(t.Context(), os.Getpid(), key(t, older), int64(len(want)), bytes.NewReader(newer), runs); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mapped, want) {
		t.Error("the mapping is not what it should be")
	}
	wantContent(t, older, before)

	// They are the process's own now: its next snapshot has them.
	got, err := overlayPrivate(t.Context(), newFile(t), os.Getpid(), key(t, older), int64(len(want)))
	if diff := cmp.Diff(runs, got, runsAreEqual); err != nil || diff != "" {
		t.Errorf("overlayPrivate() = %v; (-want +got):\n%s", err, diff)
	}
	if err := fillIn(t.Context(), os.Getpid(), key(t, older), int64(len(want))-p, bytes.NewReader(newer), runs); err == nil {
		t.Error("a process that has mapped more than its memory was taken")
	}
}

func TestDecodeRuns(t *testing.T) {
	const p = pageSize
	for name, c := range map[string]struct {
		runs []run
		cut  int
		ok   bool
	}{
		"none":         {nil, 0, true},
		"some":         {[]run{{0, p}, {2 * p, 5 * p}, {5 * p, 10 * p}}, 0, true},
		"cut":          {[]run{{0, p}}, 1, false},
		"no pages":     {[]run{{0, p / 2}}, 0, false},
		"empty":        {[]run{{p, p}}, 0, false},
		"backwards":    {[]run{{2 * p, p}}, 0, false},
		"out of order": {[]run{{2 * p, 3 * p}, {0, p}}, 0, false},
		"overlapping":  {[]run{{0, 2 * p}, {p, 3 * p}}, 0, false},
		"negative":     {[]run{{-p, p}}, 0, false},
		"too far":      {[]run{{9 * p, 11 * p}}, 0, false},
		"too many":     {make([]run, maxRuns+1), 0, false},
	} {
		data := encodeRuns(c.runs)
		got, err := decodeRuns(data[:len(data)-c.cut], 10*p)
		if (err == nil) != c.ok {
			t.Errorf("%s: decodeRuns() = %v", name, err)
		}
		if c.ok && !cmp.Equal(append([]run{}, c.runs...), got, runsAreEqual) {
			t.Errorf("%s: decodeRuns() = %v", name, got)
		}
	}
}

func TestFileID(t *testing.T) {
	f := newFile(t)
	if err := f.Truncate(pageSize); err != nil {
		t.Fatal(err)
	}
	b, err := idOf(f)
	if err != nil {
		t.Fatal(err)
	}
	var again fileID // as in a manifest
	if err := json.Unmarshal([]byte(encode(b)), &again); err != nil || again != b {
		t.Fatalf("it has changed: %v, %v", again, err)
	}
	open := func(what string, ok bool) {
		t.Helper()
		got, err := again.open(pageSize)
		if (err == nil) != ok {
			t.Errorf("%s: open() = %v", what, err)
		}
		if err == nil {
			got.Close()
		}
	}
	open("as it was", true)
	if err := os.Chtimes(f.Name(), time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	open("written to", false)
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	open("removed", false)
}

func TestChanges(t *testing.T) {
	const size = 64 * pageSize
	over := fileID{Path: "/older/memory", Inode: 1, Mtime: 2}
	for name, c := range map[string]struct {
		private map[string]string
		runs    []run
		want    bool
	}{
		"some":                  {map[string]string{refMapped: encode(over)}, []run{{0, pageSize}, {3 * pageSize, 5 * pageSize}}, true},
		"none":                  {map[string]string{refMapped: encode(over)}, []run{}, true},
		"too much":              {map[string]string{refMapped: encode(over)}, []run{{0, size/maxChanged + pageSize}}, false},
		"too many rows":         {map[string]string{refMapped: encode(over)}, make([]run, maxRuns+1), false},
		"of a booted machine":   {nil, nil, false},
		"of an older agent's":   {map[string]string{refBase: "/older"}, []run{{0, pageSize}}, false},
		"of a damaged notebook": {map[string]string{refMapped: "{"}, []run{{0, pageSize}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := &machine{ref: vm.Ref{Private: c.private}}
			got, err := m.writeChanges(dir, c.runs, size)
			if err != nil || (got != nil) != c.want {
				t.Fatalf("writeChanges() = %v, %v", got, err)
			}
			if got == nil {
				return
			}
			runs, err := got.read(dir, size)
			if diff := cmp.Diff(c.runs, runs, runsAreEqual); err != nil || diff != "" || got.Base != over {
				t.Errorf("read() = %v, base %v; (-want +got):\n%s", err, got.Base, diff)
			}
			if err := os.WriteFile(filepath.Join(dir, changesName), make([]byte, 16*len(c.runs)+16), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := got.read(dir, size); err == nil {
				t.Error("a list of another size was taken")
			}
		})
	}
}
