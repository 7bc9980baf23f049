package filesystem

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/envd/filesystem"
)

// form makes a multipart body of parts named "file": name, content, name, …
func form(t *testing.T, pairs ...string) (contentType string, body *bytes.Buffer) {
	t.Helper()
	body = &bytes.Buffer{}
	w := multipart.NewWriter(body)
	for i := 0; i < len(pairs); i += 2 {
		part, err := w.CreateFormFile("file", pairs[i])
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(part, pairs[i+1])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), body
}

func zipped(t *testing.T, content []byte) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(content)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func answered(t *testing.T, resp answer) []written {
	t.Helper()
	wantStatus(t, resp, 200)
	var files []written
	if err := json.Unmarshal([]byte(resp.body), &files); err != nil {
		t.Fatal(err)
	}
	return files
}

func TestUploadRaw(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	got := answered(t, h.put(t, "~/a/b/file", strings.NewReader("content"), "X-Metadata-Origin", "here", "X-Metadata-B", ""))
	want := []written{{Path: h.in("a/b/file"), Name: "file", Type: "file", Metadata: map[string]string{"origin": "here", "b": ""}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	info, err := os.Stat(h.in("a/b/file"))
	if err != nil || info.Mode() != 0o644 || read(t, h.in("a/b/file")) != "content" {
		t.Errorf("file = %v, %v", info, err)
	}
	stat, err := h.rpc.Stat(t.Context(), &pb.StatRequest{Path: "a/b/file"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want[0].Metadata, stat.GetEntry().GetMetadata()); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}

	// The next one keeps the mode, and nothing else.
	if err := os.Chmod(h.in("a/b/file"), 0o751); err != nil {
		t.Fatal(err)
	}
	answered(t, h.put(t, "a/b/file", strings.NewReader("new"), "X-Metadata-C", "c"))
	stat, err = h.rpc.Stat(t.Context(), &pb.StatRequest{Path: "a/b/file"})
	if err != nil {
		t.Fatal(err)
	}
	if e := stat.GetEntry(); e.GetMode() != 0o751 || e.GetSize() != 3 || !cmp.Equal(e.GetMetadata(), map[string]string{"c": "c"}) {
		t.Errorf("entry = %v", e)
	}
	if diff := cmp.Diff([]string{"file"}, names(t, h.in("a/b"))); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestUploadForm(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, tc := range []struct {
		name, path string
		pairs      []string
		want       []string // pairs
	}{
		{"path in the query wins", "x/query", []string{"/elsewhere/name", "1"}, []string{"x/query", "1"}},
		{"the whole file name counts", "", []string{h.in("y/one"), "1", "y/two", "2"}, []string{"y/one", "1", "y/two", "2"}},
		{"odd names", "", []string{`z/a "b"; c=d`, "1", "z/ä ü", "2"}, []string{`z/a "b"; c=d`, "1", "z/ä ü", "2"}},
		{"empty content", "", []string{"y/empty", ""}, []string{"y/empty", ""}},
		{"no file at all", "", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			contentType, body := form(t, tc.pairs...)
			got := answered(t, h.do(t, request(t, "POST", h.filesURL(tc.path), body, "Content-Type", contentType)))
			want := []written{}
			for i := 0; i < len(tc.want); i += 2 {
				path := h.in(tc.want[i])
				want = append(want, written{Path: path, Name: filepath.Base(path), Type: "file"})
				if content := read(t, path); content != tc.want[i+1] {
					t.Errorf("%s = %q, want %q", path, content, tc.want[i+1])
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUploadFormSkipsOtherParts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	body := "preamble\r\n--b\r\nContent-Disposition: form-data; name=\"comment\"\r\n\r\nskipped\r\n" +
		"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nkept\r\n--b--" // no line feed: the end is valid
	answered(t, h.do(t, request(t, "POST", h.filesURL(""), strings.NewReader(body), "Content-Type", "multipart/form-data; boundary=b")))
	if diff := cmp.Diff([]string{"f"}, names(t, h.home)); diff != "" || read(t, h.in("f")) != "kept" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// No prefix of a form may pass for the whole.
func TestUploadFormCutAnywhere(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	contentType, body := form(t, "one", "first content", "two", "second content")
	whole := body.Bytes()
	for n := range len(whole) - 2 { // without the last line feed it is whole
		resp := h.do(t, request(t, "POST", h.filesURL(""), bytes.NewReader(whole[:n]), "Content-Type", contentType))
		if resp.status != 400 {
			t.Fatalf("%d of %d bytes: %d", n, len(whole), resp.status)
		}
	}
	if diff := cmp.Diff([]string{}, names(t, h.home)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestUploadGzip(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	content := strings.Repeat("again and ", 100_000)
	answered(t, h.put(t, "raw", zipped(t, []byte(content)), "Content-Encoding", "gzip"))
	contentType, body := form(t, "part", content)
	answered(t, h.do(t, request(t, "POST", h.filesURL(""), zipped(t, body.Bytes()), "Content-Type", contentType, "Content-Encoding", "gzip")))
	if read(t, h.in("raw")) != content || read(t, h.in("part")) != content {
		t.Error("the content is another one")
	}
	whole := zipped(t, []byte(content)).Bytes()
	for _, tc := range []struct {
		name string
		body []byte
	}{
		{"cut", whole[:len(whole)/2]},
		{"without its checksum", whole[:len(whole)-8]},
		{"with a wrong checksum", append(bytes.Clone(whole[:len(whole)-8]), make([]byte, 8)...)},
		{"not compressed", []byte("plain text")},
		{"empty", nil},
	} {
		wantError(t, h.put(t, "raw", bytes.NewReader(tc.body), "Content-Encoding", "gzip"), 400, "malformed")
	}
	_, part := form(t, "part", "x")
	cut := zipped(t, part.Bytes()).Bytes()
	wantError(t, h.do(t, request(t, "POST", h.filesURL(""), bytes.NewReader(cut[:len(cut)-4]), "Content-Type", contentType, "Content-Encoding", "gzip")), 400, "malformed")
	if read(t, h.in("raw")) != content || read(t, h.in("part")) != content {
		t.Error("a broken upload changed the file")
	}
	if diff := cmp.Diff([]string{"part", "raw"}, names(t, h.home)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestUploadRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	write(t, h.in("file"), "old")
	mkdir(t, h.in("dir"))
	symlink(t, "loop", h.in("loop"))
	duplicate, twice := form(t, "d/same", "1", "d/./same", "2")
	symlink(t, "file", h.in("link"))
	linked, byLink := form(t, "file", "1", "link", "2")
	nameless, noName := form(t, "", "1")
	long := strings.Repeat("k", maxMetadataKey)
	for _, tc := range []struct {
		name, path, contentType string
		body                    io.Reader
		headers                 []string
		status                  int
		message                 string
	}{
		{"no path", "", "application/octet-stream", strings.NewReader("x"), nil, 400, "path"},
		{"no type", "f", "", strings.NewReader("x"), nil, 400, "Content-Type"},
		{"another type", "f", "text/plain", strings.NewReader("x"), nil, 400, "Content-Type"},
		{"no boundary", "f", "multipart/form-data", strings.NewReader("x"), nil, 400, "malformed"},
		{"another coding", "f", "application/octet-stream", strings.NewReader("x"), []string{"Content-Encoding", "br"}, 400, "Content-Encoding"},
		{"a directory", "dir", "application/octet-stream", strings.NewReader("x"), nil, 400, "is a directory"},
		{"a device", "/dev/null", "application/octet-stream", strings.NewReader("x"), nil, 400, "device"},
		{"below a file", "file/x/y", "application/octet-stream", strings.NewReader("x"), nil, 400, "a file is in the way"},
		{"a loop of links", "loop", "application/octet-stream", strings.NewReader("x"), nil, 400, "too many"},
		{"a name too long", "new/" + strings.Repeat("x", 256), "application/octet-stream", strings.NewReader("x"), nil, 400, "too long"},
		{"a user that is not there", "f", "application/octet-stream", strings.NewReader("x"), []string{"Authorization", "Basic bm9ib2R5Og=="}, 401, "invalid username: 'nobody'"},
		{"the same path twice", "", duplicate, twice, nil, 400, "twice"},
		{"the same file twice", "", linked, byLink, nil, 400, "twice"},
		{"no name", "", nameless, noName, nil, 400, "file name"},
		{"a key too long", "f", "application/octet-stream", strings.NewReader("x"), []string{"X-Metadata-" + long + "k", ""}, 400, "key"},
		{"an empty key", "f", "application/octet-stream", strings.NewReader("x"), []string{"X-Metadata-", "v"}, 400, "key"},
		{"too much metadata", "f", "application/octet-stream", strings.NewReader("x"), []string{"X-Metadata-k", strings.Repeat("v", maxMetadata)}, 400, "at most"},
		{"metadata that is no text", "f", "application/octet-stream", strings.NewReader("x"), []string{"X-Metadata-k", "\xff"}, 400, "UTF-8"},
		{"metadata for the kernel", "/proc/sys/kernel/hostname", "application/octet-stream", strings.NewReader("x"), []string{"X-Metadata-k", "v"}, 400, "no metadata"},
		{"too much for the kernel", "/proc/sys/kernel/hostname", "application/octet-stream", repeat("x", maxComputed+1), nil, 400, "no more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			headers := append([]string{"Content-Type", tc.contentType}, tc.headers...)
			wantError(t, h.do(t, request(t, "POST", h.filesURL(tc.path), tc.body, headers...)), tc.status, tc.message)
		})
	}
	if diff := cmp.Diff([]string{"dir", "file", "link", "loop"}, names(t, h.home)); diff != "" || read(t, h.in("file")) != "old" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// As a program that opens the path for writing would do.
func TestUploadThroughLinks(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("dir/sub"))
	write(t, h.in("dir/real"), "old")
	symlink(t, "dir/real", h.in("one"))
	symlink(t, "one", h.in("two"))
	symlink(t, "dir/sub", h.in("sub"))
	symlink(t, "../fresh", h.in("sub/dangling")) // is dir/fresh
	for path, target := range map[string]string{"two": "dir/real", "sub/dangling": "dir/fresh"} {
		got := answered(t, h.put(t, path, strings.NewReader("new")))
		if got[0].Path != h.in(path) || read(t, h.in(target)) != "new" {
			t.Errorf("%s: %v", path, got)
		}
		if info, err := os.Lstat(h.in(path)); err != nil || info.Mode().Type() != os.ModeSymlink {
			t.Errorf("%s is a link no more: %v, %v", path, info, err)
		}
	}
}

// An upload that is cut leaves the old file whole, and nothing else.
func TestUploadCut(t *testing.T) {
	h := newHouse(t)
	write(t, h.in("file"), "old")
	contentType, whole := form(t, "new/file", strings.Repeat("x", 1<<20))
	for name, head := range map[string]string{
		"length":  "POST /files?path=file HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 300_000),
		"chunked": "POST /files?path=file HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n30000\r\n" + strings.Repeat("x", 0x30000) + "\r\n",
		"form": fmt.Sprintf("POST /files HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", contentType, whole.Len()) +
			whole.String()[:whole.Len()-100_000],
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(h.base, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, head); err != nil {
				t.Fatal(err)
			}
			testkit.WaitUntil(t, "the upload began", func() bool { return staged(t, h.home) > 0 })
			conn.Close()
			wantNoGoroutineIn(t, "serveUpload")
			if diff := cmp.Diff([]string{"file"}, names(t, h.home)); diff != "" || read(t, h.in("file")) != "old" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
		})
	}
}

// staged counts the files that are not whole in dir and the directories in it.
func staged(t *testing.T, dir string) int {
	t.Helper()
	n := 0
	for _, pattern := range []string{stagedPrefix + "*", "*/" + stagedPrefix + "*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		n += len(found)
	}
	return n
}

// A client that stops without closing must not hold its file.
func TestUploadStalls(t *testing.T) {
	h := newHouseWith(t, Config{UploadIdle: 200 * time.Millisecond})
	write(t, h.in("file"), "old")
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(h.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /files?path=file HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\nsome"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn) // ends when the server gives the connection up
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") || !strings.Contains(string(answer), "stalled") {
		t.Errorf("answer = %q, %v", answer, err)
	}
	if diff := cmp.Diff([]string{"file"}, names(t, h.home)); diff != "" || read(t, h.in("file")) != "old" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestUploadsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	const size = 300_000
	done := make(chan error)
	for i := range 8 {
		go func() {
			resp, err := h.http.Post(h.filesURL("new/dir/file"), "application/octet-stream", repeat(string(rune('a'+i)), size))
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != 200 {
					err = fmt.Errorf("status %d", resp.StatusCode)
				}
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	got := read(t, h.in("new/dir/file"))
	if len(got) != size || strings.Trim(got, got[:1]) != "" {
		t.Errorf("a mixture of %d bytes", len(got))
	}
	if diff := cmp.Diff([]string{"file"}, names(t, h.in("new/dir"))); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func FuzzPartPath(f *testing.F) {
	f.Add(`form-data; name="file"; filename="/a/b \"c\""`)
	f.Add(`form-data; name=file; filename*=utf-8''%2Fa`)
	f.Fuzz(func(t *testing.T, disposition string) {
		path := partPath(disposition)
		again := mime.FormatMediaType("form-data", map[string]string{"filename": path})
		if path != "" && partPath(again) != path {
			t.Fatalf("%q became %q", path, partPath(again))
		}
	})
}

func FuzzForm(f *testing.F) {
	f.Add([]byte("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nkept\r\n--b--"))
	f.Fuzz(func(t *testing.T, body []byte) {
		err := readForm(bytes.NewReader(body), "b", "", func(path string, content io.Reader) error {
			if path == "" {
				t.Fatal("a file without a path")
			}
			_, err := io.Copy(io.Discard, content)
			return err
		})
		if err == nil && !bytes.Contains(body, []byte("--b--")) {
			t.Fatal("the form has no end, and passed")
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add("X-Metadata-Key", "value")
	f.Fuzz(func(t *testing.T, name, value string) {
		metadata, err := metadataFromHeader(http.Header{name: {value}})
		for key, value := range metadata {
			if err != nil || key == "" || len(key) > maxMetadataKey || len(key)+len(value) > maxMetadata || key != strings.ToLower(key) {
				t.Fatalf("metadata %q = %q, %v", key, value, err)
			}
		}
	})
}
