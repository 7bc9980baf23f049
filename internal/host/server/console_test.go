package server

import (
	"math/rand/v2"
	"strings"
	"testing"
)

func TestAfter(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ before, now, want string }{
		"nothing yet":              {"", "", ""},
		"the first":                {"", "boot\n", "boot\n"},
		"nothing new":              {"boot\n", "boot\n", ""},
		"more":                     {"boot\n", "boot\ninit\n", "init\n"},
		"the beginning was lost":   {"boot\ninit\n", "init\nenvd\n", "envd\n"},
		"all was lost":             {"boot\n", "xyz", "xyz"},
		"emptied":                  {"boot\n", "", ""},
		"ends with its beginning":  {"abab", "abx", "x"},
		"shorter, and nothing new": {"boot\ninit\n", "init\n", ""},
		"repeats":                  {"aaaa", "aaab", "b"},
	} {
		if got := after(tc.before, tc.now); got != tc.want {
			t.Errorf("%s: after(%q, %q) = %q, want %q", name, tc.before, tc.now, got, tc.want)
		}
	}
}

// TestAfterFindsTheLongest compares with the definition.
func TestAfterFindsTheLongest(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		out := make([]byte, random.IntN(12))
		for i := range out {
			out[i] = "ab"[random.IntN(2)]
		}
		return string(out)
	}
	for range 20_000 {
		before, now := word(), word()
		want := now
		if rest, ok := strings.CutPrefix(now, before); ok {
			want = rest
		} else {
			for i := range before {
				if rest, ok := strings.CutPrefix(now, before[i:]); ok {
					want = rest
					break
				}
			}
		}
		if got := after(before, now); got != want {
			t.Fatalf("after(%q, %q) = %q, want %q", before, now, got, want)
		}
	}
}
