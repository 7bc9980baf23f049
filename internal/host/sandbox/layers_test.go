package sandbox

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wrenn.dev/internal/testkit"
)

// maxUpward is how many pairs of files may have a reference from a lower layer to
// a higher one. It only shrinks.
const maxUpward = 11

// TestFilesKeepTheLayers holds the order of files in the package's doc comment
// true: files refer to files before them, with few exceptions.
func TestFilesKeepTheLayers(t *testing.T) {
	fset := token.NewFileSet()
	files := parseFiles(t, fset)
	order := layerOrder(t, files)
	all := references(fset, files)
	if len(all) < len(files) {
		t.Fatalf("only %d references were found", len(all))
	}
	var upward []string
	for pair := range all {
		if slices.Index(order, pair[1]) > slices.Index(order, pair[0]) {
			upward = append(upward, pair[0]+" -> "+pair[1])
		}
	}
	slices.Sort(upward)
	t.Logf("%d of %d references run upwards:\n%s", len(upward), len(all), strings.Join(upward, "\n"))
	if len(upward) > maxUpward {
		t.Errorf("%d references run upwards, more than %d", len(upward), maxUpward)
	}
}

// parseFiles parses the package without its tests, by the names of the files.
func parseFiles(t *testing.T, fset *token.FileSet) map[string]*ast.File {
	t.Helper()
	entries, err := os.ReadDir(".")
	testkit.Must(t, err)
	files := map[string]*ast.File{}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".go") && !strings.HasSuffix(e.Name(), "_test.go") {
			file, err := parser.ParseFile(fset, e.Name(), nil, parser.ParseComments)
			testkit.Must(t, err)
			files[strings.TrimSuffix(e.Name(), ".go")] = file
		}
	}
	return files
}

// layerOrder is the order of the files that the package's doc comment states. It
// names each file once.
func layerOrder(t *testing.T, files map[string]*ast.File) (order []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^\t(\w[\w, ]*): `).FindAllStringSubmatch(files["manager"].Doc.Text(), -1) {
		order = append(order, strings.Split(m[1], ", ")...)
	}
	sorted := slices.Sorted(slices.Values(order))
	var want []string
	for name := range files {
		want = append(want, name)
	}
	slices.Sort(want)
	if !slices.Equal(sorted, want) {
		t.Fatalf("the doc comment orders %q, and the files are %q", sorted, want)
	}
	return order
}

// opaque imports every package as an empty one: what matters here is what the
// files of this package use of each other.
type opaque struct{}

func (opaque) Import(name string) (*types.Package, error) {
	p := types.NewPackage(name, path.Base(name))
	p.MarkComplete()
	return p, nil
}

// references returns the pairs of files of which the first uses something that
// the second declares.
func references(fset *token.FileSet, files map[string]*ast.File) map[[2]string]bool {
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: opaque{}, Error: func(error) {}}
	pkg, _ := conf.Check("sandbox", fset, slices.Collect(maps.Values(files)), info) // with errors: the imports are empty
	file := func(pos token.Pos) string { return strings.TrimSuffix(fset.Position(pos).Filename, ".go") }
	found := map[[2]string]bool{}
	for id, obj := range info.Uses {
		if obj.Pkg() == pkg && file(obj.Pos()) != file(id.Pos()) {
			found[[2]string{file(id.Pos()), file(obj.Pos())}] = true
		}
	}
	return found
}
