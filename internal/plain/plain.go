// Package plain makes text from outside safe to show and to store. A sandbox may
// be hostile, and its text reaches terminals, which obey control characters
// (ECMA-48), logs and databases.
package plain

import (
	"strings"
	"unicode/utf8"
)

// Line replaces control characters, including line ends, and invalid UTF-8 by U+FFFD.
func Line(text string) string { return replace(text, "") }

// Text is like Line, but keeps line ends and tabs.
func Text(text string) string { return replace(text, "\n\t") }

func replace(text, keep string) string {
	return strings.Map(func(r rune) rune {
		if (r < ' ' || r >= 0x7f && r < 0xa0) && !strings.ContainsRune(keep, r) {
			return utf8.RuneError
		}
		return r
	}, text)
}

// Cut returns the beginning of a text, at most limit bytes. It does not cut
// inside a character.
func Cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// ellipsis ends a text that Shorten has cut.
const ellipsis = "…"

// Shorten is like Cut, but a text that was cut ends in an ellipsis, within the
// limit. The limit must be at least 3.
func Shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return Cut(text, limit-len(ellipsis)) + ellipsis
}
