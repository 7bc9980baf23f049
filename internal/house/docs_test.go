package house

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"wrenn.dev/api"
	"wrenn.dev/internal/controlplane/contract"
	"wrenn.dev/internal/doctest"
)

// TestLinks checks that files and headings to which the documentation links exist.
func TestLinks(t *testing.T) {
	pages := map[string]doctest.Page{}
	for _, p := range doctest.Pages(t) {
		pages[p.File] = p
	}
	for _, p := range pages {
		for _, link := range p.Links {
			target, anchor, _ := strings.Cut(link.Text, "#")
			if strings.Contains(target, ":") {
				continue // of another site
			}
			file := p.File
			if target != "" {
				file = path.Join(path.Dir(p.File), target)
			}
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(file))); err != nil {
				t.Errorf("%s:%d: links to %s, which does not exist", p.File, link.Line, file)
			} else if to, known := pages[file]; anchor != "" && known && !to.Anchors[anchor] {
				t.Errorf("%s:%d: %s has no heading #%s", p.File, link.Line, file, anchor)
			}
		}
	}
}

// TestIndex checks that docs/README.md lists every page of the documentation.
func TestIndex(t *testing.T) {
	var index doctest.Page
	pages := doctest.Pages(t)
	for _, p := range pages {
		if p.File == "docs/README.md" {
			index = p
		}
	}
	for _, p := range pages {
		listed := func(link doctest.Text) bool { return path.Join("docs", link.Text) == p.File }
		if p.File != index.File && !slices.ContainsFunc(index.Links, listed) {
			t.Errorf("docs/README.md does not list %s", p.File)
		}
	}
}

// TestGoExamples checks that Go code in the documentation is in a file of the tree, so
// that the compiler sees it.
func TestGoExamples(t *testing.T) {
	for _, p := range doctest.Pages(t) {
		for _, b := range p.Blocks {
			if b.Language != "go" {
				continue
			}
			found := slices.ContainsFunc(tracked(t), func(f string) bool {
				return strings.HasSuffix(f, ".go") && strings.Contains(outdent(read(t, f)), outdent(b.Text.Text))
			})
			if !found {
				t.Errorf("%s:%d: no Go file of the tree has these lines", p.File, b.Line)
			}
		}
	}
}

// outdent removes the space before each line.
func outdent(code string) string {
	return regexp.MustCompile(`(?m)^[ \t]+`).ReplaceAllString(code, "")
}

var (
	// mention is an operation of an API: one method or several, and the path.
	mention = regexp.MustCompile("\\b((?:GET|POST|PUT|PATCH|DELETE)(?:`? (?:and|or) `?(?:GET|POST|PUT|PATCH|DELETE))*) (/[^\\s`\"'(),;:]*)")
	method  = regexp.MustCompile(`[A-Z]{3,}`)
	// internal are the paths of envd and of Firecracker, which no contract has.
	internal = regexp.MustCompile(`^/(init|freeze|thaw|grow|trust|files|drives)$`)
)

// TestOperations checks that the contracts have each operation and path that the
// documentation names, with the parameters of its query.
func TestOperations(t *testing.T) {
	known := loadContracts(t)
	for _, p := range doctest.Pages(t) {
		number := 0
		for line := range strings.Lines(p.Source) {
			number++
			for _, m := range mention.FindAllStringSubmatch(line, -1) {
				if internal.MatchString(m[2]) {
					continue
				}
				for _, name := range method.FindAllString(m[1], -1) {
					if err := known.check(name, strings.TrimRight(m[2], ".")); err != nil {
						t.Errorf("%s:%d: %v", p.File, number, err)
					}
				}
			}
		}
		for _, s := range p.Spans {
			if strings.HasPrefix(s.Text, "/v1/") && known.route("", s.Text) == nil {
				t.Errorf("%s:%d: no contract has %s", p.File, s.Line, s.Text)
			}
		}
	}
}

// TestRequests checks the requests that the documentation makes with curl, or with the
// function request of docs/api.md: the operation, the parameters of its query, and the JSON.
func TestRequests(t *testing.T) {
	known, checked := loadContracts(t), 0
	for _, p := range doctest.Pages(t) {
		for _, b := range p.Blocks {
			number := b.Line - 1
			for line := range strings.Lines(b.Text.Text) {
				number++
				calls, err := doctest.Calls(line)
				if err != nil {
					continue
				}
				for _, words := range calls {
					if words[0] != "curl" && words[0] != "request" || !strings.Contains(strings.Join(words, " "), "/v1/") {
						continue
					}
					checked++
					if err := known.checkCurl(words); err != nil {
						t.Errorf("%s:%d: %v", p.File, number, err)
					}
				}
			}
		}
	}
	if checked == 0 {
		t.Error("the documentation has no request with curl")
	}
}

// contracts are the operations of all surfaces, by method and route.
type contracts map[string]*contract.Operation

func loadContracts(t *testing.T) contracts {
	t.Helper()
	all := contracts{}
	for _, text := range [][]byte{api.E2B, api.V1} {
		c, err := contract.Load(text)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(all, c.Operations)
	}
	return all
}

// route returns the operation of a path, which may have names in place of values, and
// of which only the part before "…" counts. "" is any method, nil is none.
func (c contracts) route(method, target string) *contract.Operation {
	target, _, _ = strings.Cut(target, "?")
	target, _, begins := strings.Cut(target, "…")
	want := strings.Split(strings.TrimRight(target, "/"), "/")
	for _, op := range c {
		have := strings.Split(op.Route, "/")
		if method != "" && method != op.Method || len(have) < len(want) || !begins && len(have) > len(want) {
			continue
		}
		same := true
		for i := range want {
			same = same && (want[i] == have[i] || want[i] != "" && strings.HasPrefix(have[i], "{"))
		}
		if same {
			return op
		}
	}
	return nil
}

// check reports what is wrong with an operation that a page names.
func (c contracts) check(method, target string) error {
	op := c.route(method, target)
	if op == nil {
		return fmt.Errorf("no contract has %s %s", method, target)
	}
	_, query, _ := strings.Cut(target, "?")
	r := httptest.NewRequest(method, "/", nil)
	r.URL.RawQuery = query
	return op.CheckNames(r)
}

// checkCurl reports what is wrong with a request that curl makes.
func (c contracts) checkCurl(words []string) error {
	method, target, body := http.MethodGet, "", ""
	for i, w := range words {
		_, after, found := strings.Cut(w, "/v1/")
		switch {
		case w == "-d" || w == "--json":
			method, body = http.MethodPost, words[i+1]
		case w == "-F":
			method = http.MethodPost
		case found && !slices.Contains([]string{"-d", "--json", "-F", "-H"}, words[i-1]):
			target = "/v1/" + after
		}
	}
	if i := slices.Index(words, "-X"); i > 0 {
		method = words[i+1]
	}
	if err := c.check(method, target); err != nil || body == "" {
		return err
	}
	return c.route(method, target).CheckJSON(httptest.NewRequest(method, "/", strings.NewReader(body)))
}
