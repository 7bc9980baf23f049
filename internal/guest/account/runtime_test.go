package account

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestRuntimeDirs(t *testing.T) {
	uid, gid := os.Getuid(), os.Getgid()
	if uid != 0 && uid < firstPerson {
		t.Skipf("uid %d is neither root nor a person", uid)
	}
	dir := t.TempDir()
	db := DB{Passwd: filepath.Join(dir, "passwd")}
	self := strconv.Itoa(uid)
	passwd := "daemon:x:1:1:::\nbroken\nbad:x:x:0:::\nnobody:x:65534:65534:::\nself:x:" + self + ":" + strconv.Itoa(gid) + "::/:/bin/sh\n"
	if err := os.WriteFile(db.Passwd, []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "user")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	user := &User{UID: uint32(uid)}
	if got := user.RuntimeDir(root); got != "" {
		t.Errorf("before it is made the directory is %q", got)
	}
	for range 2 {
		if err := db.MakeRuntimeDirs(root); err != nil {
			t.Fatal(err)
		}
	}
	want := filepath.Join(root, self)
	if got := user.RuntimeDir(root); got != want {
		t.Errorf("RuntimeDir() = %q, want %q", got, want)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 1 {
		t.Errorf("directories: %v, %v; want that of uid %s alone", entries, err, self)
	}
	if got := (&User{UID: uint32(uid) + 1}).RuntimeDir(root); got != "" {
		t.Errorf("a user without a directory has %q", got)
	}
	if err := os.Chmod(want, 0o777); err != nil {
		t.Fatal(err)
	}
	if got := user.RuntimeDir(root); got != "" {
		t.Errorf("a directory that all may write to is %q", got)
	}
}
