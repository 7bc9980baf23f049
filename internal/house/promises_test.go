package house

import (
	"path"
	"regexp"
	"strings"
	"testing"
)

// promiseTest is a test that docs/security.md names: its package, and the function.
var promiseTest = regexp.MustCompile("`([a-z0-9]+)\\.((?:Test|Fuzz)\\w+)`")

// TestPromises checks that each test which docs/security.md names for a promise exists.
func TestPromises(t *testing.T) {
	exists := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, f := range tracked(t) {
		if !strings.HasSuffix(f, "_test.go") {
			continue
		}
		for _, m := range function.FindAllStringSubmatch(read(t, f), -1) {
			exists[path.Base(path.Dir(f))+"."+m[1]] = true
		}
	}
	const page = "docs/security.md"
	_, table, found := strings.Cut(read(t, page), "\n## Promises and their tests\n")
	if !found {
		t.Fatalf("%s has no table of promises", page)
	}
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| Promise |") {
			continue
		}
		named := promiseTest.FindAllStringSubmatch(line, -1)
		if len(named) == 0 {
			t.Errorf("%s: this promise names no test: %s", page, line)
		}
		for _, m := range named {
			if !exists[m[1]+"."+m[2]] {
				t.Errorf("%s: no directory %s has a test %s", page, m[1], m[2])
			}
		}
	}
}
