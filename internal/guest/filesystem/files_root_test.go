//go:build root

package filesystem

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"

	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/envd/filesystem"
)

const asOther = "Basic b3RoZXI6" // other:

// ids is "uid:gid" of each path.
func ids(t *testing.T, paths ...string) []string {
	t.Helper()
	var all []string
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		all = append(all, fmt.Sprintf("%d:%d", stat.Uid, stat.Gid))
	}
	return all
}

// newOpenHouse is newHouse with a home in which everybody may make files.
func newOpenHouse(tb testing.TB) *house {
	tb.Helper()
	h := newHouse(tb)
	if err := errors.Join(os.Chmod(filepath.Dir(h.home), 0o755), os.Chmod(h.home, 0o777)); err != nil {
		tb.Fatal(err)
	}
	return h
}

func TestOwnership(t *testing.T) {
	t.Parallel()
	h := newOpenHouse(t)
	const other, root = "12345:12346", "0:0"
	answered(t, h.put(t, "u/p/file", strings.NewReader("x"), "Authorization", asOther))
	answered(t, h.do(t, request(t, http.MethodPost, h.filesURL("q/file")+"&username=other", strings.NewReader("x"), "Content-Type", "application/octet-stream")))
	write(t, h.in("mine"), "")
	ctx := asOtherUser(t)
	made, err := h.rpc.MakeDir(ctx, &pb.MakeDirRequest{Path: "d/e"})
	if err != nil {
		t.Fatal(err)
	}
	if e := made.GetEntry(); e.GetOwner() != "other" || e.GetGroup() != "others" {
		t.Errorf("entry = %v", e)
	}
	if _, err := h.rpc.Move(ctx, &pb.MoveRequest{Source: "mine", Destination: "m/n/moved"}); err != nil {
		t.Fatal(err)
	}
	got := ids(t, h.in("u"), h.in("u/p"), h.in("u/p/file"), h.in("q/file"), h.in("d"), h.in("d/e"), h.in("m/n"), h.in("m/n/moved"))
	want := []string{other, other, other, other, other, other, other, root}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}

	// The next upload is its user's, and takes away what a new owner must not inherit.
	if err := os.Chmod(h.in("u/p/file"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	answered(t, h.put(t, "u/p/file", strings.NewReader("y")))
	info, err := os.Stat(h.in("u/p/file"))
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("file = %v, %v", info.Mode(), err)
	}
	if diff := cmp.Diff([]string{root}, ids(t, h.in("u/p/file"))); diff != "" {
		t.Errorf("owner (-want +got):\n%s", diff)
	}
}

// asOtherUser is a context for RPCs of the user other.
func asOtherUser(t *testing.T) context.Context {
	t.Helper()
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Authorization", asOther)
	return ctx
}

