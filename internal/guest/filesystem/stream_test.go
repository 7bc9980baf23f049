package filesystem

import (
	"io"
	"net/http"
	"os"
	"runtime"
	"testing"
	"testing/iotest"
)

// zeros is n bytes of nothing, without memory for them.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// peak runs work and returns the most heap that was in use while it did, in
// bytes above what there was before. It looks each time that sample is called.
func peak(work func(sample func())) int64 {
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most uint64
	work(func() {
		runtime.ReadMemStats(&now)
		most = max(most, now.HeapInuse)
	})
	return int64(most) - int64(before.HeapInuse)
}

// sampled calls sample on every 16th MiB that is read.
func sampled(r io.Reader, sample func()) io.Reader {
	var read, seen int64
	return readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		if read += int64(n); read-seen > 16<<20 {
			seen = read
			sample()
		}
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Both ends are in this process: a large file takes no more memory than a
// small one, on the way in and on the way out.
func TestLargeFilesAreStreamed(t *testing.T) {
	const size, flat = 256 << 20, 16 << 20
	h := newHouse(t)
	for _, coding := range []string{"", "gzip"} {
		grown := peak(func(sample func()) {
			req := request(t, http.MethodPost, h.filesURL("large"), sampled(zeros(size), sample), "Content-Type", "application/octet-stream")
			answered(t, h.do(t, req))
			sample()
		})
		if info, err := os.Stat(h.in("large")); err != nil || info.Size() != size || grown > flat {
			t.Errorf("upload: %v, %v, heap grew by %d bytes", info, err, grown)
		}
		var n int64
		grown = peak(func(sample func()) {
			resp, err := h.http.Do(request(t, http.MethodGet, h.filesURL("large"), nil, "Accept-Encoding", coding))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if n, err = io.Copy(io.Discard, sampled(resp.Body, sample)); err != nil {
				t.Fatal(err)
			}
			sample()
		})
		if coding == "" && n != size || grown > flat {
			t.Errorf("download %s: %d bytes, heap grew by %d bytes", coding, n, grown)
		}
	}
}

func TestCopyAll(t *testing.T) {
	for name, source := range map[string]io.Reader{
		"byte by byte":      iotest.OneByteReader(zeros(1000)),
		"all with the end":  iotest.DataErrReader(zeros(1000)),
		"a multiple of 100": zeros(1000),
	} {
		var writes []int
		err := copyAll(writerFunc(func(p []byte) (int, error) { writes = append(writes, len(p)); return len(p), nil }), source, make([]byte, 300))
		sum := 0
		for _, n := range writes {
			sum += n
		}
		if err != nil || sum != 1000 || len(writes) > 5 {
			t.Errorf("%s: writes of %v bytes, %v", name, writes, err)
		}
	}
	if err := copyAll(io.Discard, iotest.ErrReader(io.ErrUnexpectedEOF), make([]byte, 10)); err == nil {
		t.Error("a cut source passed for a whole one")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
