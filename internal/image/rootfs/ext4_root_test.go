//go:build root

package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// testImage is an image of a tree with merged directories and two files.
func testImage(t *testing.T) string {
	t.Helper()
	tree, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for name, text := range map[string]string{"usr/lib/old/gone": "gone", "usr/lib/file": "no directory"} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/lib", filepath.Join(tree, "lib")); err != nil {
		t.Fatal(err)
	}
	if err := MakeExt4(t.Context(), tree, image, 64<<20); err != nil {
		t.Fatal(err)
	}
	return image
}

func TestInjectMakesDirectories(t *testing.T) {
	image := testImage(t)
	var files []File
	for i := range 200 { // more than fits into a buffer of what debugfs prints
		files = append(files, File{Path: fmt.Sprintf("/lib/modules/6.1/kernel/d%d/file", i), Data: fmt.Append(nil, i), Mode: 0o644})
	}
	for range 2 { // the second time all directories exist
		if err := Inject(t.Context(), image, t.TempDir(), files, "/lib/old/gone"); err != nil {
			t.Fatal(err)
		}
		if err := Check(t.Context(), image); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range files {
		got, err := ReadFile(t.Context(), image, t.TempDir(), fmt.Sprintf("/usr/lib/modules/6.1/kernel/d%d/file", i))
		if err != nil || string(got) != string(f.Data) {
			t.Fatalf("%s = %q, %v", f.Path, got, err)
		}
	}
	if _, err := ReadFile(t.Context(), image, t.TempDir(), "/usr/lib/old/gone"); wrenn.CodeOf(err) != wrenn.NotFound {
		t.Errorf("the file that was to go: %v", err)
	}
}

func TestInjectRefusesAFileForADirectory(t *testing.T) {
	err := Inject(t.Context(), testImage(t), t.TempDir(), []File{{Path: "/lib/file/below", Mode: 0o644}})
	if wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("Inject() below a file = %v", err)
	}
}

// TestToolsAreConfined runs a program as those that work on images are run.
func TestToolsAreConfined(t *testing.T) {
	secret, tree, dir := filepath.Join(t.TempDir(), "secret"), t.TempDir(), t.TempDir()
	testkit.Must(t, os.WriteFile(secret, []byte("of the host"), 0o644))
	private := filepath.Join(tree, "private")
	testkit.Must(t, os.WriteFile(private, []byte("of the image"), 0))
	testkit.Must(t, os.Lchown(private, 12345, 12346))
	j := jailed{dir: dir, reads: []string{tree}, writes: []string{dir}, size: 1 << 20}
	// perl, because only the program itself and libraries are in its root.
	out, err := j.run(t.Context(), "perl", "-e", `
		sub slurp { open(my $f, "<", $_[0]) or return "cannot: $!"; local $/; return <$f>; }
		print "secret ", slurp($ARGV[0]), "\nprivate ", slurp($ARGV[1]), " of ", join(":", (stat $ARGV[1])[4,5]), "\n";
		print "passwd ", slurp("/etc/passwd"), "\nuser $< $>\n";
		open(my $w, ">", "$ARGV[2]/x") and print "tree is writable\n";
		open($w, ">", "made") or print "no work directory: $!\n";
		print "network ", join(",", grep { /:/ } split(/\n/, slurp("/proc/self/net/dev"))), "\n";
	`, secret, private, tree)
	testkit.Must(t, err)
	for _, want := range []string{"secret cannot:", "private of the image of 12345:12346", "passwd cannot:", "user 1999999999 1999999999"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	for _, bad := range []string{"writable", "no work", "eth"} {
		if strings.Contains(out, bad) {
			t.Errorf("%q in %q", bad, out)
		}
	}
	info, err := os.Stat(dir)
	testkit.Must(t, err)
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("the work directory was not given back: it is owned by %d", owner)
	}
}

// TestDeepTree is about an image that corrupted the heap of mke2fs: unpacking it is
// refused, and mke2fs gets such a tree only confined.
func TestDeepTree(t *testing.T) {
	const depth = 1019
	deep := strings.Repeat("d/", depth) + strings.Repeat("f", 2)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	testkit.Must(t, w.WriteHeader(&tar.Header{Name: deep, Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatPAX}))
	testkit.Must(t, w.Close())
	dir := t.TempDir()
	tree, err := OpenTree(dir)
	testkit.Must(t, err)
	defer tree.Close()
	_, err = tree.ExtractLayer(t.Context(), bytes.NewReader(archive.Bytes()), 1<<30)
	testkit.WantCode(t, err, wrenn.Invalid, "more than 1024 bytes or 128 directories")
	_, err = tree.Extract(t.Context(), bytes.NewReader(archive.Bytes()), 1<<30)
	testkit.WantCode(t, err, wrenn.Invalid, "more than 1024 bytes or 128 directories")

	root, err := os.OpenRoot(dir)
	testkit.Must(t, err)
	defer root.Close()
	testkit.Must(t, root.MkdirAll(path.Dir(deep), 0o755))
	testkit.Must(t, root.WriteFile(deep, nil, 0o644))
	image := filepath.Join(t.TempDir(), "image")
	if err := MakeExt4(t.Context(), dir, image, 64<<20); err != nil {
		t.Logf("mke2fs of this host: %v", err) // a newer one may make the file system
	}
}

// Links make paths longer than an entry's name is.
func TestDeepLinks(t *testing.T) {
	step := strings.Repeat("d/", 60)
	for name, entries := range map[string][]*tar.Header{
		"links into links": {
			{Name: step, Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "a", Typeflag: tar.TypeSymlink, Linkname: step},
			{Name: "a/" + step, Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "b", Typeflag: tar.TypeSymlink, Linkname: "a/" + step},
			{Name: "b/" + step + "f", Typeflag: tar.TypeReg, Mode: 0o644},
		},
		"a link to what is missing": {{Name: "etc", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("d/", 600)}},
	} {
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		for _, h := range entries {
			testkit.Must(t, w.WriteHeader(h))
		}
		testkit.Must(t, w.Close())
		tree, err := OpenTree(t.TempDir())
		testkit.Must(t, err)
		defer tree.Close()
		if _, err = tree.ExtractLayer(t.Context(), &archive, 1<<30); err == nil {
			err = tree.WriteFile("/etc/hostname", nil, 0o644)
		}
		if wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
}
