package filesystem

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn.dev/internal/guest/account"
	"wrenn.dev/internal/guest/settings"
	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/envd/filesystem"
)

func TestStat(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("dir"))
	write(t, h.in("dir", "file"), "12345")
	if err := os.Chmod(h.in("dir", "file"), 0o640|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	symlink(t, "dir/file", h.in("link"))
	symlink(t, "dir", h.in("dirlink"))
	mkdir(t, h.in("deep/dir"))
	symlink(t, "deep/dir", h.in("deeplink"))
	symlink(t, "../nowhere", h.in("deeplink", "dangling")) // .. is deep
	info, err := os.Lstat(h.in("dir", "file"))
	if err != nil {
		t.Fatal(err)
	}
	file := &pb.EntryInfo{
		Name: "file", Path: h.in("dir", "file"), Type: pb.FileType_FILE_TYPE_FILE, Size: 5, Mode: 0o640,
		Permissions: "-rwSr-----", Owner: "me", Group: "mine", ModifiedTime: timestamppb.New(info.ModTime()),
	}
	for _, path := range []string{h.in("dir", "file"), "~/dir/file", "dir/file"} {
		got, err := h.rpc.Stat(t.Context(), &pb.StatRequest{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(file, got.GetEntry(), protocmp.Transform()); diff != "" {
			t.Errorf("Stat(%s) mismatch (-want +got):\n%s", path, diff)
		}
	}
	for path, want := range map[string]*pb.EntryInfo{
		"link":              {Type: pb.FileType_FILE_TYPE_FILE, Size: 8, Mode: 0o640, Permissions: "lrwxrwxrwx", IsSymlink: true, SymlinkTarget: new(h.in("dir", "file"))},
		"dirlink":           {Type: pb.FileType_FILE_TYPE_DIRECTORY, Mode: 0o755, Permissions: "lrwxrwxrwx", IsSymlink: true, SymlinkTarget: new(h.in("dir"))},
		"dir":               {Type: pb.FileType_FILE_TYPE_DIRECTORY, Mode: 0o755, Permissions: "drwxr-xr-x"},
		"deeplink/dangling": {Type: pb.FileType_FILE_TYPE_SYMLINK, Mode: 0o777, Permissions: "lrwxrwxrwx", IsSymlink: true, SymlinkTarget: new(h.in("deep/nowhere"))},
	} {
		got, err := h.rpc.Stat(t.Context(), &pb.StatRequest{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		e := got.GetEntry()
		if e.GetType() != pb.FileType_FILE_TYPE_FILE {
			e.Size = 0 // the file system's own business
		}
		e = &pb.EntryInfo{Type: e.GetType(), Size: e.GetSize(), Mode: e.GetMode(), Permissions: e.GetPermissions(), IsSymlink: e.GetIsSymlink(), SymlinkTarget: e.SymlinkTarget} //nolint:protogetter // nil tells
		if diff := cmp.Diff(want, e, protocmp.Transform()); diff != "" {
			t.Errorf("Stat(%s) mismatch (-want +got):\n%s", path, diff)
		}
	}
	for path, code := range map[string]connect.Code{
		"nothing":                connect.CodeNotFound,
		"dir/file/below":         connect.CodeNotFound,
		"a\x00b":                 connect.CodeInvalidArgument,
		strings.Repeat("x", 256): connect.CodeInvalidArgument,
	} {
		_, err := h.rpc.Stat(t.Context(), &pb.StatRequest{Path: path})
		testkit.WantRPCCode(t, err, code)
	}
}

func TestPathsAndUsers(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("work"))
	h.settings.Update(func(v *settings.Values) { v.Workdir = "~/work" })
	write(t, h.in("work", "file"), "")
	if _, err := h.rpc.Stat(t.Context(), &pb.StatRequest{Path: "file"}); err != nil {
		t.Errorf("a relative path in the default directory: %v", err)
	}
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Authorization", "Basic bm9ib2R5Og==")
	_, err := h.rpc.Stat(ctx, &pb.StatRequest{Path: "file"})
	testkit.WantRPCCode(t, err, connect.CodeUnauthenticated)
	if err == nil || !strings.Contains(err.Error(), "invalid username: 'nobody'") {
		t.Errorf("error = %v", err)
	}
}

func TestPermissions(t *testing.T) {
	for mode, want := range map[os.FileMode]string{
		0o644:                                   "-rw-r--r--",
		os.ModeDir | os.ModeSticky | 0o777:      "drwxrwxrwt",
		os.ModeDir | os.ModeSticky | 0o776:      "drwxrwxrwT",
		os.ModeSetuid | os.ModeSetgid | 0o755:   "-rwsr-sr-x",
		os.ModeSetgid | 0o644:                   "-rw-r-Sr--",
		os.ModeNamedPipe | 0o600:                "prw-------",
		os.ModeSocket | 0o600:                   "srw-------",
		os.ModeDevice | 0o660:                   "brw-rw----",
		os.ModeDevice | os.ModeCharDevice | 0o6: "c------rw-",
	} {
		if got := permissions(mode); got != want {
			t.Errorf("permissions(%v) = %q, want %q", mode, got, want)
		}
	}
}

func TestListDir(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, dir := range []string{"tree/b/deep/deeper", "tree/a-1", "tree/a"} {
		mkdir(t, h.in(dir))
	}
	write(t, h.in("tree/b/deep/file"), "")
	write(t, h.in("tree/a/\xff"), "")
	symlink(t, "b", h.in("tree/link"))
	symlink(t, "tree", h.in("root"))
	if err := syscall.Mkfifo(h.in("tree/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		path  string
		depth uint32
		want  []string
	}{
		{"depth 0 is 1", "tree", 0, []string{"tree/a", "tree/a-1", "tree/b", "tree/link", "tree/pipe"}},
		{"depth 1", "tree", 1, []string{"tree/a", "tree/a-1", "tree/b", "tree/link", "tree/pipe"}},
		{"a directory before what is in it", "tree", 2, []string{"tree/a", "tree/a/\uFFFD", "tree/a-1", "tree/b", "tree/b/deep", "tree/link", "tree/pipe"}},
		{"all", "tree", 99, []string{"tree/a", "tree/a/\uFFFD", "tree/a-1", "tree/b", "tree/b/deep", "tree/b/deep/deeper", "tree/b/deep/file", "tree/link", "tree/pipe"}},
		{"the prefix asked for", "root/b", 1, []string{"root/b/deep"}},
		{"a link as root", "root", 1, []string{"root/a", "root/a-1", "root/b", "root/link", "root/pipe"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := h.rpc.ListDir(t.Context(), &pb.ListDirRequest{Path: tc.path, Depth: tc.depth})
			if err != nil {
				t.Fatal(err)
			}
			var paths []string
			for _, e := range got.GetEntries() {
				paths = append(paths, strings.TrimPrefix(e.GetPath(), h.home+"/"))
			}
			if diff := cmp.Diff(tc.want, paths); diff != "" {
				t.Errorf("ListDir(%s, %d) mismatch (-want +got):\n%s", tc.path, tc.depth, diff)
			}
		})
	}
	for path, code := range map[string]connect.Code{
		"nothing":          connect.CodeNotFound,
		"tree/b/deep/file": connect.CodeInvalidArgument,
		"tree/pipe":        connect.CodeInvalidArgument,
	} {
		_, err := h.rpc.ListDir(t.Context(), &pb.ListDirRequest{Path: path})
		testkit.WantRPCCode(t, err, code)
	}
}

func TestListIsBounded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, name := range []string{"a/1", "a/2", "b/1", "b/2"} {
		mkdir(t, h.in(name))
	}
	for _, tc := range []struct {
		name  string
		depth uint32
		limit int
		ok    bool
	}{
		{"just right", 2, 6, true},
		{"one directory too long", 1, 1, false},
		{"the tree too large", 2, 5, false},
	} {
		l := lister{ctx: t.Context(), names: h.accounts.Names(), room: tc.limit}
		err := l.list(h.home, tc.depth)
		if tc.ok != (err == nil) || len(l.entries) > tc.limit {
			t.Errorf("%s: %d entries, %v", tc.name, len(l.entries), err)
		}
		if !tc.ok {
			testkit.WantRPCCode(t, h.rpcError(t.Context(), err), connect.CodeResourceExhausted)
		}
	}
}

func TestMakeDir(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	got, err := h.rpc.MakeDir(t.Context(), &pb.MakeDirRequest{Path: "a/b/c"})
	if err != nil {
		t.Fatal(err)
	}
	if e := got.GetEntry(); e.GetPath() != h.in("a/b/c") || e.GetType() != pb.FileType_FILE_TYPE_DIRECTORY || e.GetMode() != 0o755 {
		t.Errorf("entry = %v", e)
	}
	write(t, h.in("file"), "")
	symlink(t, "a", h.in("link"))
	symlink(t, "nowhere", h.in("dangling"))
	for path, code := range map[string]connect.Code{
		"a/b/c":                           connect.CodeAlreadyExists,
		"link":                            connect.CodeAlreadyExists,
		"/":                               connect.CodeAlreadyExists,
		"dangling":                        connect.CodeAlreadyExists,
		"file":                            connect.CodeInvalidArgument,
		"file/x":                          connect.CodeInvalidArgument,
		"file/x/y":                        connect.CodeInvalidArgument,
		"new/" + strings.Repeat("x", 256): connect.CodeInvalidArgument,
	} {
		_, err := h.rpc.MakeDir(t.Context(), &pb.MakeDirRequest{Path: path})
		testkit.WantRPCCode(t, err, code)
	}
	if _, err := os.Lstat(h.in("new")); err == nil {
		t.Error("a MakeDir that failed left a parent")
	}
}

func TestMove(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	write(t, h.in("source"), "new")
	write(t, h.in("target"), "old")
	got, err := h.rpc.Move(t.Context(), &pb.MoveRequest{Source: "source", Destination: "target"})
	if err != nil || got.GetEntry().GetPath() != h.in("target") || read(t, h.in("target")) != "new" {
		t.Fatalf("over a file: %v, %v", got, err)
	}
	if _, err := h.rpc.Move(t.Context(), &pb.MoveRequest{Source: "target", Destination: "p/q/r"}); err != nil || read(t, h.in("p/q/r")) != "new" {
		t.Fatalf("parents: %v", err)
	}
	symlink(t, "p", h.in("link"))
	if _, err := h.rpc.Move(t.Context(), &pb.MoveRequest{Source: "link", Destination: "moved"}); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(h.in("moved")); err != nil || target != "p" {
		t.Errorf("the link was not moved itself: %q, %v", target, err)
	}
	write(t, h.in("file"), "")
	for _, tc := range []struct {
		source, destination string
		code                connect.Code
	}{
		{"nothing", "x/y", connect.CodeNotFound},
		{"", "x/y", connect.CodeInvalidArgument},
		{"file", "", connect.CodeInvalidArgument},
		{"/", "x/y", connect.CodeInvalidArgument},
		{"file", "p", connect.CodeAlreadyExists},
		{"p", "file", connect.CodeInvalidArgument},
		{"p", "p/q/p", connect.CodeInvalidArgument},
		{"file", "p/q/r/s", connect.CodeInvalidArgument},
		{"file", "x/" + strings.Repeat("x", 256), connect.CodeInvalidArgument},
	} {
		_, err := h.rpc.Move(t.Context(), &pb.MoveRequest{Source: tc.source, Destination: tc.destination})
		if connect.CodeOf(err) != tc.code {
			t.Errorf("Move(%s, %.20s) = %v, want %v", tc.source, tc.destination, err, tc.code)
		}
	}
	if _, err := os.Lstat(h.in("x")); err == nil {
		t.Error("a Move that failed left a parent")
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("tree/sub"))
	write(t, h.in("tree/sub/file"), "")
	write(t, h.in("kept"), "")
	symlink(t, "../kept", h.in("tree/link"))
	for _, path := range []string{"tree", "tree", "nothing/at/all", "kept/below"} {
		if _, err := h.rpc.Remove(t.Context(), &pb.RemoveRequest{Path: path}); err != nil {
			t.Errorf("Remove(%s) = %v", path, err)
		}
	}
	if diff := cmp.Diff([]string{"kept"}, names(t, h.home)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	for _, path := range []string{"", "/", "/tmp/.."} {
		_, err := h.rpc.Remove(t.Context(), &pb.RemoveRequest{Path: path})
		testkit.WantRPCCode(t, err, connect.CodeInvalidArgument)
	}
}

// The SDKs speak JSON, and look at codes and names as they are on the wire.
func TestRawJSON(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	call := func(method, message string) (int, string) {
		resp := h.do(t, request(t, "POST", h.base+"/filesystem.Filesystem/"+method, strings.NewReader(message),
			"Content-Type", "application/json", "Connect-Protocol-Version", "1"))
		return resp.status, resp.body
	}
	if status, answer := call("MakeDir", `{"path":"dir"}`); status != 200 || !strings.Contains(answer, `"type":"FILE_TYPE_DIRECTORY"`) || !strings.Contains(answer, `"modifiedTime":"2`) {
		t.Errorf("MakeDir = %d %s", status, answer)
	}
	if status, answer := call("MakeDir", `{"path":"dir"}`); status != 409 || !strings.Contains(answer, `"code":"already_exists"`) {
		t.Errorf("MakeDir again = %d %s", status, answer)
	}
	want := `{"code":"not_found","message":"path '` + h.in("x") + `' does not exist"}`
	if status, answer := call("Stat", `{"path":"x"}`); status != 404 || answer != want {
		t.Errorf("Stat = %d %s, want %s", status, answer, want)
	}
}

func FuzzPath(f *testing.F) {
	f.Add("~/../x", "~")
	f.Add("a//b", "work")
	f.Fuzz(func(t *testing.T, requested, workdir string) {
		c := caller{User: &account.User{Home: "/home/user"}, workdir: workdir}
		path, err := c.path(requested)
		if err != nil {
			return
		}
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
			t.Fatalf("path(%q) in %q = %q", requested, workdir, path)
		}
	})
}
