package filesystem

import (
	"compress/gzip"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDownload(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	write(t, h.in("hello.txt"), "hello world")
	symlink(t, "hello.txt", h.in("link"))
	write(t, h.in("empty"), "")
	for _, tc := range []struct {
		name, path string
		headers    []string
		status     int
		want       string
		wantHeader map[string]string
	}{
		{"whole", "hello.txt", nil, 200, "hello world", map[string]string{
			"Content-Disposition": `inline; filename=hello.txt`, "Content-Length": "11", "Vary": "Accept-Encoding", "Content-Type": "text/plain; charset=utf-8",
		}},
		{"by a link", "~/link", nil, 200, "hello world", nil},
		{"a range", "hello.txt", []string{"Range", "bytes=6-"}, 206, "world", map[string]string{"Content-Range": "bytes 6-10/11"}},
		{"a range is of the file itself", "hello.txt", []string{"Range", "bytes=6-", "Accept-Encoding", "gzip"}, 206, "world", map[string]string{"Content-Encoding": ""}},
		{"no such range", "hello.txt", []string{"Range", "bytes=20-"}, 416, "invalid range: failed to overlap\n", nil},
		{"empty", "empty", nil, 200, "", nil},
		{"codings that are not known", "hello.txt", []string{"Accept-Encoding", "br, zstd"}, 200, "hello world", map[string]string{"Content-Encoding": ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp := h.get(t, tc.path, tc.headers...)
			wantStatus(t, resp, tc.status)
			if resp.body != tc.want {
				t.Errorf("body = %q, want %q", resp.body, tc.want)
			}
			for name, want := range tc.wantHeader {
				if got := resp.header.Get(name); got != want {
					t.Errorf("%s = %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestDownloadGzip(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	content := strings.Repeat("the same again and again\n", 10_000)
	write(t, h.in("log"), content)
	write(t, h.in("empty"), "")
	for path, want := range map[string]string{"log": content, "empty": ""} {
		resp := h.get(t, path, "Accept-Encoding", "gzip, deflate")
		wantStatus(t, resp, 200)
		if got := resp.header.Get("Content-Encoding"); got != "gzip" {
			t.Fatalf("Content-Encoding = %q", got)
		}
		z, err := gzip.NewReader(strings.NewReader(resp.body))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v; want %d", path, len(got), err, len(want))
		}
	}
}

func TestDownloadRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	write(t, h.in("file"), "x")
	if err := syscall.Mkfifo(h.in("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", h.in("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for path, want := range map[string]struct {
		status  int
		message string
	}{
		"nothing":   {404, "path '" + h.in("nothing") + "' does not exist"},
		"file/x":    {404, "does not exist"},
		"":          {400, "is a directory"},
		"/tmp":      {400, "path '/tmp' is a directory"},
		"pipe":      {400, "pipe"},
		"socket":    {400, "socket"},
		"/dev/zero": {400, "device"},
		"a\x00b":    {400, "zero byte"},
	} {
		wantError(t, h.get(t, path), want.status, want.message)
	}
	wantError(t, h.get(t, "file", "Accept-Encoding", "identity;q=0, br"), 406, "Accept-Encoding")
	wantError(t, h.get(t, "file", "Authorization", "Basic bm9ib2R5Og=="), 401, "invalid username: 'nobody'")
	wantError(t, h.do(t, request(t, "GET", h.filesURL("file")+"&username=nobody", nil)), 401, "invalid username")
	wantError(t, h.do(t, request(t, "DELETE", h.filesURL("file"), nil)), 405, "GET")
}

// Files of the kernel have no size, or a wrong one.
func TestDownloadComputedFiles(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, path := range []string{"/proc/sys/kernel/random/boot_id", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"} {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Logf("%v: not looked at", err)
			continue
		}
		for _, headers := range [][]string{nil, {"Range", "bytes=0-3"}} {
			resp := h.get(t, path, headers...)
			wantStatus(t, resp, 200)
			if diff := cmp.Diff(string(want), resp.body); diff != "" {
				t.Errorf("%s (-want +got):\n%s", path, diff)
			}
		}
	}
}

// TestDownloadOfWhatCannotBeRead: some files of the kernel can be opened, and fail to be read.
func TestDownloadOfWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	wantError(t, h.do(t, request(t, "GET", h.filesURL("/proc/self/mem"), nil)), 500, "input/output error")
}

func TestDownloadNames(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for name, want := range map[string]string{
		`a "b".txt`: `inline; filename="a \"b\".txt"`,
		"zwölf.txt": `inline; filename*=utf-8''zw%C3%B6lf.txt`,
		"a\r\nb":    `inline; filename*=utf-8''a%0D%0Ab`,
	} {
		write(t, h.in(name), "x")
		resp := h.get(t, name)
		wantStatus(t, resp, 200)
		if got := resp.header.Get("Content-Disposition"); got != want {
			t.Errorf("Content-Disposition = %s, want %s", got, want)
		}
	}
}

// A file that shrinks under a download must not look whole.
func TestDownloadCutShort(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	noise := make([]byte, 32<<20) // compressed too it is more than all buffers between the two ends
	rand.NewChaCha8([32]byte{}).Read(noise)
	http2 := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols)}
	http2.Protocols.SetUnencryptedHTTP2(true)
	defer http2.CloseIdleConnections()
	for _, tc := range []struct {
		name, coding string
		client       *http.Client
	}{
		{"as it is", "identity", h.http},
		{"compressed", "gzip", h.http},
		{"as it is over HTTP/2", "identity", &http.Client{Transport: http2}},
		{"compressed over HTTP/2", "gzip", &http.Client{Transport: http2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			write(t, h.in("file"), string(noise))
			resp, err := tc.client.Do(request(t, "GET", h.filesURL("file"), nil, "Accept-Encoding", tc.coding))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if err := os.Truncate(h.in("file"), 1000); err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			if err == nil {
				t.Errorf("%d of %d bytes and a clean end", n, len(noise))
			}
		})
	}
}

// A client that goes away ends a read that waits for the kernel.
func TestDownloadClientGone(t *testing.T) {
	h := newHouse(t)
	const waits = "/proc/kmsg"
	if f, err := os.OpenFile(waits, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil {
		t.Skipf("a file whose reads wait: %v", err)
	} else {
		f.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	req := request(t, http.MethodGet, h.filesURL(waits), nil).WithContext(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if resp, err := h.http.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	cancel()
	<-done
	wantNoGoroutineIn(t, "serveDownload")
}

func TestChooseEncoding(t *testing.T) {
	for header, want := range map[string]encoding{
		"":                          identity,
		"gzip":                      gzipped,
		"GZIP":                      gzipped,
		"gzip, deflate, br, zstd":   gzipped,
		"gzip;q=0":                  identity,
		"gzip;q=0.5":                gzipped,
		"gzip;q=0.5, identity":      identity,
		"gzip;q=0.5, identity;q=.5": gzipped,
		"*":                         identity,
		"br":                        identity,
		"identity;q=0, *":           gzipped,
		"identity;q=0, gzip;q=0.1":  gzipped,
		"*;q=0, identity":           identity,
		"*;q=0, gzip":               gzipped,
		"gzip;q=abc":                identity,
		"gzip;q=NaN":                identity,
		"identity;q=0":              "",
		"*;q=0":                     "",
		"br, *;q=0":                 "",
		"identity;q=0, gzip;q=0, *": "",
	} {
		if got, err := chooseEncoding(header); got != want || (err != nil) != (want == "") {
			t.Errorf("chooseEncoding(%q) = %q, %v, want %q", header, got, err, want)
		}
	}
}

func FuzzChooseEncoding(f *testing.F) {
	f.Add("gzip;q=0.5, identity;q=0, *;q=1")
	f.Fuzz(func(t *testing.T, header string) {
		got, err := chooseEncoding(header)
		if (err == nil) == (got == "") {
			t.Fatalf("chooseEncoding() = %q, %v", got, err)
		}
		lower := strings.ToLower(header)
		if got == gzipped && !strings.Contains(lower, "gzip") && !strings.Contains(lower, "*") {
			t.Fatal("gzip, which was not asked for")
		}
		if err != nil && !strings.Contains(lower, "=") && header != "" {
			t.Fatal("nothing was refused, but nothing is sent")
		}
	})
}
