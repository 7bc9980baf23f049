package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
)

const volumeFilePath = "/v1/volumes/data/files"

const entryJSON = `{"path":"/a","type":"file","size":2,"mode":384,"uid":7,"gid":1000,"accessed_at":"2026-01-02T15:04:05Z","modified_at":"2026-01-02T15:04:05Z","changed_at":"2026-01-02T15:04:05Z"}`

// volumeEntryAt is an entry of the volume "data", in which "/none" does not exist.
func (s *stub) volumeEntryAt(c service.Caller, volume, path string, a wrenn.VolumeAttributes) (wrenn.VolumeEntry, error) {
	if err := s.findVolume(c, volume); err != nil {
		return wrenn.VolumeEntry{}, err
	}
	if path == "/none" {
		return wrenn.VolumeEntry{}, wrenn.Errorf(wrenn.NotFound, "there is no %s", path)
	}
	e := wrenn.VolumeEntry{Path: path, Type: wrenn.RegularFile, Size: 2, Mode: 0o600, UID: 7, GID: 1000, AccessedAt: testTime, ModifiedAt: testTime, ChangedAt: testTime}
	for to, from := range map[*uint32]*uint32{&e.Mode: a.Mode, &e.UID: a.UID, &e.GID: a.GID} {
		if from != nil {
			*to = *from
		}
	}
	return e, nil
}

func (s *stub) StatVolumeFile(_ context.Context, c service.Caller, volume, path string) (wrenn.VolumeEntry, error) {
	return s.volumeEntryAt(c, volume, path, wrenn.VolumeAttributes{})
}

func (s *stub) ListVolumeFiles(_ context.Context, c service.Caller, volume, path string, levels int) ([]wrenn.VolumeEntry, error) {
	e, err := s.volumeEntryAt(c, volume, path, wrenn.VolumeAttributes{})
	if path == "/empty" {
		return nil, err
	}
	e.Path, e.Size = "/a", int64(levels)
	return []wrenn.VolumeEntry{e}, err
}

func (s *stub) MakeVolumeDirectory(_ context.Context, c service.Caller, volume, path string, a wrenn.VolumeAttributes, parents bool) (wrenn.VolumeEntry, error) {
	if path == "/a" && !parents {
		return wrenn.VolumeEntry{}, wrenn.Errorf(wrenn.AlreadyExists, "/a exists")
	}
	return s.volumeEntryAt(c, volume, path, a)
}

func (s *stub) RemoveVolumeFile(_ context.Context, c service.Caller, volume, path string) error {
	_, err := s.volumeEntryAt(c, volume, path, wrenn.VolumeAttributes{})
	return err
}

func (s *stub) ReadVolumeFile(_ context.Context, c service.Caller, volume, path string) (io.ReadCloser, error) {
	_, err := s.volumeEntryAt(c, volume, path, wrenn.VolumeAttributes{})
	if path == brokenFile {
		return io.NopCloser(iotest.ErrReader(wrenn.Errorf(wrenn.Invalid, "it is a directory"))), nil
	}
	return io.NopCloser(strings.NewReader("hi\x00\xff")), err
}

