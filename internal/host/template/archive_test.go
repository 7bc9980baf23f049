package template

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// archived returns an archive with the entries: a/ is a directory, a=x a file with
// a content, a->x a symbolic link, a=>x a hard link.
func archived(tb testing.TB, entries ...string) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h, content := tar.Header{Name: e, Mode: 0o640, Uid: 77}, ""
		switch {
		case strings.HasSuffix(e, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o750
		case strings.Contains(e, "->"):
			h.Typeflag = tar.TypeSymlink
			h.Name, h.Linkname, _ = strings.Cut(e, "->")
		case strings.Contains(e, "=>"):
			h.Typeflag = tar.TypeLink
			h.Name, h.Linkname, _ = strings.Cut(e, "=>")
		case strings.HasPrefix(e, "|"):
			h.Typeflag = tar.TypeFifo
		default:
			h.Typeflag = tar.TypeReg
			h.Name, content, _ = strings.Cut(e, "=")
			h.Size = int64(len(content))
		}
		testkit.Must(tb, w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		testkit.Must(tb, err)
	}
	testkit.Must(tb, w.Close())
	return buf.Bytes()
}

// contentOf lists an archive that was placed.
func contentOf(tb testing.TB, archive []byte) (out []string) {
	tb.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		testkit.Must(tb, err)
		line := fmt.Sprintf("%s %o %d:%d", h.Name, h.Mode, h.Uid, h.Gid)
		if h.Linkname != "" {
			line += " > " + h.Linkname
		}
		out = append(out, line)
	}
}

func TestPlace(t *testing.T) {
	for name, tt := range map[string]struct {
		at      placement
		entries []string
		want    []string
	}{
		"a file to a name":         {placement{source: "a.txt", dest: "/opt/b.txt", mode: -1}, []string{"a.txt=x"}, []string{"opt/b.txt 640 0:0"}},
		"a file to a directory":    {placement{source: "src/a.txt", dest: "/opt", destDir: true, uid: 5, gid: 6, mode: -1}, []string{"src/a.txt=x"}, []string{"opt/a.txt 640 5:6"}},
		"a directory's content":    {placement{source: "src", dest: "/app", destDir: true, mode: -1}, []string{"src/", "src/a=x", "src/lib/", "src/lib/b=x"}, []string{"app/a 640 0:0", "app/lib/ 750 0:0", "app/lib/b 640 0:0"}},
		"a directory to a new one": {placement{source: "src/", dest: "/app", uid: 5, mode: -1}, []string{"src/", "src/a=x"}, []string{"app/ 750 5:0", "app/a 640 5:0"}},
		"the context":              {placement{source: ".", dest: "/app", destDir: true, mode: 0o755}, []string{"./", "a=x", "d/", "d/b=x"}, []string{"app/a 755 0:0", "app/d/ 755 0:0", "app/d/b 755 0:0"}},
		"into the root":            {placement{source: ".", dest: "/", destDir: true, mode: -1}, []string{"a=x"}, []string{"a 640 0:0"}},
		"a pattern":                {placement{source: "s*/*.py", dest: "/app", destDir: true, mode: -1}, []string{"src/a.py=x", "src/b.py=x"}, []string{"app/a.py 640 0:0", "app/b.py 640 0:0"}},
		"a pattern of directories": {placement{source: "*", dest: "/app", destDir: true, mode: -1}, []string{"d/", "d/a=x", "e/", "e/b=x", "f=x"}, []string{"app/a 640 0:0", "app/b 640 0:0", "app/f 640 0:0"}},
		"a deep pattern":           {placement{source: "**/*.py", dest: "/app", destDir: true, mode: -1}, []string{"a.py=x", "d/e/b.py=x"}, []string{"app/a.py 640 0:0", "app/b.py 640 0:0"}},
		"a pattern of others":      {placement{source: "{a,b}.py", dest: "/app", destDir: true, mode: -1}, []string{"a.py=x", "b.py=x"}, []string{"app/a.py 640 0:0", "app/b.py 640 0:0"}},
		"links":                    {placement{source: "d", dest: "/app", destDir: true, mode: 0o600}, []string{"d/", "d/a=x", "d/s->/etc/passwd", "d/h=>d/a"}, []string{"app/a 600 0:0", "app/s 777 0:0 > /etc/passwd", "app/h 600 0:0 > app/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			plain := archived(t, tt.entries...)
			var zipped, out bytes.Buffer
			w := gzip.NewWriter(&zipped)
			_, err := w.Write(plain)
			testkit.Must(t, errors.Join(err, w.Close()))
			for _, in := range [][]byte{plain, zipped.Bytes()} {
				out.Reset()
				testkit.Must(t, tt.at.place(bytes.NewReader(in), &out))
				if diff := cmp.Diff(tt.want, contentOf(t, out.Bytes())); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
		})
	}
}

func TestPlaceRefuses(t *testing.T) {
	whole := archived(t, "a="+strings.Repeat("x", 2000))
	for name, tt := range map[string]struct {
		source  string
		archive []byte
		text    string
	}{
		"a name that leaves":          {".", archived(t, "a/../../etc/passwd=x"), "inside of the context"},
		"an absolute name":            {".", archived(t, "/etc/passwd=x"), "inside of the context"},
		"a hard link that leaves":     {".", archived(t, "a=>../../etc/passwd"), "inside of the context"},
		"a special file":              {".", archived(t, "|pipe"), "not a file"},
		"several files to one":        {"*", archived(t, "a=x", "b=x"), "end the destination with a /"},
		"nothing":                     {"a", nil, "no files"},
		"half an archive":             {"a", whole[:1000], "whole tar"},
		"no archive":                  {"a", bytes.Repeat([]byte("no archive"), 100), "whole tar"},
		"no gzip":                     {"a", []byte{0x1f, 0x8b, 1, 2, 3}, "whole tar"},
		"a name that is not text":     {".", archived(t, "a\xff=x"), "inside of the context"},
		"more directories than usual": {".", archived(t, strings.Repeat("d/", 300)+"a=x"), "inside of the context"},
	} {
		t.Run(name, func(t *testing.T) {
			err := placement{source: tt.source, dest: "/app", mode: -1}.place(bytes.NewReader(tt.archive), io.Discard)
			testkit.WantCode(t, err, wrenn.Invalid, tt.text)
		})
	}
}

// TestPlaceSparse: the holes of a sparse file count, although the archive is small.
func TestPlaceSparse(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf) // does not write sparse files, and so not the names of their records
	testkit.Must(t, w.WriteHeader(&tar.Header{Name: "a", Mode: 0o640, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"GNU_sparse.major": "0", "GNU_sparse.minor": "1", "GNU_sparse.numblocks": "1", "GNU_sparse.map": "2097152,0", "GNU_sparse.size": "2097152",
	}}))
	testkit.Must(t, w.Close())
	archive := bytes.ReplaceAll(buf.Bytes(), []byte("GNU_sparse"), []byte("GNU.sparse"))
	at := placement{source: "a", dest: "/a", mode: -1}
	testkit.Must(t, at.place(bytes.NewReader(archive), io.Discard))
	at.most = 1 << 20
	testkit.WantCode(t, at.place(bytes.NewReader(archive), io.Discard), wrenn.Invalid, "more than 1 MiB")
}

