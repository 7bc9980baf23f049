package account

import (
	"net/http"
	"strings"
	"testing"
)

func TestNameFromHeader(t *testing.T) {
	for value, want := range map[string]string{
		"":                   "",
		"Bearer dXNlcjo=":    "",
		"Basic dXNlcjo=":     "user",
		"Basic cm9vdDp4Onk=": "root",
		"Basic %%%":          "",
	} {
		if got := NameFromHeader(http.Header{"Authorization": {value}}); got != want {
			t.Errorf("NameFromHeader(%q) = %q, want %q", value, got, want)
		}
	}
}

func FuzzNameFromHeader(f *testing.F) {
	f.Add("Basic dXNlcjo=")
	f.Add("Basic Og==")
	f.Fuzz(func(t *testing.T, value string) {
		if name := NameFromHeader(http.Header{"Authorization": {value}}); strings.Contains(name, ":") || len(name) > len(value) {
			t.Fatalf("NameFromHeader(%q) = %q", value, name)
		}
	})
}
