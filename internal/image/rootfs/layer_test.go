package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

func folder(name string) member {
	return member{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

// listing returns the content of a directory: files with their content, links with
// their target.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		switch {
		case d.IsDir():
			got[name] = "/"
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			got[name] = "-> " + target
			return err
		default:
			data, err := os.ReadFile(path)
			got[name] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestLayersHideWhatIsBelow(t *testing.T) {
	lower := []member{
		folder("etc"), file("etc/a", "lower a"), file("etc/b", "lower b"),
		folder("var"), folder("var/lib"), file("var/lib/x", "lower x"), folder("var/lib/deep"), file("var/lib/deep/y", "lower y"),
		link(tar.TypeSymlink, "var/run", "/run"), folder("run"),
	}
	for _, tt := range []struct {
		name  string
		upper []member
		want  map[string]string // beside run and var/run; "" is gone
	}{
		{"nothing", nil, map[string]string{
			"etc": "/", "etc/a": "lower a", "etc/b": "lower b", "var": "/",
			"var/lib": "/", "var/lib/x": "lower x", "var/lib/deep": "/", "var/lib/deep/y": "lower y",
		}},
		{"a file and a directory", []member{file("etc/.wh.a", ""), file("var/lib/.wh.deep", "")}, map[string]string{
			"etc": "/", "etc/b": "lower b", "var": "/", "var/lib": "/", "var/lib/x": "lower x",
		}},
		{"one that is not there", []member{file("etc/.wh.none", ""), file("none/.wh.a", "")}, map[string]string{
			"etc": "/", "etc/a": "lower a", "etc/b": "lower b", "var": "/",
			"var/lib": "/", "var/lib/x": "lower x", "var/lib/deep": "/", "var/lib/deep/y": "lower y",
		}},
		{"a directory that is replaced, mark last", []member{
			folder("var/lib"), folder("var/lib/deep"), file("var/lib/deep/new", "upper"), file("var/lib/.wh..wh..opq", ""),
		}, map[string]string{
			"etc": "/", "etc/a": "lower a", "etc/b": "lower b", "var": "/", "var/lib": "/", "var/lib/deep": "/", "var/lib/deep/new": "upper",
		}},
		{"what the layer itself has stays", []member{file("etc/a", "upper a"), file("etc/.wh.a", ""), file("var/.wh.lib", "")}, map[string]string{
			"etc": "/", "etc/a": "upper a", "etc/b": "lower b", "var": "/",
		}},
		{"another system's notes", []member{file("etc/.wh..wh.aufs", ""), folder("etc/.wh..wh.plnk")}, map[string]string{
			"etc": "/", "etc/a": "lower a", "etc/b": "lower b", "var": "/",
			"var/lib": "/", "var/lib/x": "lower x", "var/lib/deep": "/", "var/lib/deep/y": "lower y",
		}},
		{"below a link of the lower layer", []member{file("var/run/pid", "1"), link(tar.TypeLink, "run/pid2", "var/run/pid"), file("var/.wh.lib", "")}, map[string]string{
			"etc": "/", "etc/a": "lower a", "etc/b": "lower b", "var": "/", "run/pid": "1", "run/pid2": "1",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, dir := openTree(t)
			for _, layer := range [][]member{lower, tt.upper} {
				if _, err := tree.ExtractLayer(t.Context(), bytes.NewReader(archive(t, layer...)), 1<<20); err != nil {
					t.Fatal(err)
				}
			}
			tt.want["run"], tt.want["var/run"] = "/", "-> /run"
			got := listing(t, dir)
			delete(got, "none") // made for a name below it, and empty
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLayerRefuses(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		members []member
		want    wrenn.Code
	}{
		{"a path out", []member{file("../x", "")}, wrenn.Invalid},
		{"a whiteout of what is above", []member{folder("etc"), file("etc/.wh...", "")}, wrenn.Invalid},
		{"a whiteout of nothing", []member{file(".wh.", "")}, wrenn.Invalid},
		{"a hard link out", []member{link(tar.TypeLink, "x", "../../victim")}, wrenn.Invalid},
		{"more than the limit", []member{file("x", strings.Repeat("x", 100<<10))}, wrenn.Exhausted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, _ := openTree(t)
			if _, err := tree.ExtractLayer(t.Context(), bytes.NewReader(archive(t, tt.members...)), 100<<10); wrenn.CodeOf(err) != tt.want {
				t.Errorf("ExtractLayer() = %v, want %s", err, tt.want)
			}
		})
	}
	t.Run("a link leads a whiteout out", func(t *testing.T) {
		tree, _ := openTree(t)
		_, err := tree.ExtractLayer(t.Context(), bytes.NewReader(archive(t,
			link(tar.TypeSymlink, "d", filepath.Dir(outside)), file("d/.wh.victim", ""), file("d/.wh..wh..opq", ""))), 100<<10)
		if _, statErr := os.Stat(outside); statErr != nil {
			t.Errorf("ExtractLayer() = %v, and the file outside is gone", err)
		}
	})
}

func TestExtractLayerCountsWhatItTakes(t *testing.T) {
	noted := member{tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.trusted.note": "not"}}, ""}
	for _, tt := range []struct {
		name    string
		members []member
		blocks  int64
	}{
		{"nothing", nil, 0},
		{"an empty file", []member{file("a", "")}, 1},
		{"a small one", []member{file("a", "x")}, 2},
		{"more than a block", []member{file("a", strings.Repeat("x", block+1))}, 3},
		{"a directory", []member{folder("d")}, 1},
		{"those above a file, once", []member{file("d/e/a", ""), file("d/e/b", "")}, 4},
		{"a link", []member{link(tar.TypeSymlink, "l", "x")}, 2},
		{"a hard link", []member{file("a", ""), link(tar.TypeLink, "l", "a")}, 3},
		{"attributes", []member{noted}, 2},
		{"what is left out", []member{link(tar.TypeFifo, "d/p", "")}, 0},
		{"what hides", []member{file("d/.wh.x", "")}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, _ := openTree(t)
			layer := archive(t, tt.members...)
			size, err := tree.ExtractLayer(t.Context(), bytes.NewReader(layer), tt.blocks*block)
			if err != nil || size != tt.blocks*block {
				t.Errorf("ExtractLayer() = %d, %v, want %d", size, err, tt.blocks*block)
			}
			if tt.blocks == 0 {
				return
			}
			tree, _ = openTree(t)
			if _, err := tree.ExtractLayer(t.Context(), bytes.NewReader(layer), tt.blocks*block-1); wrenn.CodeOf(err) != wrenn.Exhausted {
				t.Errorf("ExtractLayer() with a byte less = %v, want %s", err, wrenn.Exhausted)
			}
		})
	}
}

// TestLayersShareTheirBounds: an image has many layers.
func TestLayersShareTheirBounds(t *testing.T) {
	tree, _ := openTree(t)
	tree.entries = maxEntries - 1
	layer := archive(t, folder("d"))
	if _, err := tree.ExtractLayer(t.Context(), bytes.NewReader(layer), block); err != nil {
		t.Error(err)
	}
	if _, err := tree.ExtractLayer(t.Context(), bytes.NewReader(layer), block); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("ExtractLayer() of the entry after the last = %v, want %s", err, wrenn.Invalid)
	}
}

// TestLayerBoundsItsNames: the paths are kept in memory until the layer ends.
func TestLayerBoundsItsNames(t *testing.T) {
	tree, dir := openTree(t)
	l := layer{extraction: extraction{tree: tree}, made: map[string]bool{}}
	for _, kind := range []byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo} {
		if err := l.entry(&tar.Header{Typeflag: kind, Name: "dev/x"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if left := listing(t, dir); l.skipped != 3 || len(l.made) > 0 || len(left) > 0 {
		t.Errorf("of 3 devices %d are skipped, %v remembered, %v made", l.skipped, l.made, left)
	}
	const long = 4000
	deep := strings.Repeat(strings.Repeat("d", 249)+"/", long/250)
	for i := range maxNames / long {
		if err := l.remember(fmt.Sprintf("%s%d", deep, i)); err != nil {
			if wrenn.CodeOf(err) != wrenn.Invalid {
				t.Errorf("remember() = %v, want %s", err, wrenn.Invalid)
			}
			return
		}
	}
	t.Errorf("%d names are remembered, %d bytes", len(l.made), l.names)
}

// zeros is endless.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0
	}
	return len(p), nil
}

// What follows an archive's end, and what is skipped, counts as well.
func TestUnusedContentIsBounded(t *testing.T) {
	tree, err := OpenTree(t.TempDir())
	testkit.Must(t, err)
	defer tree.Close()
	_, err = tree.ExtractLayer(t.Context(), zeros{}, 1<<20)
	testkit.WantCode(t, err, wrenn.Exhausted)
	if tree.read > maxUnused+2<<20 {
		t.Errorf("%d bytes were read", tree.read)
	}
}

func TestManyAccounts(t *testing.T) {
	d := &database{}
	for id := userID; id < userID+50_000; id++ { // a search for each id would take minutes
		d.lines = append(d.lines, fmt.Sprintf("u:x:%d:", id))
	}
	d.lines = append(d.lines, "odd", "u:x:y", "u::7")
	numbers := d.numbers()
	if len(numbers) != 50_001 || !numbers[userID] || !numbers[7] {
		t.Errorf("%d numbers", len(numbers))
	}
}
