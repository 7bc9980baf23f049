package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"wrenn"
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
