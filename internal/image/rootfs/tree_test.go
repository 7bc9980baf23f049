package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
)

func openTree(t *testing.T) (*Tree, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree, dir
}

// mine makes the user that runs the test, who need not be root, an entry's owner.
func mine(h tar.Header) tar.Header {
	h.Uid, h.Gid = os.Getuid(), os.Getgid()
	return h
}

type member struct {
	tar.Header
	data string
}

func archive(t *testing.T, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		h := mine(m.Header)
		h.Size = int64(len(m.data))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func file(name, data string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name}, data}
}

func link(kind byte, name, target string) member {
	return member{tar.Header{Typeflag: kind, Name: name, Linkname: target}, ""}
}

func TestExtract(t *testing.T) {
	tree, dir := openTree(t)
	data := archive(t,
		member{tar.Header{Typeflag: tar.TypeDir, Name: "./usr/bin/", Mode: 0o755}, ""},
		link(tar.TypeSymlink, "bin", "usr/bin"),
		member{tar.Header{Typeflag: tar.TypeReg, Name: "/usr/bin/sudo", Mode: 0o4755}, "setuid"},
		file("bin/through-a-link", "x"),
		file("no/parent/was/there", "x"),
		file("again", "old"),
		link(tar.TypeLink, "same", "again"),
		file("again", "new"),
		link(tar.TypeSymlink, "etc/absolute", "/usr/bin/sudo"),
		member{tar.Header{Typeflag: tar.TypeReg, Name: "tagged", PAXRecords: map[string]string{
			"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.trusted.overlay.opaque": "y"}}, ""},
		member{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3}, ""},
		member{tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"}, ""},
	)
	skipped, err := tree.Extract(t.Context(), bytes.NewReader(data), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if skipped != 2 {
		t.Errorf("skipped %d entries, want the device and the pipe", skipped)
	}
	got := map[string]string{}
	for _, name := range []string{"usr/bin/sudo", "usr/bin/through-a-link", "no/parent/was/there", "again", "same"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		got[name] = string(content)
	}
	want := map[string]string{"usr/bin/sudo": "setuid", "usr/bin/through-a-link": "x", "no/parent/was/there": "x", "again": "new", "same": "old"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("content mismatch (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(dir, "usr/bin/sudo")); err != nil || info.Mode() != 0o755|fs.ModeSetuid {
		t.Errorf("mode of sudo = %v, %v", info.Mode(), err)
	}
	if target, err := os.Readlink(filepath.Join(dir, "etc/absolute")); err != nil || target != "/usr/bin/sudo" {
		t.Errorf("link = %q, %v", target, err)
	}
}

func TestExtractRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		members []member
		code    wrenn.Code
	}{
		{"dots", []member{file("../out", "x")}, wrenn.Invalid},
		{"dots inside", []member{file("a/../../out", "x")}, wrenn.Invalid},
		{"a link up and a file through it", []member{link(tar.TypeSymlink, "up", ".."), file("up/out", "x")}, wrenn.Invalid},
		{"an absolute link and a file through it", []member{link(tar.TypeSymlink, "tmp", os.TempDir()), file("tmp/out", "x")}, wrenn.Invalid},
		{"a chain of links", []member{link(tar.TypeSymlink, "a", "b/.."), link(tar.TypeSymlink, "b", "../.."), file("a/x/out", "x")}, wrenn.Invalid},
		{"a directory through a link", []member{link(tar.TypeSymlink, "up", ".."), {tar.Header{Typeflag: tar.TypeDir, Name: "up/out"}, ""}}, wrenn.Invalid},
		{"a link through a link", []member{link(tar.TypeSymlink, "up", ".."), link(tar.TypeSymlink, "up/out", "x")}, wrenn.Invalid},
		{"a hard link up", []member{link(tar.TypeLink, "steal", "../secret")}, wrenn.Invalid},
		{"a hard link through a link", []member{link(tar.TypeSymlink, "up", ".."), link(tar.TypeLink, "steal", "up/secret")}, wrenn.Invalid},
		{"more than fits", []member{file("big", strings.Repeat("x", 100<<10))}, wrenn.Exhausted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, dir := openTree(t)
			secret := filepath.Join(filepath.Dir(dir), "secret")
			if err := os.WriteFile(secret, []byte("s"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := tree.Extract(t.Context(), bytes.NewReader(archive(t, tt.members...)), 100<<10)
			if wrenn.CodeOf(err) != tt.code {
				t.Errorf("Extract() = %v, want %s", err, tt.code)
			}
			outside, err := os.ReadDir(filepath.Dir(dir))
			if err != nil || len(outside) != 2 {
				t.Errorf("outside of the tree are now %v, %v", outside, err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "steal")); !errors.Is(err, fs.ErrNotExist) {
				t.Error("the tree has a link to a file outside")
			}
		})
	}
}

// Replacing a link replaces the link itself, not its target.
func TestExtractReplacesLinks(t *testing.T) {
	tree, dir := openTree(t)
	victim := filepath.Join(filepath.Dir(dir), "victim")
	if err := os.WriteFile(victim, []byte("whole"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := archive(t, link(tar.TypeSymlink, "f", victim), file("f", "new"))
	if _, err := tree.Extract(t.Context(), bytes.NewReader(data), 100<<10); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "whole" {
		t.Errorf("the file outside = %q, %v", got, err)
	}
}

func TestExtractWantsAWholeArchive(t *testing.T) {
	whole := archive(t, file("a", "content"), file("b", "content"))
	for _, size := range []int{0, 512, 700, 1024, 2048, 2048 + 512} {
		tree, _ := openTree(t)
		if _, err := tree.Extract(t.Context(), bytes.NewReader(whole[:size]), 1<<20); wrenn.CodeOf(err) != wrenn.Invalid && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Extract of %d bytes of %d = %v", size, len(whole), err)
		}
	}
}

func FuzzExtract(f *testing.F) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "../../b", Mode: 0o777},
		{Typeflag: tar.TypeDir, Name: "a/c", Mode: 0o755},
		{Typeflag: tar.TypeLink, Name: "d", Linkname: "a/../../e"},
	} {
		h = mine(h)
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, dir := openTree(t)
		_, _ = tree.Extract(t.Context(), bytes.NewReader(data), 1<<16)
		if outside, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(outside) != 1 {
			t.Errorf("outside of the tree are now %v, %v", outside, err)
		}
	})
}

