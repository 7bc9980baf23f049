package qemu

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
)

const testPages = 300 // more than a piece of a pagemap would be at 2 bytes each

// testMemory is a memory file of testPages pages, random but for some holes.
func testMemory(t *testing.T) (*os.File, []byte) {
	t.Helper()
	content := make([]byte, testPages*pageSize)
	f, err := newMemory("test", int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for page := range testPages {
		if page%7 == 3 {
			continue
		}
		part := content[page*pageSize : (page+1)*pageSize]
		rand.Read(part)
		if _, err := f.WriteAt(part, int64(page*pageSize)); err != nil {
			t.Fatal(err)
		}
	}
	return f, content
}

func newFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func wantContent(t *testing.T, f *os.File, want []byte) {
	t.Helper()
	got := make([]byte, len(want)+1)
	if n, _ := f.ReadAt(got, 0); n != len(want) || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes, want %d; or they differ", n, len(want))
	}
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestCopySparse(t *testing.T) {
	src, content := testMemory(t)
	dst := newFile(t)
	if err := copySparse(t.Context(), dst, src, int64(len(content))); err != nil {
		t.Fatal(err)
	}
	wantContent(t, dst, content)
	if used := blocks(t, dst); used >= int64(len(content)) {
		t.Errorf("%d bytes are allocated: the holes were filled", used)
	}

	cut := newFile(t)
	if err := copySparse(t.Context(), cut, src, 5*pageSize); err != nil {
		t.Fatal(err)
	}
	wantContent(t, cut, content[:5*pageSize])

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := copySparse(ctx, newFile(t), src, int64(len(content))); !errors.Is(err, context.Canceled) {
		t.Errorf("copySparse() = %v, want Canceled", err)
	}
}

// TestOverlayPrivate lets this process change a private mapping, as a restored
// VMM does.
func TestOverlayPrivate(t *testing.T) {
	src, content := testMemory(t)
	mapped, err := unix.Mmap(int(src.Fd()), 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	want := bytes.Clone(content)
	for _, c := range []struct {
		page  int
		value byte
	}{{0, 'a'}, {1, 0}, {2, 0}, {50, 'b'}, {59, 'h'}, {testPages - 1, 0}} { // 59 was a hole
		for _, memory := range [][]byte{mapped, want} {
			page := memory[c.page*pageSize : (c.page+1)*pageSize]
			for i := range page {
				page[i] = c.value
			}
		}
	}
	_ = mapped[100*pageSize] // reading makes no page private

	dst := newFile(t)
	if err := copySparse(t.Context(), dst, src, int64(len(content))); err != nil {
		t.Fatal(err)
	}
	counter := &countingWriter{f: dst}
	changed, err := overlayPrivate(t.Context(), counter, os.Getpid(), key(t, src), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, dst, want)
	const p = pageSize
	if diff := cmp.Diff([]run{{0, 3 * p}, {50 * p, 51 * p}, {59 * p, 60 * p}, {(testPages - 1) * p, testPages * p}}, changed, cmp.AllowUnexported(run{})); diff != "" {
		t.Errorf("changed pages (-want +got):\n%s", diff)
	}
	if counter.n != 6*pageSize {
		t.Errorf("%d bytes were written for 6 changed pages", counter.n)
	}
	if _, err := overlayPrivate(t.Context(), dst, os.Getpid(), key(t, src), int64(len(content))+pageSize); err == nil {
		t.Error("a process that has mapped less than its memory was taken")
	}
	another := key(t, src) // a file of another file system with the same inode number
	another.Device++
	if found, err := memoryOf(os.Getpid(), another); err != nil || len(found) != 0 {
		t.Errorf("memoryOf() of a file that is not mapped = %v, %v", found, err)
	}
}

func key(t *testing.T, f *os.File) fileKey {
	t.Helper()
	k, err := keyOf(f)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

type countingWriter struct {
	f *os.File
	n int
}

func (w *countingWriter) WriteAt(p []byte, off int64) (int, error) {
	w.n += len(p)
	return w.f.WriteAt(p, off)
}

func TestPrivate(t *testing.T) {
	for name, c := range map[string]struct {
		entry uint64
		want  bool
	}{
		"untouched":        {0, false},
		"read":             {pagePresent | pageOfFile, false},
		"written":          {pagePresent, true},
		"written, swapped": {pageSwapped, true},
		"soft-dirty alone": {1 << 55, false},
	} {
		if got := private(c.entry); got != c.want {
			t.Errorf("%s: private() = %v", name, got)
		}
	}
}

func TestAppendPrivate(t *testing.T) {
	const p = pageSize
	for name, c := range map[string]struct {
		pages []string // pieces; x is private
		want  []run
	}{
		"none":        {[]string{"----"}, nil},
		"all":         {[]string{"xxxx"}, []run{{0, 4 * p}}},
		"ends":        {[]string{"x--x"}, []run{{0, p}, {3 * p, 4 * p}}},
		"middle":      {[]string{"-xx-x-"}, []run{{p, 3 * p}, {4 * p, 5 * p}}},
		"no pages":    {[]string{""}, nil},
		"two pieces":  {[]string{"-x", "x-x"}, []run{{p, 3 * p}, {4 * p, 5 * p}}},
		"after a gap": {[]string{"---", "-x"}, []run{{4 * p, 5 * p}}},
	} {
		var got []run
		at := int64(0)
		for _, piece := range c.pages {
			var pagemap []byte
			for _, p := range piece {
				entry := uint64(0)
				if p == 'x' {
					entry = pagePresent
				}
				pagemap = binary.NativeEndian.AppendUint64(pagemap, entry)
			}
			got = appendPrivate(got, pagemap, at)
			at += int64(len(piece)) * p
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(run{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestPrivatePages changes every third page of this process's mapping, more
// than are read at once.
func TestPrivatePages(t *testing.T) {
	const pages = 100_000
	f, err := newMemory("test", pages*pageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	start := int64(uintptr(unsafe.Pointer(&mapped[0])))
	var want []run
	for page := int64(0); page < pages; page += 3 {
		mapped[page*pageSize] = byte(page) // some stay zero
		want = append(want, run{start + page*pageSize, start + (page+1)*pageSize})
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	got, err := privatePages(pagemap, start, start+pages*pageSize)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d rows of pages, %v; want %d", len(got), err, len(want))
	}
}

const testMaps = `55d0c0000000-55d0c0001000 r--p 00000000 fe:00 4242                       /usr/bin/qemu system
7f0000000000-7f0008000000 rw-p 00000000 00:01 77                         /memfd:image (deleted)
7f0008000000-7f0010000000 rw-p 08000000 00:01 77                         /memfd:image (deleted)
7f0010000000-7f0010001000 ---p 00000000 00:00 0
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`

func TestMappings(t *testing.T) {
	got, err := mappings(strings.NewReader(testMaps), 77)
	want := []region{{0x7f0000000000, 0x8000000, 0}, {0x7f0008000000, 0x8000000, 0x8000000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(region{})); diff != "" || err != nil {
		t.Errorf("mappings() = %v (-want +got):\n%s", err, diff)
	}
}

func FuzzMappings(f *testing.F) {
	f.Add(testMaps, uint64(77))
	f.Fuzz(func(t *testing.T, maps string, inode uint64) {
		found, _ := mappings(strings.NewReader(maps), inode)
		for _, r := range found {
			if r.size <= 0 {
				t.Errorf("a region of %d bytes", r.size)
			}
		}
	})
}

func TestImagesAreSharedAndSealed(t *testing.T) {
	src := newFile(t)
	if _, err := src.WriteString(strings.Repeat("m", 3*pageSize)); err != nil {
		t.Fatal(err)
	}
	s := newImages()
	var leases [5]*lease
	var wg sync.WaitGroup
	for i := range leases {
		wg.Go(func() {
			l, err := s.acquire(src)
			if err == nil {
				err = l.wait(t.Context())
			}
			if err != nil {
				t.Error(err)
				return
			}
			leases[i] = l
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, l := range leases {
		if l.img != leases[0].img {
			t.Fatal("one file has two images")
		}
	}
	f, err := leases[0].dup()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again, err := os.OpenFile(reopen(int(f.Fd())), os.O_RDWR, 0) // as QEMU 7.2 does
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Write([]byte("x")); !errors.Is(err, unix.EPERM) {
		t.Errorf("write to an image = %v, want EPERM", err)
	}
	if _, err := unix.Mmap(int(again.Fd()), 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
		t.Errorf("shared mapping of an image = %v, want EPERM", err)
	}
}

func TestImagesAreDropped(t *testing.T) {
	s := newImages()
	a, b := newFile(t), newFile(t)
	take := func(f *os.File) *lease {
		t.Helper()
		l, err := s.acquire(f)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := take(a)
	first.release()
	first.release() // twice is once
	if len(s.byFile) != 1 {
		t.Error("the last image used was dropped")
	}
	second := take(b)
	if len(s.byFile) != 1 || take(b).img != second.img {
		t.Errorf("%d images are kept, want that of the second alone", len(s.byFile))
	}
	if _, err := a.WriteString("changed"); err != nil {
		t.Fatal(err)
	}
	third := take(a)
	if len(s.byFile) != 2 {
		t.Errorf("%d images are kept, want 2: one in use, one the last", len(s.byFile))
	}
	third.release()
}

// A VMM maps an image before it is filled, and sees its content once it is.
func TestImageIsMappedBeforeItIsFilled(t *testing.T) {
	src, content := testMemory(t)
	s := newImages()
	testkit.Must(t, s.filling.Lock(t.Context())) // another one is being filled
	l, err := s.acquire(src)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.dup()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.wait(impatient); !errors.Is(err, context.Canceled) {
		t.Errorf("wait() = %v, want Canceled", err)
	}
	s.filling.Unlock()
	if err := l.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mapped, content) {
		t.Error("what was mapped is not what was copied")
	}
}

// The filling of an image that no machine uses is canceled, and an image that cannot be
// filled is made again for the next machine.
func TestImageThatIsNotFilled(t *testing.T) {
	s := newImages()
	a, b := newFile(t), newFile(t)
	testkit.Must(t, s.filling.Lock(t.Context()))
	first, err := s.acquire(a)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.acquire(b) // the last one now
	if err != nil {
		t.Fatal(err)
	}
	first.release()
	if err := first.wait(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("wait() for what no machine uses = %v, want Canceled", err)
	}
	second.img.stop()
	if err := second.wait(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("wait() = %v, want Canceled", err)
	}
	s.filling.Unlock()
	for { // it is forgotten a moment after that
		again, err := s.acquire(b)
		if err != nil {
			t.Fatal(err)
		}
		if again.img != second.img {
			if err := again.wait(t.Context()); err != nil {
				t.Error(err)
			}
			return
		}
		again.release()
		runtime.Gosched()
	}
}
