package cli

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// picture describes a tree: a line for each name below it.
func picture(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		look := info.Mode().String()
		switch info.Mode().Type() {
		case 0:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			look += fmt.Sprintf(" %d %q", info.ModTime().Unix(), content)
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			look = "link to " + target
		}
		out[name] = look
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// plant makes a tree with content, modes, times and links that a copy could lose.
func plant(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	check(t, os.MkdirAll(at("deep/er"), 0o755))
	check(t, os.Mkdir(at("empty"), 0o711))
	check(t, os.Mkdir(at("closed"), 0o755))
	check(t, os.WriteFile(at("closed/file"), []byte("in a read-only directory"), 0o444))
	check(t, os.WriteFile(at("deep/er/bytes"), []byte{0, 0xff, '\n', 0x1b}, 0o600))
	check(t, os.WriteFile(at("program"), []byte("#!/bin/sh\n"), 0o755))
	check(t, os.WriteFile(at("-n"), nil, 0o644))
	check(t, os.WriteFile(at(strings.Repeat("ü", 120)), []byte("a long name"), 0o644))
	check(t, os.Symlink("deep/er/bytes", at("link")))
	check(t, os.Symlink("/nowhere", at("dangling")))
	check(t, os.Chtimes(at("program"), time.Time{}, time.Unix(1234567890, 0)))
	check(t, os.Chmod(at("closed"), 0o555))
	t.Cleanup(func() { check(t, os.Chmod(at("closed"), 0o755)) })
	return dir
}

func TestTreeRoundTrip(t *testing.T) {
	source, target := plant(t), filepath.Join(t.TempDir(), "new", "copy")
	check(t, syscall.Mkfifo(filepath.Join(source, "pipe"), 0o600))
	var archive bytes.Buffer
	var skipped []string
	check(t, pack(&archive, source, func(name string) { skipped = append(skipped, name) }))
	if diff := cmp.Diff([]string{filepath.Join(source, "pipe")}, skipped); diff != "" {
		t.Errorf("left out (-want +got):\n%s", diff)
	}
	want := picture(t, source)
	delete(want, "pipe")
	for range 2 { // the second copy replaces the first
		check(t, unpack(bytes.NewReader(archive.Bytes()), target, 1<<20, func(name string) { t.Errorf("skipped %s", name) }))
		if diff := cmp.Diff(want, picture(t, target)); diff != "" {
			t.Errorf("the copy (-want +got):\n%s", diff)
		}
		check(t, os.Chmod(filepath.Join(target, "closed"), 0o755))
	}
}

// item is an entry of an archive.
type item struct {
	kind    byte
	name    string
	link    string
	mode    int64
	content string
}

func archive(t *testing.T, items ...item) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, i := range items {
		header := &tar.Header{Typeflag: i.kind, Name: i.name, Linkname: i.link, Mode: i.mode, Size: int64(len(i.content))}
		check(t, w.WriteHeader(header))
		_, err := io.WriteString(w, i.content)
		check(t, err)
	}
	check(t, w.Close())
	return &out
}

// TestHostileTrees: a sandbox may send anything. Nothing outside of the
// destination may change, and files in it get no special mode or kind.
func TestHostileTrees(t *testing.T) {
	file := func(name string) item { return item{kind: tar.TypeReg, name: name, mode: 0o644, content: "hostile"} }
	link := func(name, target string) item { return item{kind: tar.TypeSymlink, name: name, link: target} }
	for name, tc := range map[string]struct {
		items []item
		fails string // "" when it is harmless
	}{
		"parent":                         {[]item{file("../victim")}, "not below"},
		"parent in the middle":           {[]item{file("a/../../victim")}, "not below"},
		"absolute":                       {[]item{file("/OUTSIDE/victim")}, "not below"},
		"through a link":                 {[]item{link("a", ".."), file("a/victim")}, "escapes"},
		"through an absolute link":       {[]item{link("a", "/OUTSIDE"), file("a/victim")}, "escapes"},
		"through two links":              {[]item{link("a", "b/.."), link("b", ".."), file("a/victim")}, "escapes"},
		"onto a link":                    {[]item{link("a", "../victim"), file("a")}, ""},
		"directory on a link":            {[]item{link("a", ".."), {kind: tar.TypeDir, name: "a", mode: 0o777}}, "not a directory"},
		"directory through a link":       {[]item{link("a", ".."), {kind: tar.TypeDir, name: "a/new", mode: 0o777}}, "escapes"},
		"link through a link":            {[]item{link("a", ".."), link("a/new", "x")}, "escapes"},
		"hard link out":                  {[]item{{kind: tar.TypeLink, name: "a", link: "../victim"}, file("a")}, "not a file that was sent"},
		"hard link to a link":            {[]item{link("l", "../victim"), {kind: tar.TypeLink, name: "a", link: "l"}}, "not a file that was sent"},
		"hard link through a link":       {[]item{link("l", ".."), {kind: tar.TypeLink, name: "a", link: "l/victim"}}, "not a file that was sent"},
		"link that replaces a directory": {[]item{{kind: tar.TypeDir, name: "d", mode: 0o755}, link("d", ".."), file("d/victim")}, "is a directory"},
		"device":                         {[]item{{kind: tar.TypeBlock, name: "a", mode: 0o666}, {kind: tar.TypeChar, name: "b"}, {kind: tar.TypeFifo, name: "c"}}, ""},
		"set-user-ID":                    {[]item{{kind: tar.TypeReg, name: "a", mode: 0o7777, content: "x"}, {kind: tar.TypeDir, name: "d", mode: 0o7777}}, ""},
		"too much":                       {[]item{{kind: tar.TypeReg, name: "a", content: strings.Repeat("x", 1025)}}, "larger than the limit"},
		"too much in all":                {[]item{{kind: tar.TypeReg, name: "a", content: strings.Repeat("x", 600)}, {kind: tar.TypeReg, name: "b", content: strings.Repeat("x", 600)}}, "larger than the limit"},
		"name too long":                  {[]item{file(strings.Repeat("d/", 2100) + "f")}, "not below"},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			victim, target := filepath.Join(outside, "victim"), filepath.Join(outside, "target")
			check(t, os.WriteFile(victim, []byte("precious"), 0o640))
			check(t, os.Mkdir(target, 0o755))
			check(t, os.Chmod(outside, 0o750))
			for i := range tc.items {
				tc.items[i].name = strings.Replace(tc.items[i].name, "/OUTSIDE", outside, 1)
				tc.items[i].link = strings.Replace(tc.items[i].link, "/OUTSIDE", outside, 1)
			}
			err := unpack(archive(t, tc.items...), target, 1024, func(string) {})
			if (err == nil) != (tc.fails == "") || err != nil && !strings.Contains(err.Error(), tc.fails) {
				t.Errorf("unpack() = %v, want %q in it", err, tc.fails)
			}
			outsideNow, err := os.ReadDir(outside)
			info, statErr := os.Stat(outside)
			content, readErr := os.ReadFile(victim)
			check(t, errors.Join(err, statErr, readErr))
			if len(outsideNow) != 2 || string(content) != "precious" || info.Mode().Perm() != 0o750 {
				t.Errorf("outside: %v, the victim is %q, the directory %v", outsideNow, content, info.Mode())
			}
			if victimInfo, err := os.Stat(victim); err != nil || victimInfo.Mode().Perm() != 0o640 {
				t.Errorf("the victim's mode: %v, %v", victimInfo.Mode(), err)
			}
			check(t, filepath.WalkDir(target, func(path string, e fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := e.Info()
				if err == nil && info.Mode()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
					t.Errorf("%s is %v", path, info.Mode())
				}
				return err
			}))
		})
	}
}

