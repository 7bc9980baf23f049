package main

import (
	"os"
	"path/filepath"
	"testing"

	"wrenn.dev/internal/testkit"
)

func TestLocale(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"nothing", nil, ""},
		{"Debian's C library", map[string]string{"usr/lib/locale/C.utf8/LC_CTYPE": ""}, "C.UTF-8"},
		{"musl", map[string]string{"lib/ld-musl-" + machine() + ".so.1": ""}, "C.UTF-8"},
		{"the image's", map[string]string{"usr/lib/locale/C.utf8/LC_CTYPE": "", "etc/locale.conf": "# LANG=x\nLC_ALL=y\nLANG=\"de_DE.UTF-8\"\n"}, "de_DE.UTF-8"},
		{"the last counts", map[string]string{"etc/locale.conf": "LANG=a\n", "etc/default/locale": "LANG='b'"}, "b"},
		{"none on purpose", map[string]string{"usr/lib/locale/C.utf8/LC_CTYPE": "", "etc/default/locale": "LANG=\n"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir() + "/"
			for name, text := range tt.files {
				file(t, root+name, text)
			}
			if got := locale(root); got != tt.want {
				t.Errorf("locale() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSetNameServer(t *testing.T) {
	const ours = "nameserver 1.1.1.1\nnameserver 8.8.8.8\n"
	path := filepath.Join(t.TempDir(), "resolv.conf")
	check := func(want string) {
		t.Helper()
		testkit.Must(t, setNameServer(path))
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("the file has %q, %v, want %q", got, err, want)
		}
	}
	check(ours) // it did not exist
	file(t, path, "")
	check(ours)
	file(t, path, "nameserver 9.9.9.9\n")
	check("nameserver 9.9.9.9\n")
	testkit.Must(t, os.Remove(path))
	testkit.Must(t, os.Symlink("/nonexistent/resolv.conf", path))
	check(ours)
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the link to nowhere is still there: %v, %v", info, err)
	}
}
