package release_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/vm/firecracker/release"
)

// archive returns a publisher's archive with these files.
func archive(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	all := tar.NewWriter(zipped)
	for name, text := range files {
		testkit.Must(t, all.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(text)), Mode: 0o755}))
		_, err := all.Write([]byte(text))
		testkit.Must(t, err)
	}
	testkit.Must(t, all.Close())
	testkit.Must(t, zipped.Close())
	return out.Bytes()
}

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

const below = "release-" + release.Version + "-x86_64/"

// serve answers with data, and counts the requests.
func serve(t *testing.T, data []byte) (fetcher release.Fetcher, requests *int) {
	t.Helper()
	t.Setenv("PATH", t.TempDir()) // without pip
	requests = new(int)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		*requests++
		_, _ = w.Write(data)
	}))
	t.Cleanup(server.Close)
	return release.Fetcher{URL: server.URL, Sums: map[string]string{"firecracker": sum("fc"), "jailer": sum("j")}}, requests
}

func TestFetch(t *testing.T) {
	f, requests := serve(t, archive(t, map[string]string{
		below + "firecracker-" + release.Version + "-x86_64": "fc", below + "jailer-" + release.Version + "-x86_64": "j",
		below + "jailer-" + release.Version + "-x86_64.debug": "no", "../../firecracker-evil": "no",
	}))
	dir := filepath.Join(t.TempDir(), "state", "firecracker")
	for range 2 { // the second time nothing is fetched
		firecracker, jailer, err := f.Fetch(t.Context(), dir)
		testkit.Must(t, err)
		for path, want := range map[string]string{firecracker: "fc", jailer: "j"} {
			text, err := os.ReadFile(path)
			testkit.Must(t, err)
			info, err := os.Stat(path)
			if string(text) != want || err != nil || info.Mode().Perm()&0o111 == 0 {
				t.Errorf("%s has %q, %v, %v", path, text, info.Mode(), err)
			}
		}
	}
	if *requests != 1 {
		t.Errorf("%d requests, want 1", *requests)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "*"))
	if hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*")); err != nil || len(left) != 1 || len(hidden) != 0 {
		t.Errorf("left beside it: %v %v, %v", left, hidden, err)
	}
}

// What is not the release is not kept, and the error says what to do.
func TestFetchRefuses(t *testing.T) {
	whole := archive(t, map[string]string{
		below + "firecracker-" + release.Version + "-x86_64": "fc", below + "jailer-" + release.Version + "-x86_64": "other",
	})
	for name, data := range map[string][]byte{
		"another program": whole, "cut": whole[:len(whole)/2], "not an archive": []byte("<html>"),
		"incomplete": archive(t, map[string]string{below + "firecracker-" + release.Version + "-x86_64": "fc"}),
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := serve(t, data)
			dir := filepath.Join(t.TempDir(), "firecracker")
			_, _, err := f.Fetch(t.Context(), dir)
			if wrenn.CodeOf(err) != wrenn.Unavailable || !strings.Contains(err.Error(), "put firecracker and jailer of that release into "+dir) {
				t.Errorf("Fetch() = %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

// Programs that were put there by hand are checked, and never replaced.
func TestFindChecksSums(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := release.Find(dir); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("an empty directory: %v", err)
	}
	for _, name := range []string{"firecracker", "jailer"} {
		testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o755))
	}
	if _, _, err := release.Find(dir); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("other programs: %v", err)
	}
	f, requests := serve(t, nil)
	if _, _, err := f.Fetch(t.Context(), dir); wrenn.CodeOf(err) != wrenn.FailedPrecondition || *requests != 0 {
		t.Errorf("Fetch() = %v, %d requests", err, *requests)
	}
}
