package plain

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPlain(t *testing.T) {
	for name, tc := range map[string]struct{ in, line, text string }{
		"as it is":      {"naïve → 日本", "naïve → 日本", "naïve → 日本"},
		"a sequence":    {"a\x1b]0;title\x07b", "a\ufffd]0;title\ufffdb", "a\ufffd]0;title\ufffdb"},
		"C1 and delete": {"\u009b2J\x7f", "\ufffd2J\ufffd", "\ufffd2J\ufffd"},
		"lines":         {"a\tb\r\nc", "a\ufffdb\ufffd\ufffdc", "a\tb\ufffd\nc"},
		"no UTF-8":      {"a\xff\x9bb", "a\ufffd\ufffdb", "a\ufffd\ufffdb"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Line(tc.in); got != tc.line {
				t.Errorf("Line() = %q, want %q", got, tc.line)
			}
			if got := Text(tc.in); got != tc.text {
				t.Errorf("Text() = %q, want %q", got, tc.text)
			}
		})
	}
}

func FuzzPlain(f *testing.F) {
	f.Add("\x1b[2J\u0085\n\t\xff")
	f.Fuzz(func(t *testing.T, in string) {
		if out := Line(in); !utf8.ValidString(out) || strings.ContainsFunc(out, unicode.IsControl) {
			t.Errorf("Line(%q) = %q", in, out)
		}
	})
}
