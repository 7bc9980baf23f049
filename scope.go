package wrenn

import "strings"

// Scope is what an API key may be used for. Each may be used for what ScopeRead may.
type Scope string

// The scopes of keys.
const (
	ScopeRead      Scope = "read"      // see what the team has, its logs and metrics: no command, file or token
	ScopeSandboxes Scope = "sandboxes" // make, use and delete sandboxes and volumes
	ScopeTemplates Scope = "templates" // build and delete templates
	ScopeAdmin     Scope = "admin"     // everything of the team, also keys and secrets
	// ScopeOperator is for hosts, which all teams share: no other scope has it, and only
	// who runs the platform gives it.
	ScopeOperator Scope = "operator"
)

// scopes are in the order in which lists of them are.
var scopes = [...]Scope{ScopeRead, ScopeSandboxes, ScopeTemplates, ScopeAdmin, ScopeOperator}

// Scopes is a set of scopes: bit i is scopes[i].
type Scopes uint8

const (
	// AllScopes are those of a key that is made without any: all of its team.
	AllScopes Scopes = 1 << 3 // ScopeAdmin
	// OperatorScopes are those of a key that may also be used for hosts.
	OperatorScopes = AllScopes | 1<<4 // ScopeOperator
)

// ParseScopes returns the set of scopes, or an Invalid error for one that does not
// exist. Without any it is AllScopes.
func ParseScopes(texts []string) (Scopes, error) {
	var set Scopes
	for _, text := range texts {
		bit := bitOf(Scope(text))
		if bit == 0 {
			return 0, Errorf(Invalid, "%.40q is no scope of a key: use read, sandboxes, templates, admin or operator", text)
		}
		set |= bit
	}
	if set == 0 {
		return AllScopes, nil
	}
	return set, nil
}

// Role is a name of the scopes that people with one kind of work need.
type Role string

// The roles.
const (
	RoleViewer    Role = "viewer"    // sees what the team has
	RoleDeveloper Role = "developer" // works with sandboxes and templates, without keys and secrets
	RoleAdmin     Role = "admin"     // everything of the team
)

// roles are the roles and their scopes, the one with the least first.
var roles = [...]struct {
	role   Role
	scopes []Scope
}{
	{RoleViewer, []Scope{ScopeRead}},
	{RoleDeveloper, []Scope{ScopeSandboxes, ScopeTemplates}},
	{RoleAdmin, []Scope{ScopeAdmin}},
}

// ParseRole returns the scopes of a role, or an Invalid error for one that does not exist.
func ParseRole(text string) (Scopes, error) {
	for _, r := range roles {
		if string(r.role) == text {
			return setOf(r.scopes), nil
		}
	}
	return 0, Errorf(Invalid, "%.40q is no role of a key: use viewer, developer or admin", text)
}

// Role returns the role that has the scopes, "" if none has these.
func (s Scopes) Role() Role {
	for _, r := range roles {
		if setOf(r.scopes) == s {
			return r.role
		}
	}
	return ""
}

func setOf(scopes []Scope) (set Scopes) {
	for _, s := range scopes {
		set |= bitOf(s)
	}
	return set
}

func bitOf(scope Scope) Scopes {
	for i, s := range scopes {
		if s == scope {
			return 1 << i
		}
	}
	return 0
}

// Allow reports whether the scopes allow what needs one of them.
func (s Scopes) Allow(needed Scope) bool {
	return s&AllScopes != 0 && needed != ScopeOperator || s&bitOf(needed) != 0 || needed == ScopeRead && s != 0
}

// Check returns a PermissionDenied error that says what is missing unless Allow.
func (s Scopes) Check(needed Scope) error {
	if s.Allow(needed) {
		return nil
	}
	if needed == ScopeOperator {
		return Errorf(PermissionDenied, "this API key may be used for %s only, and hosts need the scope operator: use a key that `control-plane key --operator TEAM NAME` or `wrenn up` makes", s)
	}
	return Errorf(PermissionDenied, "this API key may be used for %s only, and this needs the scope %s: use another key, which an administrator makes with `wrenn key create NAME --scope %s`", s, needed, needed)
}

// Texts returns the scopes as texts, in the order of their definition.
func (s Scopes) Texts() []string {
	var out []string
	for i, scope := range scopes {
		if s&(1<<i) != 0 {
			out = append(out, string(scope))
		}
	}
	return out
}

func (s Scopes) String() string { return strings.Join(s.Texts(), ", ") }
