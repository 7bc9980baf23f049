package wrenn_test

import (
	"slices"
	"testing"

	"wrenn.dev"
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

func TestRoles(t *testing.T) {
	for role, want := range map[wrenn.Role]string{wrenn.RoleViewer: "read", wrenn.RoleDeveloper: "sandboxes, templates", wrenn.RoleAdmin: "admin"} {
		scopes, err := wrenn.ParseRole(string(role))
		if err != nil || scopes.String() != want || scopes.Role() != role {
			t.Errorf("%s: %v, of role %q, %v", role, scopes, scopes.Role(), err)
		}
	}
	if role := wrenn.OperatorScopes.Role(); role != "" {
		t.Errorf("the operator's scopes have the role %q", role)
	}
	if _, err := wrenn.ParseRole("owner"); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("ParseRole() = %v, want Invalid", err)
	}
	if viewer, _ := wrenn.ParseRole("viewer"); viewer.Allow(wrenn.ScopeSandboxes) {
		t.Error("a viewer may change sandboxes")
	}
	if developer, _ := wrenn.ParseRole("developer"); developer.Allow(wrenn.ScopeAdmin) || !developer.Allow(wrenn.ScopeRead) {
		t.Error("a developer may change keys, or not see sandboxes")
	}
}
