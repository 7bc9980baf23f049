package account

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func testDB(t *testing.T) DB {
	t.Helper()
	dir := t.TempDir()
	db := DB{Passwd: filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group")}
	passwd := "root:x:0:0:root:/root:/bin/bash\nbroken\nuser:x:1000:1000::/home/user:\nbad:x:-1:0::/:/bin/sh\n"
	group := "root:x:0:\nsudo:x:27:other,user\nuser:x:1000:user\nx:x:abc:user\n"
	for path, text := range map[string]string{db.Passwd: passwd, db.Group: group} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func TestLookup(t *testing.T) {
	db := testDB(t)
	got, err := db.Lookup("user")
	want := &User{Name: "user", UID: 1000, GID: 1000, Groups: []uint32{27}, Home: "/home/user", Shell: "/bin/sh"}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Lookup(user) mismatch (-want +got):\n%s", diff)
	}
	for _, name := range []string{"nobody", "", "1000", "use"} {
		if _, err := db.Lookup(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("Lookup(%q) = %v, want ErrUnknown", name, err)
		}
	}
	if _, err := db.Lookup("bad"); err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("Lookup(bad) = %v, want an error about its uid", err)
	}
}

func TestResolve(t *testing.T) {
	u := &User{Home: "/home/user"}
	for _, tc := range []struct{ path, dir, want string }{
		{"/etc/../tmp/x", "", "/tmp/x"},
		{"~", "/srv", "/home/user"},
		{"~/a", "/srv", "/home/user/a"},
		{"a", "", "/home/user/a"},
		{"a", "/srv", "/srv/a"},
		{"a", "~/srv", "/home/user/srv/a"},
		{"", "code", "/home/user/code"},
		{"~x", "", "/home/user/~x"},
	} {
		if got := u.Resolve(tc.path, tc.dir); got != tc.want {
			t.Errorf("Resolve(%q, %q) = %q, want %q", tc.path, tc.dir, got, tc.want)
		}
	}
}

func FuzzFindUser(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/bash\n", "root")
	f.Fuzz(func(t *testing.T, passwd, name string) {
		u, err := findUser(strings.NewReader(passwd), name)
		if err == nil && (u.Name != name || u.Home == "" || u.Shell == "") {
			t.Fatalf("findUser() = %+v", u)
		}
	})
}

func FuzzGroupsOf(f *testing.F) {
	f.Add("root:x:0:\nsudo:x:27:other,user\nx:x:-1:user\n", "user")
	f.Fuzz(func(t *testing.T, groups, name string) {
		path := filepath.Join(t.TempDir(), "group")
		if err := os.WriteFile(path, []byte(groups), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := DB{Group: path}.groupsOf(&User{Name: name, GID: 7})
		if err == nil && len(got) > strings.Count(groups, "\n")+1 {
			t.Fatalf("groupsOf() = %v", got)
		}
	})
}
