// Package doctest reads the documentation for tests that compare it with the
// program: the pages, and what they have of command lines, links and code.
package doctest

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/text"
)

// Page is a page of the documentation.
type Page struct {
	File    string // from the module's root, with slashes
	Source  string
	Blocks  []Block         // of code
	Spans   []Text          // code within a line
	Links   []Text          // where links and images lead
	Anchors map[string]bool // of the headings, as code hosts make them
}

// Text is a piece of a page.
type Text struct {
	Text string
	Line int // of its beginning, from 1
}

// Block is a block of code. Language is "" if the page names none.
type Block struct {
	Text

	Language string
}

// Pages returns README.md, CONTRIBUTING.md and all pages below docs. It looks for them
// in the nearest directory above the test's that has a go.mod.
func Pages(tb testing.TB) []Page {
	tb.Helper()
	root := Root(tb)
	files := []string{"README.md", "CONTRIBUTING.md"}
	err := fs.WalkDir(os.DirFS(root), "docs", func(name string, _ fs.DirEntry, err error) error {
		if path.Ext(name) == ".md" {
			files = append(files, name)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	var pages []Page
	for _, f := range files {
		source, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(f)))
		if err != nil {
			tb.Fatal(err)
		}
		pages = append(pages, parse(f, source))
	}
	return pages
}

// Root returns the module's directory.
func Root(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		above := filepath.Dir(dir)
		if above == dir {
			tb.Fatal("no directory above has a go.mod")
		}
		dir = above
	}
}

// parse reads one page.
func parse(file string, source []byte) Page {
	p := Page{File: file, Source: string(source), Anchors: map[string]bool{}}
	tree := goldmark.New(goldmark.WithExtensions(extension.GFM)).Parser().Parse(text.NewReader(source))
	_ = ast.Walk(tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) { // only the function below fails a walk
		if entering {
			p.add(n, source)
		}
		return ast.WalkContinue, nil
	})
	return p
}

// add adds a node of the page's tree.
func (p *Page) add(n ast.Node, source []byte) {
	switch n := n.(type) {
	case *ast.FencedCodeBlock:
		p.Blocks = append(p.Blocks, Block{linesOf(n, source), string(n.Language(source))})
	case *ast.CodeBlock:
		p.Blocks = append(p.Blocks, Block{linesOf(n, source), ""})
	case *ast.CodeSpan:
		p.Spans = append(p.Spans, Text{plainText(n, source), lineOf(n, source)})
	case *ast.Link:
		p.Links = append(p.Links, Text{string(n.Destination), lineOf(n, source)})
	case *ast.Image:
		p.Links = append(p.Links, Text{string(n.Destination), lineOf(n, source)})
	case *ast.Heading:
		p.addAnchor(plainText(n, source))
	}
}

// addAnchor adds the anchor of a heading. A second one with the same text gets a number.
func (p *Page) addAnchor(heading string) {
	anchor := regexp.MustCompile(`[^\p{L}\p{N}\-_ ]`).ReplaceAllString(strings.ToLower(heading), "")
	anchor = strings.ReplaceAll(anchor, " ", "-")
	unique := anchor
	for n := 1; p.Anchors[unique]; n++ {
		unique = fmt.Sprintf("%s-%d", anchor, n)
	}
	p.Anchors[unique] = true
}

// linesOf returns the content of a block.
func linesOf(n ast.Node, source []byte) Text {
	lines := n.Lines()
	if lines.Len() == 0 {
		return Text{}
	}
	return Text{string(lines.Value(source)), lineAt(source, lines.At(0).Start)}
}

// plainText returns what a reader sees of an inline node.
func plainText(n ast.Node, source []byte) string {
	var b strings.Builder
	for c := n.FirstChild(); c != nil; c = c.NextSibling() {
		switch c := c.(type) {
		case *ast.Text:
			b.Write(c.Segment.Value(source))
			if c.SoftLineBreak() {
				b.WriteByte(' ')
			}
		case *ast.String:
			b.Write(c.Value)
		default:
			b.WriteString(plainText(c, source))
		}
	}
	return b.String()
}

// lineOf returns the line of an inline node: that of the first text in it.
func lineOf(n ast.Node, source []byte) int {
	for c := n.FirstChild(); c != nil; c = c.FirstChild() {
		if t, ok := c.(*ast.Text); ok {
			return lineAt(source, t.Segment.Start)
		}
	}
	return 0
}

func lineAt(source []byte, offset int) int {
	return 1 + strings.Count(string(source[:offset]), "\n")
}
