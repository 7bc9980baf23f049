//go:build root

package tree_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
	"wrenn.dev/internal/volume/tree"
)

// newTree returns the files below a directory, beside which is a secret.
func newTree(t *testing.T) (*tree.Tree, string) {
	t.Helper()
	outside := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	root := filepath.Join(outside, "volume")
	testkit.Must(t, os.Mkdir(root, 0o777))
	dir, err := os.Open(root)
	testkit.Must(t, err)
	files, err := tree.Open(dir)
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, files.Close()); dir.Close() })
	return files, root
}

func write(t *testing.T, files *tree.Tree, path, content string) *wrenn.VolumeEntry {
	t.Helper()
	e, err := files.Write(path, wrenn.VolumeWrite{Parents: true}, strings.NewReader(content))
	testkit.Must(t, err)
	return e
}

// TestNoPathLeadsOut: no link and no dots reach what is beside the volume, by any call.
func TestNoPathLeadsOut(t *testing.T) {
	files, root := newTree(t)
	for name, target := range map[string]string{
		"up": "..", "file": "../secret", "absolute": "/etc", "passwd": "/etc/passwd", "self": root, "proc": "/proc/self/root", "chain": "up/secret", "loop": "loop",
	} {
		testkit.Must(t, os.Symlink(target, filepath.Join(root, name)))
	}
	outside, err := os.ReadFile(filepath.Join(root, "..", "secret"))
	testkit.Must(t, err)
	mode := new(uint32(0o777))
	for _, path := range []string{
		"../secret", "/../secret", "up/secret", "file", "absolute/passwd", "passwd", "self/x", "proc/etc/passwd", "chain", "loop", "loop/x", "up/../secret", "a/../../secret", "up", "absolute",
	} {
		if f, err := files.Read(path); err == nil {
			t.Errorf("read %s: %s", path, f.Name())
		} else if code := wrenn.CodeOf(err); code != wrenn.Invalid && code != wrenn.NotFound {
			t.Errorf("read %s: %v", path, err)
		}
		if _, err := files.Set(path, wrenn.VolumeAttributes{Mode: mode}); err == nil {
			t.Errorf("set %s", path)
		}
		if list, err := files.List(t.Context(), path, 3); err == nil {
			t.Errorf("list %s: %v", path, list)
		}
	}
	for _, path := range []string{"up/new", "absolute/new", "self/new", "proc/tmp/new", "loop/new"} {
		if _, err := files.Write(path, wrenn.VolumeWrite{Parents: true}, strings.NewReader("x")); err == nil {
			t.Errorf("wrote %s", path)
		}
		if _, err := files.MakeDir(path, wrenn.VolumeAttributes{}, true); err == nil {
			t.Errorf("made %s", path)
		}
		if err := files.Remove(t.Context(), strings.Replace(path, "new", "secret", 1)); err == nil {
			t.Errorf("removed %s", path)
		}
	}
	write(t, files, "inside", "x")
	if _, err := files.Rename("inside", "up/moved"); err == nil {
		t.Error("a file was moved out")
	}
	if _, err := files.Rename("up/secret", "taken"); err == nil {
		t.Error("a file was moved in")
	}
	// A link itself is replaced and removed, never what it names.
	write(t, files, "file", "mine")
	testkit.Must(t, files.Remove(t.Context(), "up"))
	testkit.Must(t, files.Remove(t.Context(), "self"))
	info, err := os.Stat(filepath.Join(root, "..", "secret"))
	testkit.Must(t, err)
	after, err := os.ReadFile(filepath.Join(root, "..", "secret"))
	testkit.Must(t, err)
	if string(after) != string(outside) || info.Mode().Perm() != 0o600 {
		t.Errorf("the file beside the volume is %q, %v", after, info.Mode())
	}
	if entries, err := os.ReadDir(filepath.Join(root, "..")); err != nil || len(entries) != 2 {
		t.Errorf("beside the volume: %v, %v", entries, err)
	}
}

// TestLinksInside are followed when they are relative, and described when they are last.
func TestLinksInside(t *testing.T) {
	files, root := newTree(t)
	write(t, files, "dir/file", "content")
	testkit.Must(t, os.Symlink("dir", filepath.Join(root, "link")))
	f, err := files.Read("link/file")
	testkit.Must(t, err)
	defer f.Close()
	if text, err := io.ReadAll(f); err != nil || string(text) != "content" {
		t.Errorf("read %q, %v", text, err)
	}
	if e, err := files.Stat("link"); err != nil || e.Type != wrenn.Symlink || e.Target != "dir" {
		t.Errorf("the link is %+v, %v", e, err)
	}
	list, err := files.List(t.Context(), "/", 5)
	testkit.Must(t, err)
	var paths []string
	for _, e := range list {
		paths = append(paths, e.Path)
	}
	if diff := cmp.Diff([]string{"/dir", "/dir/file", "/link"}, paths); diff != "" {
		t.Errorf("links are not followed in lists (-want +got):\n%s", diff)
	}
}