// newRootsFiles adds to an open house what only root may read or change.
func newRootsFiles(t *testing.T) *house {
	t.Helper()
	h := newOpenHouse(t)
	mkdir(t, h.in("private"))
	mkdir(t, h.in("shown"))
	write(t, h.in("private/file"), "secret")
	write(t, h.in("shown/file"), "old")
	write(t, h.in("file"), "old")
	symlink(t, h.in("private/file"), h.in("link"))
	symlink(t, h.in("shown"), h.in("dirlink"))
	if err := errors.Join(os.Chmod(h.in("private"), 0o700), os.Chmod(h.in("private/file"), 0o600)); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestFilesAreUsers(t *testing.T) {
	t.Parallel()
	h := newRootsFiles(t)
	for _, path := range []string{"private/file", "link", "/etc/shadow", "/proc/1/environ", "/proc/1/mem"} {
		wantError(t, h.do(t, request(t, "GET", h.filesURL(path), nil, "Authorization", asOther)), 403, "permission denied")
		wantError(t, h.do(t, request(t, "GET", h.filesURL(path)+"&username=other", nil)), 403, "permission denied")
	}
	for _, path := range []string{
		"private/file", "link", "private/new", "shown/new", "shown/deep/new", "dirlink/new", "shown/file", "file", "/etc/wrenn-test", "/proc/sys/kernel/hostname",
	} {
		wantError(t, h.put(t, path, strings.NewReader("new"), "Authorization", asOther), 403, "permission denied")
	}
	if got := []string{read(t, h.in("private/file")), read(t, h.in("shown/file")), read(t, h.in("file"))}; !slices.Equal(got, []string{"secret", "old", "old"}) {
		t.Errorf("root's files are %q", got)
	}
	if diff := cmp.Diff([][]string{{"file"}, {"file"}}, [][]string{names(t, h.in("private")), names(t, h.in("shown"))}); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	// The user's own are.
	answered(t, h.put(t, "mine", strings.NewReader("1"), "Authorization", asOther))
	answered(t, h.put(t, "mine", strings.NewReader("2"), "Authorization", asOther))
	if got := h.do(t, request(t, "GET", h.filesURL("mine"), nil, "Authorization", asOther)); got.body != "2" {
		t.Errorf("the user's own file is %+v", got)
	}
	if got := h.do(t, request(t, "GET", h.filesURL("/proc/self/status"), nil, "Authorization", asOther)); !strings.Contains(got.body, "Uid:") {
		t.Errorf("a computed file that all may read is %+v", got)
	}
}

func TestTreeIsUsers(t *testing.T) {
	t.Parallel()
	h := newRootsFiles(t)
	ctx := asOtherUser(t)
	for name, call := range map[string]func() error{
		"stat":        func() error { _, err := h.rpc.Stat(ctx, &pb.StatRequest{Path: "private/file"}); return err },
		"list":        func() error { _, err := h.rpc.ListDir(ctx, &pb.ListDirRequest{Path: "private"}); return err },
		"list below":  func() error { _, err := h.rpc.ListDir(ctx, &pb.ListDirRequest{Path: ".", Depth: 2}); return err },
		"make":        func() error { _, err := h.rpc.MakeDir(ctx, &pb.MakeDirRequest{Path: "shown/dir"}); return err },
		"make below":  func() error { _, err := h.rpc.MakeDir(ctx, &pb.MakeDirRequest{Path: "dirlink/a/b"}); return err },
		"remove":      func() error { _, err := h.rpc.Remove(ctx, &pb.RemoveRequest{Path: "shown/file"}); return err },
		"remove tree": func() error { _, err := h.rpc.Remove(ctx, &pb.RemoveRequest{Path: "private"}); return err },
		"move from": func() error {
			_, err := h.rpc.Move(ctx, &pb.MoveRequest{Source: "shown/file", Destination: "got"})
			return err
		},
		"move to": func() error {
			_, err := h.rpc.Move(ctx, &pb.MoveRequest{Source: "link", Destination: "shown/got"})
			return err
		},
		"watch": func() error {
			_, err := h.rpc.CreateWatcher(ctx, &pb.CreateWatcherRequest{Path: "private"})
			return err
		},
		"watch below": func() error {
			_, err := h.rpc.CreateWatcher(ctx, &pb.CreateWatcherRequest{Path: ".", Recursive: true})
			return err
		},
	} {
		if err := call(); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %v, want permission_denied", name, err)
		}
	}
	if diff := cmp.Diff([][]string{{"file"}, {"file"}}, [][]string{names(t, h.in("private")), names(t, h.in("shown"))}); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// A file that the user may write to, in a directory where it may not be
// replaced, is written in place and stays its owner's.
func TestUploadInPlace(t *testing.T) {
	t.Parallel()
	h := newRootsFiles(t)
	write(t, h.in("shown/log"), "a longer text")
	mkdir(t, h.in("sticky"))
	write(t, h.in("sticky/log"), "a longer text")
	for path, mode := range map[string]os.FileMode{"shown/log": 0o666, "sticky/log": 0o666, "sticky": 0o777 | os.ModeSticky} {
		if err := os.Chmod(h.in(path), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"shown/log", "sticky/log"} {
		answered(t, h.put(t, path, strings.NewReader("new"), "Authorization", asOther))
		if got := read(t, h.in(path)); got != "new" {
			t.Errorf("%s is %q", path, got)
		}
	}
	if diff := cmp.Diff([]string{"0:0", "0:0"}, ids(t, h.in("shown/log"), h.in("sticky/log"))); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"log"}, names(t, h.in("sticky"))); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), stagedPrefix+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// BenchmarkUserUploadSmall is BenchmarkUploadSmall of a user that is not root.
func BenchmarkUserUploadSmall(b *testing.B) {
	h := newOpenHouse(b)
	for b.Loop() {
		wantStatus(b, h.do(b, request(b, http.MethodPost, h.filesURL("file"), zeros(1024), "Content-Type", "application/octet-stream", "Authorization", asOther)), 200)
	}
}

// BenchmarkUserUpload is BenchmarkUpload of a user that is not root.
func BenchmarkUserUpload(b *testing.B) {
	h := newOpenHouse(b)
	b.SetBytes(benchSize)
	for b.Loop() {
		req := request(b, http.MethodPost, h.filesURL("file"), zeros(benchSize), "Content-Type", "application/octet-stream", "Authorization", asOther)
		req.ContentLength = benchSize
		wantStatus(b, h.do(b, req), 200)
	}
}

// BenchmarkUserDownloadSmall is a download of 1 KiB for a user, which "me" and "other" compare.
func BenchmarkUserDownloadSmall(b *testing.B) {
	h := newOpenHouse(b)
	wantStatus(b, h.do(b, request(b, http.MethodPost, h.filesURL("file"), zeros(1024), "Content-Type", "application/octet-stream")), 200)
	for _, user := range []string{"me", "other"} {
		b.Run(user, func(b *testing.B) {
			for b.Loop() {
				wantStatus(b, h.do(b, request(b, http.MethodGet, h.filesURL("file")+"&username="+user, nil)), 200)
			}
		})
	}
}

