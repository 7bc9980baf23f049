package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// paths lists the names below a directory.
func paths(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path != dir {
			list = append(list, path[len(dir)+1:])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestEmptyDir(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []string // directories end in a slash
		want  []string
	}{
		{"no directory", nil, []string{"tmp"}},
		{"empty", []string{"tmp/"}, []string{"tmp"}},
		{"hidden file", []string{"tmp/", "tmp/.x"}, []string{"old", "old/0", "old/0/.x", "tmp"}},
		{"a removal was cut short", []string{"tmp/", "tmp/x", "old/", "old/0/", "old/0/y"}, []string{"old", "old/0", "old/0/y", "old/1", "old/1/x", "tmp"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range tt.files {
				path := filepath.Join(dir, name)
				var err error
				if name[len(name)-1] == '/' {
					err = os.Mkdir(path, 0o755)
				} else {
					err = os.WriteFile(path, nil, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			tmp := filepath.Join(dir, "tmp")
			for range 2 { // an empty one stays as it is
				if err := emptyDir(tmp, filepath.Join(dir, "old")); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.want, paths(t, dir)); diff != "" {
				t.Errorf("paths mismatch (-want +got):\n%s", diff)
			}
			if info, err := os.Stat(tmp); err != nil || info.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
				t.Errorf("/tmp is %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestEmptyDirLeavesLinks(t *testing.T) {
	dir := t.TempDir()
	tmp := filepath.Join(dir, "tmp")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "var/x"), 0o755),
		os.Symlink("var", tmp),
		emptyDir(tmp, filepath.Join(dir, "old")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"tmp", "var", "var/x"}, paths(t, dir)); diff != "" {
		t.Errorf("paths mismatch (-want +got):\n%s", diff)
	}
}