func (s *stub) WriteVolumeFile(_ context.Context, c service.Caller, volume, path string, w wrenn.VolumeWrite, content io.Reader) (wrenn.VolumeEntry, error) {
	e, err := s.volumeEntryAt(c, volume, path, w.VolumeAttributes)
	if err != nil {
		return e, err
	}
	if w.NoReplace && path == "/a" {
		return e, wrenn.Errorf(wrenn.AlreadyExists, "/a exists")
	}
	text, err := io.ReadAll(content)
	if err != nil {
		return e, errors.New("the host hung up") // not why
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = map[string]string{path: string(text)}
	return e, nil
}

// volumeFileFailures are errors of an operation on the files at the path.
func volumeFileFailures(method, path, body, media string) []call {
	to := func(query string) string { return path + "?path=" + query }
	elsewhere := strings.Replace(path, "/data/", "/other/", 1)
	return []call{
		{name: "no path", method: method, path: path, body: body, media: media, status: 400, code: "invalid_request"},
		{name: "empty path", method: method, path: to(""), body: body, media: media, status: 400, code: "invalid_request"},
		{name: "NUL", method: method, path: to("a%00"), body: body, media: media, status: 400, code: "invalid_request"},
		{name: "long path", method: method, path: to(strings.Repeat("a", 5000)), body: body, media: media, status: 400, code: "invalid_request"},
		{name: "missing", method: method, path: to("%2Fnone"), body: body, media: media, status: 404, code: "not_found"},
		{name: "another volume", method: method, path: elsewhere + "?path=a", body: body, media: media, status: 404, code: "not_found"},
		{name: "no key", method: method, path: to("a"), body: body, media: media, key: "-", status: 401, code: "unauthorized"},
		{name: "away", service: &stub{fail: wrenn.Errorf(wrenn.Unavailable, "away")}, method: method, path: to("a"), body: body, media: media, status: 503, code: "unavailable"},
		{name: "fault", service: &stub{fail: errors.New("open /secret")}, method: method, path: to("a"), body: body, media: media, status: 500, code: "internal"},
	}
}

func volumeFileCalls() map[string][]call {
	const one = "?path=%2Fa"
	large := strings.Repeat("x", maxJSON+1)
	wrote := func(want string) func(*testing.T, *stub, *http.Response) {
		return func(t *testing.T, s *stub, _ *http.Response) {
			t.Helper()
			if diff := cmp.Diff(map[string]string{"/a": want}, s.files); diff != "" {
				t.Errorf("files (-want +got):\n%.300s", diff)
			}
		}
	}
	content, directory, list := volumeFilePath+"/content", volumeFilePath+"/directory", volumeFilePath+"/list"
	return map[string][]call{
		"getVolumeFile":    append(volumeFileFailures("GET", volumeFilePath, "", ""), call{name: "ok", method: "GET", path: volumeFilePath + one, status: 200, want: entryJSON}),
		"deleteVolumeFile": append(volumeFileFailures("DELETE", volumeFilePath, "", ""), call{name: "ok", method: "DELETE", path: volumeFilePath + one, status: 204}),
		"listVolumeFiles": append(volumeFileFailures("GET", list, "", ""),
			call{name: "ok", method: "GET", path: list + "?path=%2F", status: 200, want: "[" + strings.Replace(entryJSON, `"size":2`, `"size":1`, 1) + "]"},
			call{name: "deep", method: "GET", path: list + "?path=%2F&depth=9", status: 200, want: "[" + strings.Replace(entryJSON, `"size":2`, `"size":9`, 1) + "]"},
			call{name: "empty", method: "GET", path: list + "?path=%2Fempty", status: 200, want: "[]"},
			call{name: "no depth", method: "GET", path: list + "?path=%2F&depth=0", status: 400, code: "invalid_request"},
			call{name: "too deep", method: "GET", path: list + "?path=%2F&depth=129", status: 400, code: "invalid_request"}),
		"createVolumeDirectory": append(volumeFileFailures("PUT", directory, "", ""),
			call{name: "ok", method: "PUT", path: directory + one + "&parents=true&uid=7&mode=384", status: 200, want: entryJSON},
			call{name: "exists", method: "PUT", path: directory + one, status: 409, code: "conflict"},
			call{name: "wrong mode", method: "PUT", path: directory + one + "&mode=4096", status: 400, code: "invalid_request"}),
		"readVolumeFile": append(volumeFileFailures("GET", content, "", ""),
			call{name: "ok", method: "GET", path: content + one, status: 200, want: "hi\x00\xff"},
			call{name: "directory", method: "GET", path: content + "?path=" + brokenFile, status: 400, code: "invalid_request"}),
		"writeVolumeFile": append(volumeFileFailures("PUT", content, "hi", mediaFile),
			call{name: "ok", method: "PUT", path: content + one + "&uid=7&mode=384", body: "hi", media: mediaFile, status: 200, want: entryJSON, check: wrote("hi")}, //nolint:bodyclose // run closes it
			call{name: "large", method: "PUT", path: content + one, body: large, media: mediaFile, status: 200, check: wrote(large)},                                 //nolint:bodyclose // run closes it
			call{name: "exists", method: "PUT", path: content + one + "&replace=false", body: "hi", media: mediaFile, status: 409, code: "conflict"},
			call{name: "JSON", method: "PUT", path: content + one, body: "{}", status: 415, code: "unsupported_media_type"}),
	}
}

// TestVolumeUploadThatBreaks is the client's error.
func TestVolumeUploadThatBreaks(t *testing.T) {
	server := serve(t, &stub{}, nil)
	conn, err := net.Dial("tcp", server.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "PUT "+volumeFilePath+"/content?path=a HTTP/1.1\r\nHost: x\r\nX-API-Key: "+testKey+
		"\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncut\r\nbroken\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if answer.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "the body is broken") {
		t.Errorf("a broken body: %s %s %v", answer.Status, text, err)
	}
}
