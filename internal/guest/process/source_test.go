package process

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// pipeSource is a source at the end of a pipe, and what it emitted.
func pipeSource(t *testing.T) (s *source, w *os.File, got *bytes.Buffer) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	got = &bytes.Buffer{}
	s = &source{file: r, chunk: pipeChunk, buffers: newBuffers(), emit: func(b []byte) { got.Write(b) }}
	return s, w, got
}

func write(t *testing.T, w *os.File, text []byte) {
	t.Helper()
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
}

func TestPumpToEOF(t *testing.T) {
	s, w, got := pipeSource(t)
	write(t, w, []byte("all of it"))
	w.Close()
	if s.pump() || got.String() != "all of it" {
		t.Errorf("open, or emitted %q", got)
	}
}

// The process has exited, another one holds the pipe: what the pipe holds is read.
func TestPumpHeld(t *testing.T) {
	s, w, got := pipeSource(t)
	write(t, w, []byte("last words"))
	s.exited()
	if !s.pump() || got.String() != "last words" {
		t.Errorf("not open, or emitted %q", got)
	}
}

// A whole pipe is emitted, and no more than that of what others go on to write.
func TestSweep(t *testing.T) {
	s, w, got := pipeSource(t)
	size := s.capacity()
	want := bytes.Repeat([]byte("x"), size)
	write(t, w, want)
	s.emit = func(b []byte) {
		got.Write(b)
		if _, err := w.Write(b); err != nil { // as fast as it is read
			t.Error(err)
		}
	}
	if !s.sweep() {
		t.Error("sweep() says that the pipe is closed")
	}
	if diff := cmp.Diff(size, got.Len()); diff != "" {
		t.Errorf("bytes emitted (-want +got):\n%s", diff)
	}
}

func TestSweepEmptyAndClosed(t *testing.T) {
	s, w, _ := pipeSource(t)
	if !s.sweep() {
		t.Error("an empty pipe that is held counts as closed")
	}
	w.Close()
	if s.sweep() {
		t.Error("a closed pipe counts as held")
	}
}

// A pipe that was made larger than usual is swept as a whole.
func TestCapacity(t *testing.T) {
	s, w, got := pipeSource(t)
	size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	if err != nil {
		t.Skipf("this user may not have larger pipes: %v", err)
	}
	write(t, w, make([]byte, size))
	if !s.sweep() || got.Len() != size {
		t.Errorf("swept %d bytes, want %d", got.Len(), size)
	}
}