func TestWrite(t *testing.T) {
	files, root := newTree(t)
	e := write(t, files, "a/b/file", "one")
	if e.Path != "/a/b/file" || e.Size != 3 || e.Mode != 0o644 || e.UID != 1000 || e.GID != 1000 {
		t.Errorf("a new file is %+v", e)
	}
	if dir, err := files.Stat("a"); err != nil || dir.Type != wrenn.Directory || dir.Mode != 0o755 || dir.UID != 1000 {
		t.Errorf("its directory is %+v, %v", dir, err)
	}
	_, err := files.Set("a/b/file", wrenn.VolumeAttributes{Mode: new(uint32(0o4750)), UID: new(uint32(7))})
	testkit.Must(t, err)
	if e := write(t, files, "a/b/file", "two!"); e.Size != 4 || e.Mode != 0o750 || e.UID != 7 || e.GID != 1000 {
		t.Errorf("a file that is replaced is %+v", e)
	}
	cut := errors.New("cut")
	if _, err := files.Write("a/b/file", wrenn.VolumeWrite{}, io.MultiReader(strings.NewReader("half"), &failing{cut})); !errors.Is(err, cut) {
		t.Errorf("a content that breaks off: %v", err)
	}
	if _, err := files.Write("a/b/file", wrenn.VolumeWrite{NoReplace: true}, strings.NewReader("x")); wrenn.CodeOf(err) != wrenn.AlreadyExists {
		t.Errorf("a file that exists: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(root, "a/b/file"))
	testkit.Must(t, err)
	entries, err := os.ReadDir(filepath.Join(root, "a/b"))
	testkit.Must(t, err)
	if string(text) != "two!" || len(entries) != 1 {
		t.Errorf("the file has %q among %v", text, entries)
	}
	for path, want := range map[string]wrenn.Code{
		"/": wrenn.Invalid, "a": wrenn.Invalid, "a/b/file/x": wrenn.Invalid, "none/x": wrenn.NotFound, strings.Repeat("x", 256): wrenn.Invalid,
		strings.Repeat("x/", 2500): wrenn.Invalid, "a\x00": wrenn.Invalid,
	} {
		if _, err := files.Write(path, wrenn.VolumeWrite{}, strings.NewReader("x")); wrenn.CodeOf(err) != want {
			t.Errorf("write %.20q: %v, want %s", path, err, want)
		}
	}
	if _, err := files.Write("x", wrenn.VolumeWrite{VolumeAttributes: wrenn.VolumeAttributes{Mode: new(uint32(1 << 15))}}, strings.NewReader("x")); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("a mode with the type of a file: %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// TestHostileTree: what a sandbox can make costs a call a bounded amount.
func TestHostileTree(t *testing.T) {
	files, root := newTree(t)
	testkit.Must(t, unix.Mkfifo(filepath.Join(root, "pipe"), 0o666))
	if _, err := files.Read("pipe"); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("a pipe: %v", err)
	}
	if e := write(t, files, "pipe", "x"); e.Type != wrenn.RegularFile {
		t.Errorf("a pipe is replaced by %+v", e)
	}
	at, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	testkit.Must(t, err)
	for range 300 { // deeper than a call goes
		testkit.Must(t, unix.Mkdirat(at, "deep", 0o777))
		next, err := unix.Openat(at, "deep", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		testkit.Must(t, errors.Join(err, unix.Close(at)))
		at = next
	}
	testkit.Must(t, unix.Close(at))
	if err := files.Remove(t.Context(), "deep"); wrenn.CodeOf(err) != wrenn.FailedPrecondition {
		t.Errorf("a tree that is too deep: %v", err)
	}
	if list, err := files.List(t.Context(), "deep", 128); err != nil || len(list) != 128 {
		t.Errorf("a list of %d levels, %v", len(list), err)
	}
	if _, err := files.List(t.Context(), "deep", 129); wrenn.CodeOf(err) != wrenn.Invalid {
		t.Errorf("a list of 129 levels: %v", err)
	}
	for i := range tree.MaxEntries + 1 {
		testkit.Must(t, os.Link(filepath.Join(root, "pipe"), filepath.Join(root, fmt.Sprintf("link-%d", i))))
	}
	if _, err := files.List(t.Context(), "/", 1); wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("a list that is too long: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := files.List(ctx, "/", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a list of a caller that is gone: %v", err)
	}
	testkit.Must(t, os.WriteFile(filepath.Join(root, "deep", "\xff"), nil, 0o600))
	if list, err := files.List(t.Context(), "deep", 1); err != nil || len(list) != 2 || list[1].Path != "/deep/\uFFFD" {
		t.Errorf("a name that is no UTF-8: %v, %v", list, err)
	}
}

func TestRemoveAndRename(t *testing.T) {
	files, _ := newTree(t)
	for _, path := range []string{"a/b/c/d", "a/b/e", "x", "y"} {
		write(t, files, path, path)
	}
	if e, err := files.Rename("x", "y"); err != nil || e.Path != "/y" || e.Size != 1 {
		t.Errorf("renamed to %+v, %v", e, err)
	}
	for _, pair := range [][2]string{{"y", "a"}, {"a", "a/b/c"}, {"none", "z"}, {"/", "z"}, {"a", "/"}, {"y", "none/z"}} {
		if _, err := files.Rename(pair[0], pair[1]); err == nil {
			t.Errorf("renamed %v", pair)
		}
	}
	testkit.Must(t, files.Remove(t.Context(), "/a/"))
	if list, err := files.List(t.Context(), "", 9); err != nil || len(list) != 1 {
		t.Errorf("left: %v, %v", list, err)
	}
	for path, want := range map[string]wrenn.Code{"a": wrenn.NotFound, "/": wrenn.Invalid, "a/..": wrenn.Invalid, "y/z": wrenn.Invalid} {
		if err := files.Remove(t.Context(), path); wrenn.CodeOf(err) != want {
			t.Errorf("remove %s: %v, want %s", path, err, want)
		}
	}
}
