package house

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// picture is the page that shows what the tree consists of.
const picture = "docs/architecture.md"

// pictured are the directories whose subdirectories the picture names.
var pictured = []string{"internal", "internal/controlplane", "internal/host"}

// TestPicture holds docs/architecture.md and the tree equal: it names every
// package, and what it names exists.
func TestPicture(t *testing.T) {
	text := read(t, picture)
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z0-9]+)`|(internal/[a-z0-9/]*[a-z0-9])").FindAllStringSubmatch(text, -1) {
		named[m[1]], named[m[2]] = true, true
	}
	for _, dir := range pictured {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			full := path.Join(dir, e.Name())
			short := dir == "internal" && named[e.Name()]
			if e.IsDir() && e.Name() != "testdata" && !named[full] && !short {
				t.Errorf("%s does not name %s: say what it is for", picture, full)
			}
		}
	}
	for name := range named {
		if _, err := os.Stat(filepath.Join(root, name)); strings.HasPrefix(name, "internal/") && err != nil {
			t.Errorf("%s names %s, which does not exist", picture, name)
		}
	}
}