// FuzzPlace: whatever is uploaded, what is unpacked stays below the destination.
func FuzzPlace(f *testing.F) {
	f.Add(archived(f, "a/", "a/b=x", "a/s->/etc", "a/h=>a/b"), "a")
	f.Add(archived(f, "x.py=x"), "**/*.py")
	f.Fuzz(func(t *testing.T, archive []byte, source string) {
		var out bytes.Buffer
		if len(source) > maxNameBytes { // as in a step
			return
		}
		if (placement{source: source, dest: "/opt/app", destDir: true, mode: -1, most: 1 << 20}).place(bytes.NewReader(archive), &out) != nil {
			return
		}
		for r := tar.NewReader(&out); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(h.Name, "opt/app") || strings.Contains("/"+h.Name+"/", "/../") {
				t.Errorf("%q is unpacked", h.Name)
			}
			if h.Typeflag == tar.TypeLink && !strings.HasPrefix(h.Linkname, "opt/app") {
				t.Errorf("%q links to %q", h.Name, h.Linkname)
			}
		}
	})
}

func TestExpand(t *testing.T) {
	s := state{Env: map[string]string{"A": "a b", "EMPTY": ""}, Args: map[string]string{"ARG": "arg", "A": "hidden"}, Workdir: "/work"}
	for text, want := range map[string]string{
		"plain": "plain", "$A": "a b", "${A}x": "a bx", "$NONE.": ".", "$ARG": "arg", `\$A`: "$A", `\\$A`: `\a b`, `\n`: `\n`, "100$": "100$", "$1": "$1",
		"${NONE:-x}": "x", "${EMPTY:-x}": "x", "${EMPTY-x}": "", "${A:+x}": "x", "${NONE:+x}": "", "${NONE:-${A}}": "a b", "${NONE:-\\}}": "\\}",
	} {
		got, err := s.expand(text)
		if err != nil || got != want {
			t.Errorf("expand(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"${A", "${}", "${A%x}", "${1}", strings.Repeat("${A:-", 20) + strings.Repeat("}", 20)} {
		if got, err := s.expand(text); err == nil && strings.Count(text, "{") < 5 {
			t.Errorf("expand(%q) = %q", text, got)
		}
	}
	for text, want := range map[string]string{"/x/": "/x", "x": "/work/x", "..": "/", "../../..": "/", "$A": "/work/a b"} {
		if got, err := s.path(text); err != nil || got != want {
			t.Errorf("path(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
	if _, err := (state{Env: map[string]string{"A": strings.Repeat("x", 1<<10)}}).expand(strings.Repeat("$A", 1000)); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("what becomes too long: %v", err)
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$A ${A:-${B}} \\$ ${", "x")
	f.Fuzz(func(_ *testing.T, text, value string) {
		_, _ = state{Env: map[string]string{"A": value}}.expand(text) // returns
	})
}
