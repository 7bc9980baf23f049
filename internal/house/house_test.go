package house

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the module's directory, seen from where the tests run.
const root = "../.."

// unconverted lists what does not keep the rules yet, a directory (without
// those below it) or a file outside of Go packages a line. It only shrinks.
const unconverted = "testdata/unconverted.txt"

// TestHouse checks every tracked file against every rule.
func TestHouse(t *testing.T) {
	files := tracked(t)
	complaints := make(map[string][]string) // by room
	complain := func(file, what string) {
		r := room(file)
		complaints[r] = append(complaints[r], file+":"+what)
	}
	checkWords(t, files, complain)
	checkGo(t, files, complain)
	checkSuites(t, files, complain)

	pending := readList(t)
	for _, r := range slices.Sorted(maps.Keys(complaints)) {
		if !slices.Contains(pending, r) {
			t.Errorf("%s:\n\t%s", r, strings.Join(complaints[r], "\n\t"))
		}
	}
	for _, r := range pending {
		if len(complaints[r]) == 0 {
			t.Errorf("%s keeps the rules now: remove it from internal/house/%s", r, unconverted)
		}
	}
}

// room is the unit in which the tree is converted: the directory of a Go file
// and of what lies beside it, else the file.
func room(file string) string {
	if strings.HasPrefix(file, "docs/") || !strings.Contains(file, "/") && !strings.HasSuffix(file, ".go") {
		return file
	}
	return path.Dir(file)
}

// checkWords looks for banned phrases.
func checkWords(t *testing.T, files []string, complain func(file, what string)) {
	t.Helper()
	kinds := []string{".go", ".md", ".sh", ".sql", ".txt", ".proto", ".yaml", ".yml", ".toml", ".service", ".conf"}
	for _, f := range files {
		named := slices.Contains([]string{"Makefile", ".ci/run"}, f)
		foreign := path.Base(path.Dir(f)) == "swagger" // Swagger UI, with its license
		if !named && !slices.Contains(kinds, path.Ext(f)) || foreign || path.Dir(f) == "internal/house" {
			continue
		}
		text := read(t, f)
		if generated(text) {
			continue // its source is checked
		}
		for _, p := range phrases(text) {
			complain(f, p)
		}
	}
}

// generated reports whether a file says that a program wrote it.
func generated(text string) bool {
	return regexp.MustCompile(`(?m)^(//|--) Code generated .* DO NOT EDIT\.$`).MatchString(text)
}

// errorKey is an error in a log line under another key than err.
var errorKey = regexp.MustCompile(`slog\.\w+\("(error|e|cause)",`)

// checkGo checks every Go file: each package has a doc comment, ErrX is a
// variable and never a function that makes an error, and errors are logged as err.
func checkGo(t *testing.T, files []string, complain func(file, what string)) {
	t.Helper()
	errName := regexp.MustCompile(`^[eE]rr[A-Z]`)
	documented := make(map[string]bool)
	for _, f := range files {
		if path.Ext(f) != ".go" {
			continue
		}
		text := read(t, f)
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, f, text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		dir := path.Dir(f)
		documented[dir] = documented[dir] || file.Doc != nil || generated(text)
		for _, m := range errorKey.FindAllStringIndex(text, -1) {
			complain(f, fmt.Sprintf("%d: the key of an error in a log line is err", 1+strings.Count(text[:m[0]], "\n")))
		}
		for _, d := range file.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && errName.MatchString(d.Name.Name) {
				complain(f, fmt.Sprintf("%d: %s is a function: ErrX is the name of a variable", set.Position(d.Pos()).Line, d.Name.Name))
			}
		}
	}
	for dir, ok := range documented {
		if !ok {
			complain(path.Join(dir, "doc.go"), "1: the package has no doc comment")
		}
	}
}

// tracked returns the files under version control.
func tracked(t *testing.T) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "-C", root, "ls-files", "-z").Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("git ls-files: %v: %s", err, failed.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	files := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	return slices.DeleteFunc(files, func(f string) bool { // one that was removed, but not from the index
		_, err := os.Lstat(filepath.Join(root, f))
		return err != nil
	})
}

func readList(t *testing.T) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(read(t, "internal/house/"+unconverted)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	return list
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPhrases(t *testing.T) {
	for text, want := range map[string]string{
		"// Whoever holds it":                   `1: "Whoever"`,
		"as many as it may":                     `1: "as many as it may"`,
		"\n// a group of\n\t// its own, and":    `2: "of its own"`,
		"# it says\n# whether":                  `1: "says whether"`,
		"func removeLitter() {":                 `1: "Litter"`,
		"func NamesANewOne() {}, HTTPLitter":    `1: "Litter"`,
		"SET some_litter = 1":                   `1: "litter"`,
		"one that is there.":                    `1: "is there"`,
		"unkeepAll(), unkeep":                   `1: "unkeep"`,
		"Is there a way? lesson glitter buried": `1: "buried"`,
		`user "nobody", literal, there is one`:  "",
		"their own, its own, whole":             "",
	} {
		got := strings.Join(phrases(text), "; ")
		if !strings.HasPrefix(got, want) || (got == "") != (want == "") {
			t.Errorf("phrases(%q) = %q, want %q", text, got, want)
		}
	}
}
