// Package plain makes text that others wrote harmless: a sandbox may be hostile, and what
// it says reaches terminals, which obey control characters (ECMA-48).
package plain

import (
	"strings"
	"unicode/utf8"
)

// Line replaces the control characters of a text, ends of lines among them, and
// what is no UTF-8, by U+FFFD.
func Line(text string) string { return replace(text, "") }

// Text is Line for text of several lines: it keeps their ends, and tabs.
func Text(text string) string { return replace(text, "\n\t") }

func replace(text, keep string) string {
	return strings.Map(func(r rune) rune {
		if (r < ' ' || r >= 0x7f && r < 0xa0) && !strings.ContainsRune(keep, r) {
			return utf8.RuneError
		}
		return r
	}, text)
}
