package postgres

import "testing"

func TestNameOf(t *testing.T) {
	for sql, want := range map[string]string{
		"-- name: InsertSandboxes :many\nWITH": "InsertSandboxes",
		"-- name: LockTeam":                    "LockTeam",
		"  select 'a secret'":                  "SELECT",
		"begin":                                "BEGIN",
		"'a secret'":                           "other",
		"":                                     "other",
	} {
		if got := nameOf(sql); got != want {
			t.Errorf("nameOf(%q) = %q, want %q", sql, got, want)
		}
	}
}