// mount mounts a file system for the length of a test.
func mount(t *testing.T, kind, dir, options string) {
	t.Helper()
	mkdir(t, dir)
	if err := unix.Mount("none", dir, kind, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mount(t, "tmpfs", h.in("small"), "size=1m")
	write(t, h.in("small/file"), "old")
	contentType, two := form(t, "small/new/one", "fits", "small/new/two", strings.Repeat("x", 2<<20))
	for name, req := range map[string]*http.Request{
		"raw":  request(t, "POST", h.filesURL("small/file"), repeat("x", 2<<20), "Content-Type", "application/octet-stream"),
		"bomb": request(t, "POST", h.filesURL("small/file"), zipped(t, make([]byte, 64<<20)), "Content-Type", "application/octet-stream", "Content-Encoding", "gzip"),
		"form": request(t, "POST", h.filesURL(""), two, "Content-Type", contentType),
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, h.do(t, req), 507, "no space left")
			if diff := cmp.Diff([]string{"file"}, names(t, h.in("small"))); diff != "" || read(t, h.in("small/file")) != "old" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
		})
	}
	answered(t, h.put(t, "small/file", strings.NewReader("new"))) // the space came back
}

func TestMoveAcrossFileSystems(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mount(t, "tmpfs", h.in("mnt"), "size=1m")
	mkdir(t, h.in("tree/sub"))
	write(t, h.in("tree/sub/file"), "content")
	symlink(t, "sub/file", h.in("tree/link"))
	if err := os.Lchown(h.in("tree/sub/file"), 12345, 12346); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.in("tree/sub/file"), 0o750|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	listed := func(dir string) []*pb.EntryInfo {
		got, err := h.rpc.ListDir(t.Context(), &pb.ListDirRequest{Path: dir, Depth: 9})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range got.GetEntries() {
			e.Path = strings.TrimPrefix(e.GetPath(), h.in(dir))
			e.SymlinkTarget = nil // absolute
			if e.GetType() == pb.FileType_FILE_TYPE_DIRECTORY {
				e.Size = 0 // the file system's own business
			}
		}
		return got.GetEntries()
	}
	want := listed("tree")
	for _, step := range [][2]string{{"tree", "mnt/new/tree"}, {"mnt/new/tree", "back/again"}} {
		if _, err := h.rpc.Move(t.Context(), &pb.MoveRequest{Source: step[0], Destination: step[1]}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, listed(step[1]), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step[1], diff)
		}
		if _, err := os.Lstat(h.in(step[0])); err == nil {
			t.Errorf("%s is still there", step[0])
		}
	}
	if diff := cmp.Diff([]string{"again"}, names(t, h.in("back"))); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// A move that fails in the middle leaves the source whole, and nothing else.
func TestMoveAcrossFileSystemsFails(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mount(t, "tmpfs", h.in("mnt"), "size=1m")
	mkdir(t, h.in("big"))
	write(t, h.in("big/1"), strings.Repeat("x", 500_000))
	write(t, h.in("big/2"), strings.Repeat("x", 800_000))
	mkdir(t, h.in("odd"))
	write(t, h.in("odd/1"), "")
	if err := syscall.Mkfifo(h.in("odd/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, h.in("mnt/file"), "old")
	for _, tc := range []struct {
		source, destination string
		code                connect.Code
	}{
		{"big", "mnt/new/big", connect.CodeResourceExhausted},
		{"odd", "mnt/new/odd", connect.CodeInvalidArgument},
		{"big/1", "mnt", connect.CodeAlreadyExists},
		{"odd/1", "mnt/file/x", connect.CodeInvalidArgument},
	} {
		_, err := h.rpc.Move(t.Context(), &pb.MoveRequest{Source: tc.source, Destination: tc.destination})
		testkit.WantRPCCode(t, err, tc.code)
	}
	got := [][]string{names(t, h.in("mnt")), names(t, h.in("big")), names(t, h.in("odd"))}
	if diff := cmp.Diff([][]string{{"file"}, {"1", "2"}, {"1", "pipe"}}, got); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// Settings of the kernel are written in place, in one piece.
func TestUploadComputedFile(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	const path = "/proc/self/comm" // ours alone, and it can be put back
	old := read(t, path)
	answered(t, h.put(t, path, strings.NewReader("renamed")))
	if got := read(t, path); got != "renamed\n" {
		t.Errorf("%s = %q", path, got)
	}
	if err := os.WriteFile(path, []byte(strings.TrimSpace(old)), 0); err != nil {
		t.Error(err)
	}
	wantError(t, h.put(t, "/proc/nothing", strings.NewReader("x")), 404, "does not exist")
}
