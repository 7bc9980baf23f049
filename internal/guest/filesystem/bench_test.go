package filesystem

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

const benchSize = 64 << 20

// BenchmarkFileCopy is the limit: the same bytes into a file, by write(2).
func BenchmarkFileCopy(b *testing.B) {
	path := filepath.Join(b.TempDir(), "file")
	b.SetBytes(benchSize)
	for b.Loop() {
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		if err := copyAll(f, zeros(benchSize), make([]byte, copyBuffer)); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func BenchmarkUpload(b *testing.B) {
	h := newHouse(b)
	b.SetBytes(benchSize)
	for b.Loop() {
		req := request(b, http.MethodPost, h.filesURL("file"), zeros(benchSize), "Content-Type", "application/octet-stream")
		req.ContentLength = benchSize
		wantStatus(b, h.do(b, req), 200)
	}
}

func BenchmarkUploadSmall(b *testing.B) {
	h := newHouse(b)
	for b.Loop() {
		wantStatus(b, h.do(b, request(b, http.MethodPost, h.filesURL("file"), zeros(1024), "Content-Type", "application/octet-stream")), 200)
	}
}

// BenchmarkSyncedFile is what durability would cost an upload of 1 KiB.
func BenchmarkSyncedFile(b *testing.B) {
	path := filepath.Join(b.TempDir(), "file")
	for b.Loop() {
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(make([]byte, 1024)); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func BenchmarkDownload(b *testing.B) {
	for _, coding := range []string{"identity", "gzip"} {
		b.Run(coding, func(b *testing.B) {
			h := newHouse(b)
			wantStatus(b, h.do(b, request(b, http.MethodPost, h.filesURL("file"), zeros(benchSize), "Content-Type", "application/octet-stream")), 200)
			b.SetBytes(benchSize)
			for b.Loop() {
				resp, err := h.http.Do(request(b, http.MethodGet, h.filesURL("file"), nil, "Accept-Encoding", coding))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
		})
	}
}
