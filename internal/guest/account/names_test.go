package account

import "testing"

func TestNames(t *testing.T) {
	names := testDB(t).Names()
	for _, tc := range []struct{ name, got, want string }{
		{"user", names.User(1000), "user"},
		{"root", names.User(0), "root"},
		{"group", names.Group(27), "sudo"},
		{"no such user", names.User(27), "27"},
		{"no such group", names.Group(1), "1"},
		{"no files", DB{Passwd: "/nowhere", Group: "/nowhere"}.Names().User(0), "0"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, tc.got, tc.want)
		}
	}
}
