package wrenn_test

import (
	"testing"

	"wrenn"
	"wrenn/internal/testkit"
)

func TestScopes(t *testing.T) {
	all := []wrenn.Scope{wrenn.ScopeRead, wrenn.ScopeSandboxes, wrenn.ScopeTemplates, wrenn.ScopeAdmin}
	for _, tt := range []struct {
		texts []string
		want  string
		allow []wrenn.Scope
	}{
		{nil, "admin", all},
		{[]string{"admin"}, "admin", all},
		{[]string{"read"}, "read", []wrenn.Scope{"read"}},
		{[]string{"sandboxes", "sandboxes"}, "sandboxes", []wrenn.Scope{"read", "sandboxes"}},
		{[]string{"templates", "sandboxes"}, "sandboxes, templates", []wrenn.Scope{"read", "sandboxes", "templates"}},
	} {
		set, err := wrenn.ParseScopes(tt.texts)
		if err != nil || set.String() != tt.want {
			t.Errorf("ParseScopes(%q) = %v, %v", tt.texts, set, err)
		}
		for _, scope := range all {
			allowed := false
			for _, s := range tt.allow {
				allowed = allowed || s == scope
			}
			switch err := set.Check(scope); {
			case allowed && err != nil:
				t.Errorf("%v: %v", set, err)
			case !allowed:
				testkit.WantCode(t, err, wrenn.PermissionDenied)
			}
		}
	}
	for _, wrong := range []string{"", "Admin", "write"} {
		_, err := wrenn.ParseScopes([]string{"read", wrong})
		testkit.WantCode(t, err, wrenn.Invalid)
	}
	testkit.WantCode(t, wrenn.Scopes(0).Check(wrenn.ScopeRead), wrenn.PermissionDenied)
}
