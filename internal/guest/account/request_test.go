package account

import (
	"net/http"
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
