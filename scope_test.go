package wrenn_test

import (
	"slices"
	"testing"

	"wrenn"
)

func TestScopes(t *testing.T) {
	admin := []wrenn.Scope{wrenn.ScopeRead, wrenn.ScopeSandboxes, wrenn.ScopeTemplates, wrenn.ScopeAdmin}
	all := append(slices.Clone(admin), wrenn.ScopeOperator)
	for _, tt := range []struct {
		texts []string
		want  string
		allow []wrenn.Scope
	}{
		{nil, "admin", admin},
		{[]string{"admin"}, "admin", admin},
		{[]string{"operator", "admin"}, "admin, operator", all},
		{[]string{"operator"}, "operator", []wrenn.Scope{"read", "operator"}},
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
			case !allowed && wrenn.CodeOf(err) != wrenn.PermissionDenied:
				t.Errorf("%v may be used for %s: %v", set, scope, err)
			}
		}
	}
	for _, wrong := range []string{"", "Admin", "write"} {
		if _, err := wrenn.ParseScopes([]string{"read", wrong}); wrenn.CodeOf(err) != wrenn.Invalid {
			t.Errorf("ParseScopes(%q): %v", wrong, err)
		}
	}
	if wrenn.Scopes(0).Allow(wrenn.ScopeRead) {
		t.Error("no scope allows to read")
	}
}
