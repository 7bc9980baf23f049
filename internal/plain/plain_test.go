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

func TestCutAndShorten(t *testing.T) {
	for _, tc := range []struct {
		in, cut, short string
		limit          int
	}{
		{"", "", "", 5},
		{"abcde", "abcde", "abcde", 5},
		{"abcdef", "abcde", "ab…", 5},
		{"日本", "日", "…", 5},
		{"日本", "日本", "日本", 6},
		{"a日本", "a日", "a…", 6},
		{"日本", "日", "…", 3},
	} {
		if got := Cut(tc.in, tc.limit); got != tc.cut {
			t.Errorf("Cut(%q, %d) = %q, want %q", tc.in, tc.limit, got, tc.cut)
		}
		if got := Shorten(tc.in, tc.limit); got != tc.short {
			t.Errorf("Shorten(%q, %d) = %q, want %q", tc.in, tc.limit, got, tc.short)
		}
	}
}

func FuzzShorten(f *testing.F) {
	f.Add("日本語", uint8(4))
	f.Fuzz(func(t *testing.T, in string, limit uint8) {
		in, most := Text(in), int(limit)+len(ellipsis)
		for _, out := range []string{Cut(in, most), Shorten(in, most)} {
			if len(out) > most || !utf8.ValidString(out) {
				t.Errorf("%q of %q, at most %d bytes", out, in, most)
			}
		}
	})
}
