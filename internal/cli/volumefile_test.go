package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// volumeServer serves the volume "data" with a directory and a link. What is written,
// made and deleted goes to asked.
func volumeServer(t *testing.T) (s *httptest.Server, files map[string]string, asked *[]string) {
	t.Helper()
	files, asked = map[string]string{"/a.txt": "content"}, &[]string{}
	mux := http.NewServeMux()
	entry := func(path, kind string) map[string]any {
		return map[string]any{"path": path, "type": kind, "size": len(files[path]), "mode": 0o640, "uid": 1000, "gid": 7, "modified_at": time.Now().Add(-90 * time.Second)}
	}
	handle := func(pattern string, do func(path string, w http.ResponseWriter, r *http.Request)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			name := r.URL.Query().Get("path")
			if r.PathValue("volume") != "data" || strings.HasPrefix(name, "/none") {
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, `{"error":{"code":"not_found","message":"there is none"}}`)
				return
			}
			do(path.Join("/", name), w, r)
		})
	}
	const at = "/v1/volumes/{volume}/files"
	handle("GET "+at+"/list", func(path string, w http.ResponseWriter, r *http.Request) {
		link := entry("/li\x1bnk", "symlink")
		link["target"] = "a.txt"
		*asked = append(*asked, "list "+path+" "+r.URL.Query().Get("depth"))
		_ = json.NewEncoder(w).Encode([]any{entry("/a.txt", "file"), entry("/dir", "directory"), link})
	})
	handle("GET "+at+"/content", func(path string, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, files[path]) })
	handle("PUT "+at+"/content", func(path string, w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		files[path] = string(text)
		*asked = append(*asked, "write "+path+" parents="+r.URL.Query().Get("parents"))
		_ = json.NewEncoder(w).Encode(entry(path, "file"))
	})
	handle("PUT "+at+"/directory", func(path string, w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, "make "+path+" parents="+r.URL.Query().Get("parents"))
		_ = json.NewEncoder(w).Encode(entry(path, "directory"))
	})
	handle("DELETE "+at, func(path string, w http.ResponseWriter, _ *http.Request) {
		*asked = append(*asked, "delete "+path)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("DELETE /v1/volumes/{volume}", func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, "delete all of "+r.PathValue("volume"))
		w.WriteHeader(http.StatusNoContent)
	})
	s = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s, files, asked
}

func TestVolumeFiles(t *testing.T) {
	local := filepath.Join(t.TempDir(), "local.txt")
	if err := os.WriteFile(local, []byte("of this machine"), 0o600); err != nil {
		t.Fatal(err)
	}
	const listed = "MODE        OWNER   SIZE  AGE  PATH\n-rw-r-----  1000:7  7     1m   /a.txt\ndrw-r-----  1000:7  0     1m   /dir\nlrw-r-----  1000:7  0     1m   /li�nk -> a.txt\n"
	for name, test := range map[string]struct {
		args  string
		want  result
		asked string // "" is nothing
	}{
		"list":             {"ls data", result{0, listed, ""}, "list / 1"},
		"list below":       {"ls data:dir --depth 3", result{0, listed, ""}, "list /dir 3"},
		"no volume":        {"ls other", result{1, "", "there is none\n"}, ""},
		"cat":              {"cat data:a.txt data:/a.txt", result{0, "contentcontent", ""}, ""},
		"cat what":         {"cat a.txt", result{1, "", "\"a.txt\" is not a file of a volume: write VOLUME:PATH\n"}, ""},
		"cat missing":      {"cat data:/none", result{1, "", "there is none\n"}, ""},
		"make":             {"mkdir data:x data:/y", result{0, "data:x\ndata:/y\n", ""}, "make /x parents=, make /y parents="},
		"make all":         {"mkdir -p data:x/y", result{0, "data:x/y\n", ""}, "make /x/y parents=true"},
		"make what":        {"mkdir data", result{1, "", "data: \"data\" is not a file of a volume: write VOLUME:PATH\n"}, ""},
		"delete":           {"rm data:a.txt", result{0, "data:a.txt\n", ""}, "delete /a.txt"},
		"delete nothing":   {"rm data:", result{1, "", "data:: \"data:\" is not a file of a volume: write VOLUME:PATH\n"}, ""},
		"delete a volume":  {"rm data", result{0, "data\n", ""}, "delete all of data"},
		"upload":           {"cp " + local + " data:b.txt", result{}, "write /b.txt parents=true"},
		"upload into":      {"cp " + local + " data:dir/", result{}, "write /dir/local.txt parents=true"},
		"upload to root":   {"cp " + local + " data:", result{}, "write /local.txt parents=true"},
		"input":            {"cp - data:in.txt", result{}, "write /in.txt parents=true"},
		"input needs name": {"cp - data:", result{1, "", "the file needs a name in the volume: write data:PATH\n"}, ""},
		"directory":        {"cp " + filepath.Dir(local) + " data:x", result{1, "", filepath.Dir(local) + " is a directory: copy one file\n"}, ""},
		"all of a volume":  {"cp data:/ .", result{1, "", "data:/ is a directory: copy one file\n"}, ""},
		"output":           {"cp data:a.txt -", result{0, "content", ""}, ""},
		"in the volume":    {"cp data:a.txt data:c/", result{}, "write /c/a.txt parents=true"},
		"no volume at all": {"cp a ./b:c", result{1, "", "neither a nor ./b:c is in a volume: write VOLUME:PATH\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, _, asked := volumeServer(t)
			got := invoke(t, strings.NewReader("typed"), here(s), append([]string{"--url", s.URL, "volume"}, strings.Fields(test.args)...)...)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("wrenn volume %s (-want +got):\n%s", test.args, diff)
			}
			if diff := cmp.Diff(test.asked, strings.Join(*asked, ", ")); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
		})
	}
}

// TestVolumeFileContents are whole, to and from a volume.
func TestVolumeFileContents(t *testing.T) {
	s, files, _ := volumeServer(t)
	dir := t.TempDir()
	for _, args := range []string{"cp - data:typed", "cp data:a.txt " + dir, "cp data:a.txt " + dir + "/b", "cp " + dir + "/b data:sub/"} {
		if got := invoke(t, strings.NewReader("typed\x00"), here(s), append([]string{"--url", s.URL, "volume"}, strings.Fields(args)...)...); got.code != 0 {
			t.Fatalf("wrenn volume %s: %+v", args, got)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "a.txt"))
	if string(text) != "content" || err != nil {
		t.Errorf("copied %q, %v", text, err)
	}
	want := map[string]string{"/a.txt": "content", "/typed": "typed\x00", "/sub/b": "content"}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Errorf("files of the volume (-want +got):\n%s", diff)
	}
}