// sparse is an archive of GNU's format 1.0 for sparse files, which claims to be a file of 1 TiB.
func sparse(t *testing.T) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	record := func(key, value string) string {
		for n := len(key) + len(value) + 3; ; n++ {
			if line := fmt.Sprintf("%d %s=%s\n", n, key, value); len(line) == n {
				return line
			}
		}
	}
	body := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "huge") + record("GNU.sparse.realsize", "1099511627776")
	check(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: int64(len(body))}))
	_, err := io.WriteString(w, body)
	check(t, err)
	check(t, w.Flush())
	raw := out.Bytes()
	raw[156] = tar.TypeXHeader // the first entry is the extended header of the next
	checksum(raw[:512])
	content := "1\n0\n0\n" + strings.Repeat("\x00", 506)
	check(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Size: int64(len(content))}))
	_, err = io.WriteString(w, content)
	check(t, err)
	check(t, w.Close())
	return bytes.NewReader(append(raw[:1024:1024], out.Bytes()[1024:]...))
}

func checksum(header []byte) {
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestSparseTree(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target")
	err := unpack(sparse(t), target, 1<<50, func(string) {})
	if err == nil || !strings.Contains(err.Error(), "sparse") {
		t.Errorf("unpack() = %v", err)
	}
	if got := picture(t, target); len(got) > 0 {
		t.Errorf("made %v", got)
	}
}

func TestCutTree(t *testing.T) {
	whole, err := io.ReadAll(archive(t, item{kind: tar.TypeReg, name: "a", mode: 0o644, content: strings.Repeat("x", 2000)}))
	check(t, err)
	target := filepath.Join(t.TempDir(), "target")
	if err := unpack(bytes.NewReader(whole[:1500]), target, 1<<20, func(string) {}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("unpack() = %v", err)
	}
	if got := picture(t, target); len(got) > 0 {
		t.Errorf("half a file exists: %v", got)
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]byteSize{"1": 1, "64k": 64 << 10, "512M": 512 << 20, "16G": 16 << 30, "2T": 2 << 40, "": 0, "0": 0, "-1": 0, "M": 0, "9999999999T": 0, "1.5G": 0} {
		var got byteSize
		if err := got.UnmarshalText([]byte(text)); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q = %d, %v", text, got, err)
		}
	}
}

func TestLastName(t *testing.T) {
	for dir, want := range map[string]string{"a": "a", "a/": "a", "/x/a": "a", ".": "", "..": "", "a/.": "", "a/..": "", "/": "", "": ""} {
		if got := lastName(dir); got != want {
			t.Errorf("lastName(%q) = %q, want %q", dir, got, want)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	for _, items := range [][]item{
		{{kind: tar.TypeReg, name: "a/b", mode: 0o644, content: "x"}, {kind: tar.TypeSymlink, name: "l", link: ".."}, {kind: tar.TypeReg, name: "l/x"}},
		{{kind: tar.TypeDir, name: "d", mode: 0o700}, {kind: tar.TypeLink, name: "h", link: "d/f"}},
	} {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, i := range items {
			_ = w.WriteHeader(&tar.Header{Typeflag: i.kind, Name: i.name, Linkname: i.link, Mode: i.mode, Size: int64(len(i.content))})
			_, _ = io.WriteString(w, i.content)
		}
		_ = w.Close()
		f.Add(out.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		_ = unpack(bytes.NewReader(data), filepath.Join(outside, "target"), 1<<20, func(string) {})
		if now, err := os.ReadDir(outside); err != nil || len(now) != 1 {
			t.Errorf("outside: %v, %v", now, err)
		}
	})
}
