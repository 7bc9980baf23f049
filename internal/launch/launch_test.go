package launch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

func TestStartTime(t *testing.T) {
	rest := strings.Repeat(" 0", 18) + " 4711 9\n"
	for name, c := range map[string]struct {
		stat string
		want uint64
		ok   bool
	}{
		"plain":              {"12 (qemu) S" + rest, 4711, true},
		"hostile name":       {"12 (a) R 1 (b) c) S" + rest, 4711, true},
		"too few fields":     {"12 (qemu) S 1 2", 0, false},
		"empty":              {"", 0, false},
		"name without end":   {"12 (qemu", 0, false},
		"nothing after name": {"12 (qemu)", 0, false},
	} {
		got, err := startTime([]byte(c.stat))
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%s: startTime() = %d, %v", name, got, err)
		}
	}
}

func TestRingIsBoundedWithoutAnAgent(t *testing.T) {
	c := testRing(t, ConsoleSize)
	flood := bytes.Repeat([]byte("x"), 4096)
	for range 2 * ConsoleSize / len(flood) {
		if _, err := c.file.Write(flood); err != nil {
			if !errors.Is(err, unix.EPERM) {
				t.Fatalf("write beyond the end = %v, want EPERM", err)
			}
			break
		}
	}
	if info, _ := c.file.Stat(); info.Size() != ConsoleSize {
		t.Errorf("size = %d", info.Size())
	}
	if err := c.file.Truncate(2 * ConsoleSize); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate = %v, want EPERM", err)
	}
	if got := len(c.tail()); got > ConsoleSize {
		t.Errorf("%d bytes are kept", got)
	}
}

func TestRingKeepsTheLastOutput(t *testing.T) {
	c := testRing(t, ConsoleSize)
	var all []byte
	for i := range 40 {
		line := append(bytes.Repeat([]byte{'a' + byte(i%26)}, 20_000), '\n')
		all = append(all, line...)
		if _, err := c.file.Write(line); err != nil {
			t.Fatal(err)
		}
		c.rewind()
	}
	got := c.tail()
	if len(got) < ConsoleSize/2 || !bytes.HasSuffix(all, got) {
		t.Errorf("%d bytes are kept; they are not the last that were written, or too few", len(got))
	}
}

// The index tells when output was written, over rewinds, and within its bound.
func TestRingKnowsWhen(t *testing.T) {
	c := testRing(t, ConsoleSize)
	line := func(i int) string { return fmt.Sprintf("%05d %s\n", i, strings.Repeat("x", 500)) }
	const lines = 3 * maxMarks // three rings
	for i := range lines {
		if _, err := c.file.WriteString(line(i)); err != nil {
			t.Fatal(err)
		}
		c.look()
	}
	if n := len(c.marks.list); n > maxMarks {
		t.Errorf("the index has %d entries, want %d at most", n, maxMarks)
	}
	if _, err := c.file.WriteString("new\nhal"); err != nil {
		t.Fatal(err)
	}
	pieces := c.pieces()
	var all []byte
	for i, p := range pieces {
		all = append(all, p.Text...)
		if i > 0 && i < len(pieces)-1 && p.Until.Before(pieces[i-1].Until) {
			t.Errorf("piece %d is older than the one before it", i)
		}
	}
	if diff := cmp.Diff(string(c.tail()), string(all)); diff != "" {
		t.Errorf("the pieces are not the output (-want +got):\n%s", diff)
	}
	last := len(pieces) - 1
	if string(pieces[last].Text) != "new\nhal" || !pieces[last].Until.IsZero() {
		t.Errorf("the newest piece is %q, until %s", pieces[last].Text, pieces[last].Until)
	}
	if string(pieces[last-1].Text) != line(lines-1) {
		t.Errorf("the one before it is %.20q, want %.20q", pieces[last-1].Text, line(lines-1))
	}
}

// A VMM can set the offset of its file to anything.
func TestRingOfAHostileVMM(t *testing.T) {
	c := testRing(t, ConsoleSize)
	for _, pos := range []int64{1 << 62, 5, 1<<63 - 1, 0, 1 << 62} {
		if _, err := c.file.Seek(pos, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		c.look()
		if pieces := c.pieces(); len(pieces) != 1 || len(pieces[0].Text) != 0 {
			t.Errorf("at %d there are pieces: %v", pos, pieces)
		}
	}
}

func testRing(t *testing.T, size int64) *ring {
	t.Helper()
	c, err := newRing("ring", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.file.Close() })
	return c
}

func TestLastLines(t *testing.T) {
	if got, want := LastLines([]byte("a\x1b]0;title\x07b\r\nc\xff\u0085\td")), "a\ufffd]0;title\ufffdb\nc\ufffd\ufffd\td"; got != want {
		t.Errorf("LastLines() = %q, want %q", got, want)
	}
	if got := lastLines([]byte("one\ntwo\nthree\n"), 8); got != "three\n" {
		t.Errorf("lastLines() = %q", got)
	}
	if got := lastLines([]byte("endless"), 4); got != "less" {
		t.Errorf("lastLines() without a line end = %q", got)
	}
}

