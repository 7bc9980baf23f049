package house

import (
	"go/build/constraint"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A suite is a run of tests that a script makes.
type suite struct {
	tags     []string
	packages []string // ./dir, or ./dir/...; those of the SDK's module begin with ./client
}

// checkSuites looks for test files that no suite of scripts/*.sh compiles.
func checkSuites(t *testing.T, files []string, complain func(file, what string)) {
	t.Helper()
	suites := suitesOf(t, files)
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") && !strings.Contains(f, "/testdata/") && !slices.ContainsFunc(suites, covers(f, constraintOf(t, f))) {
			complain(f, "1: no suite of scripts/*.sh runs these tests")
		}
	}
}

// suitesOf reads the scripts: go test and the suite function of test.sh, whose
// packages and tags are written out, one suite a line; those of "packages TAG DIR/..."
// are all below DIR. The nested suite also builds the tests of other packages, which
// run in its guest.
func suitesOf(t *testing.T, files []string) []suite {
	t.Helper()
	var all []suite
	command := regexp.MustCompile(`^\s*(?:exec go test|suite '[^']*')(.*)$`)
	tags := regexp.MustCompile(`-tags[ =](\S+)`)
	packages := regexp.MustCompile(`(?:^|[\s'])(?:\.|wrenn\.dev)(/[^\s')]+)`)
	for _, f := range files {
		if path.Dir(f) != "scripts" || path.Ext(f) != ".sh" {
			continue
		}
		for line := range strings.Lines(read(t, f)) {
			m := command.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
			if m == nil {
				continue
			}
			var s suite
			if tag := tags.FindStringSubmatch(m[1]); tag != nil {
				s.tags = strings.Split(tag[1], ",")
			}
			for _, p := range packages.FindAllStringSubmatch(m[1], -1) {
				s.packages = append(s.packages, "."+p[1])
			}
			all = append(all, s)
		}
	}
	return append(all, suite{[]string{"root", "vm"}, inNested(t)})
}

// inNested returns the packages whose tests run in the nested suite's guest.
func inNested(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, m := range regexp.MustCompile(`Tests: "wrenn\.dev/(\S+)"`).FindAllStringSubmatch(read(t, "e2e/nested/nested_test.go"), -1) {
		all = append(all, "./"+m[1])
	}
	return all
}

// sdk is the directory of the SDK's module.
const sdk = "client/"

// covers returns a function that reports whether a suite compiles the file.
func covers(file string, expr constraint.Expr) func(suite) bool {
	return func(s suite) bool {
		in := slices.ContainsFunc(s.packages, func(pattern string) bool {
			pattern, below := strings.CutSuffix(strings.TrimPrefix(pattern, "./"), "...")
			if strings.HasPrefix(file, sdk) && !strings.HasPrefix(pattern, sdk) {
				return false // a pattern matches in one module
			}
			return path.Dir(file) == pattern || below && strings.HasPrefix(file, pattern)
		})
		return in && (expr == nil || expr.Eval(func(tag string) bool { return slices.Contains(s.tags, tag) || tag == "linux" }))
	}
}

// constraintOf returns the build constraint of a file, nil if there is none.
func constraintOf(t *testing.T, file string) constraint.Expr {
	t.Helper()
	for line := range strings.Lines(read(t, file)) {
		if line = strings.TrimSpace(line); constraint.IsGoBuild(line) {
			expr, err := constraint.Parse(line)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			return expr
		} else if strings.HasPrefix(line, "package ") {
			break
		}
	}
	return nil
}