// fill makes the files of a map; a value that begins with > is a link's target.
func fill(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, ">"); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTreeFollowsLinksAsTheGuestWill(t *testing.T) {
	tree, dir := openTree(t)
	fill(t, dir, map[string]string{
		"usr/bin/busybox": "program",
		"bin/sh":          ">/usr/bin/busybox",
		"lib":             ">usr/lib",
		"usr/lib/x":       "x",
		"out":             ">/../../../../etc/passwd",
		"loop":            ">loop",
		"a":               ">b",
		"b":               ">/usr/../usr/bin",
	})
	for name, want := range map[string]bool{
		"/bin/sh": true, "/lib/x": true, "/a/busybox": true, "/out": false, "/loop": false, "/a": false, "/nosuch": false,
	} {
		if got := tree.Executable(name); got != want {
			t.Errorf("Executable(%q) = %v", name, got)
		}
	}
	if got := tree.Find("sh"); got != "/bin/sh" {
		t.Errorf("Find(sh) = %q", got)
	}
	if got := tree.Find("bash"); got != "" {
		t.Errorf("Find(bash) = %q", got)
	}
}

func TestTreeWriteFile(t *testing.T) {
	tree, dir := openTree(t)
	outside := filepath.Join(filepath.Dir(dir), "outside")
	fill(t, dir, map[string]string{
		"usr/sbin/x": "x", "sbin": ">usr/sbin",
		"etc/resolv.conf": ">" + outside,
		"etc/hosts":       ">../run/nowhere",
	})
	for _, name := range []string{"/sbin/tini", "/etc/resolv.conf", "/etc/hosts", "/usr/local/bin/envd"} {
		if err := tree.WriteFile(name, []byte("ours"), 0o751); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"usr/sbin/tini", "etc/resolv.conf", "etc/hosts", "usr/local/bin/envd"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode() != 0o751 {
			t.Errorf("%s = %v, %v", name, info, err)
		}
	}
	if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a link led out of the tree")
	}
}

func TestTreeReadFileIsBounded(t *testing.T) {
	tree, dir := openTree(t)
	fill(t, dir, map[string]string{"big": strings.Repeat("x", maxSmallFile+1), "d/x": ""})
	for _, name := range []string{"/big", "/d"} {
		if _, err := tree.ReadFile(name); err == nil {
			t.Errorf("ReadFile(%q) succeeded", name)
		}
	}
}

func TestSubIDsAreFree(t *testing.T) {
	for _, tt := range []struct{ name, before, want string }{
		{"no file", "", "user:100000:65536\n"},
		{"others", "node:100000:65536\nci:165536:1000\n", "node:100000:65536\nci:165536:1000\nuser:166536:65536\n"},
		{"ours", "user:5:5\n", "user:5:5\n"},
		{"below", "low:1:5\n", "low:1:5\nuser:100000:65536\n"},
		{"nonsense", "a:b:c\nx\nhigh:4294967290:65536\n", "a:b:c\nx\nhigh:4294967290:65536\nuser:100000:65536\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tree, err := OpenTree(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			if tt.before != "" {
				if err := tree.WriteFile("/etc/subuid", []byte(tt.before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := tree.addSubIDs(); err != nil {
				t.Fatal(err)
			}
			if got, err := tree.ReadFile("/etc/subuid"); err != nil || string(got) != tt.want {
				t.Errorf("subuid = %q, %v, want %q", got, err, tt.want)
			}
			if got, err := tree.ReadFile("/etc/subgid"); err != nil || string(got) != "user:100000:65536\n" {
				t.Errorf("subgid = %q, %v", got, err)
			}
		})
	}
}