// TestAdopt follows a process that package os started.
func TestAdopt(t *testing.T) {
	out, err := newRing("console", ConsoleSize)
	if err != nil {
		t.Fatal(err)
	}
	defer out.file.Close()
	cat := exec.Command("cat")
	stdin, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cat.Stdout = out.file
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := identify(cat.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]Identity{
		"other start time": {id.PID, id.StartTime + 1, id.BootID},
		"other boot":       {id.PID, id.StartTime, "0"},
		"impossible PID":   {0, id.StartTime, id.BootID},
	} {
		if _, err := Adopt(other); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: Adopt() = %v, want ErrProcessDone", name, err)
		}
	}
	p, err := Adopt(id)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stdin, "hello")
	stdin.Close()
	cat.Wait()
	exit, err := p.Wait(t.Context())
	if err != nil || exit.Killed {
		t.Errorf("Wait() = %+v, %v", exit, err)
	}
	if got := string(p.Output()); got != "hello" {
		t.Errorf("Output() = %q", got)
	}
	if _, err := Adopt(id); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Adopt of an ended process = %v, want ErrProcessDone", err)
	}
}

// TestAdoptTellsConsoleAndLogApart follows a process as this agent starts one,
// and one as an older agent did, with one file for both.
func TestAdoptTellsConsoleAndLogApart(t *testing.T) {
	for name, c := range map[string]struct {
		shared      bool
		output, log string
	}{
		"two files": {false, "guest", "vmm"},
		"one file":  {true, "guestvmm", ""},
	} {
		t.Run(name, func(t *testing.T) {
			console, log := testRing(t, ConsoleSize), testRing(t, LogSize)
			if c.shared {
				log = console
			}
			sh := exec.Command("sh", "-c", "printf guest; printf vmm >&2; read line")
			sh.Stdout, sh.Stderr = console.file, log.file
			stdin, err := sh.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := sh.Start(); err != nil {
				t.Fatal(err)
			}
			id, err := identify(sh.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Adopt(id)
			if err != nil {
				t.Fatal(err)
			}
			stdin.Close()
			_ = sh.Wait() // read fails at the end of the input
			if _, err := p.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if out, log := string(p.Output()), string(p.Log()); out != c.output || log != c.log {
				t.Errorf("Output() = %q, Log() = %q, want %q and %q", out, log, c.output, c.log)
			}
		})
	}
}

// TestHostileRings takes over descriptors that a VMM could have put in the place of
// those of its output, here of this process.
func TestHostileRings(t *testing.T) {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	testkit.Must(t, err)
	t.Cleanup(func() { unix.Close(pidfd) })
	plain, err := os.Create(filepath.Join(t.TempDir(), "plain"))
	testkit.Must(t, err)
	testkit.Must(t, plain.Truncate(ConsoleSize))
	r, w, err := os.Pipe()
	testkit.Must(t, err)
	memory, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0) // the only kind with negative offsets
	testkit.Must(t, err)
	open, err := unix.MemfdCreate("console", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	testkit.Must(t, err)
	growing := os.NewFile(uintptr(open), "growing")
	testkit.Must(t, growing.Truncate(ConsoleSize))
	for name, f := range map[string]*os.File{"file": plain, "pipe": r, "end of a pipe": w, "memory": memory, "memfd without seals": growing, "closed": nil} {
		fd := 1 << 18 // closed
		if f != nil {
			t.Cleanup(func() { f.Close() })
			fd = int(f.Fd())
		}
		if got, err := adoptRing(pidfd, fd, name); !errors.Is(err, errNotARing) {
			t.Errorf("%s: adoptRing() = %v, %v; want errNotARing", name, got, err)
		}
	}
	mine := testRing(t, ConsoleSize)
	adopted, err := adoptRing(pidfd, int(mine.file.Fd()), "ring")
	testkit.Must(t, err)
	defer adopted.close()
	for _, offset := range []int64{0, 1, ConsoleSize/2 - 1, ConsoleSize - 1, ConsoleSize, ConsoleSize + 1, 1<<63 - 1} {
		for _, whence := range []int{io.SeekStart, unix.SEEK_HOLE, unix.SEEK_DATA} {
			_, _ = mine.file.Seek(offset, whence) // as the VMM may at any time
			if got := len(adopted.tail()); got > ConsoleSize {
				t.Errorf("%d bytes are kept", got)
			}
			adopted.rewind()
		}
	}
}

func FuzzStartTime(f *testing.F) {
	f.Add([]byte("12 (qemu) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		_, _ = startTime(stat) // must not panic
	})
}
