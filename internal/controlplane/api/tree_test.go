package api

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

const fileJSON = `{"path":"/a","type":"symlink","size":2,"mode":511,"owner":"bob","group":"staff","modified_at":"2026-01-02T15:04:05Z","target":"/b"}`

// fileAt is an entry of a sandbox in which "/none" does not exist.
func (s *stub) fileAt(c service.Caller, id wrenn.SandboxID, user, path string) (wrenn.FileEntry, error) {
	if _, err := s.find(c, id); err != nil {
		return wrenn.FileEntry{}, err
	}
	if path == "/none" {
		return wrenn.FileEntry{}, wrenn.Errorf(wrenn.NotFound, "there is no %s", path)
	}
	e := wrenn.FileEntry{Path: path, Type: wrenn.Symlink, Size: 2, Mode: 0o777, Owner: user, Group: "staff", ModifiedAt: testTime, Target: "/b"}
	return e, nil
}

func (s *stub) StatFile(_ context.Context, c service.Caller, id wrenn.SandboxID, user, path string) (wrenn.FileEntry, error) {
	return s.fileAt(c, id, user, path)
}

func (s *stub) ListFiles(_ context.Context, c service.Caller, id wrenn.SandboxID, list service.ListFiles) ([]wrenn.FileEntry, string, error) {
	e, err := s.fileAt(c, id, list.User, list.Path)
	if err != nil || list.Path == "/empty" {
		return nil, "", err
	}
	e.Path, e.Size = "/a"+list.Page, int64(1000*list.Limit+list.Levels)
	return []wrenn.FileEntry{e}, "next", nil
}

func (s *stub) MakeDirectory(_ context.Context, c service.Caller, id wrenn.SandboxID, user, path string) (wrenn.FileEntry, error) {
	if path == "/there" {
		return wrenn.FileEntry{}, wrenn.Errorf(wrenn.AlreadyExists, "it exists")
	}
	return s.fileAt(c, id, user, path)
}

func (s *stub) MoveFile(_ context.Context, c service.Caller, id wrenn.SandboxID, user, from, to string) (wrenn.FileEntry, error) {
	if _, err := s.fileAt(c, id, user, from); err != nil {
		return wrenn.FileEntry{}, err
	}
	return s.fileAt(c, id, user, to)
}

func (s *stub) RemoveFile(_ context.Context, c service.Caller, id wrenn.SandboxID, user, path string) error {
	_, err := s.fileAt(c, id, user, path)
	return err
}

// changes is a watch with these changes, and then an error.
type changes struct {
	ctx  context.Context //nolint:containedctx // of WatchFiles
	list []wrenn.FileChange
	end  error // nil: it waits for the end of ctx
}

func (c *changes) Next() (wrenn.FileChange, error) {
	if len(c.list) > 0 {
		next := c.list[0]
		c.list = c.list[1:]
		return next, nil
	}
	if c.end != nil {
		return wrenn.FileChange{}, c.end
	}
	<-c.ctx.Done()
	return wrenn.FileChange{}, context.Cause(c.ctx)
}

func (c *changes) Close() {}

func (s *stub) WatchFiles(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string, recursive bool) (service.FileWatch, error) {
	if _, err := s.fileAt(c, id, user, path); err != nil {
		return nil, err
	}
	w := &changes{ctx: ctx, list: []wrenn.FileChange{{Path: "x\ny", Type: wrenn.FileCreated}}, end: io.EOF}
	switch {
	case path == "/paused":
		w.end = wrenn.Errorf(wrenn.CutByPause, "it was paused")
	case path == "/quiet":
		w.list, w.end = nil, nil
	case recursive:
		w.list = append(w.list, wrenn.FileChange{Path: "x/z", Type: wrenn.FileRemoved})
	}
	return w, nil
}

func (s *stub) Processes(_ context.Context, c service.Caller, id wrenn.SandboxID) ([]wrenn.ProcessInfo, error) {
	if _, err := s.find(c, id); err != nil || s.bare {
		return nil, err
	}
	return []wrenn.ProcessInfo{{PID: 7, Cmd: "true"}, {PID: 9, Cmd: "sh", Args: []string{"-c", "x"}, Cwd: "/srv", Tag: "t"}}, nil
}

func (s *stub) SignalProcess(_ context.Context, c service.Caller, id wrenn.SandboxID, pid int, signal wrenn.Signal) error {
	if _, err := s.find(c, id); err != nil {
		return err
	}
	if pid != 7 || signal != wrenn.SIGKILL {
		return wrenn.Errorf(wrenn.NotFound, "no process %d", pid)
	}
	return nil
}

// fileCalls are errors of an operation on a file at a path of the query.
func fileCalls(method, path string) []call {
	to := func(query string) string { return path + "?path=" + query }
	return append(sandboxCalls(method, to("%2Fa"), "", ""),
		call{name: "no path", method: method, path: path, status: 400, code: "invalid_request"},
		call{name: "empty path", method: method, path: to(""), status: 400, code: "invalid_request"},
		call{name: "NUL", method: method, path: to("a%00"), status: 400, code: "invalid_request"},
		call{name: "long path", method: method, path: to(strings.Repeat("a", 5000)), status: 400, code: "invalid_request"},
		call{name: "wrong user", method: method, path: to("a") + "&user=a:b", status: 400, code: "invalid_request"},
		call{name: "no file", method: method, path: to("%2Fnone"), status: 404, code: "not_found"},
		call{name: "reader", method: method, path: to("a"), key: readerKey, status: 403, code: "forbidden"})
}

func treeCalls() map[string][]call {
	const one = "?path=%2Fa&user=bob"
	files, processes := at+"/files", at+"/processes"
	listed := func(path, size string) string {
		return "[" + strings.NewReplacer(`"/a"`, `"`+path+`"`, `"size":2`, `"size":`+size, `"bob"`, `""`).Replace(fileJSON) + "]"
	}
	moved := strings.Replace(fileJSON, `"bob"`, `""`, 1)
	return map[string][]call{
		"getFile":    append(fileCalls("GET", files), call{name: "ok", method: "GET", path: files + one, status: 200, want: fileJSON}),
		"deleteFile": append(fileCalls("DELETE", files), call{name: "ok", method: "DELETE", path: files + one, status: 204}),
		"listFiles": append(fileCalls("GET", files+"/list"),
			call{name: "ok", method: "GET", path: files + "/list?path=%2F", status: 200, want: listed("/a", "0"), check: func(t *testing.T, _ *stub, r *http.Response) {
				t.Helper()
				if got := r.Header.Get("X-Next-Page"); got != "next" {
					t.Errorf("X-Next-Page = %q", got)
				}
			}},
			call{name: "another page", method: "GET", path: files + "/list?path=%2F&depth=9&limit=3&page=b", status: 200, want: listed("/ab", "3009")},
			call{name: "empty", method: "GET", path: files + "/list?path=%2Fempty", status: 200, want: "[]"},
			call{name: "no depth", method: "GET", path: files + "/list?path=%2F&depth=0", status: 400, code: "invalid_request"},
			call{name: "too deep", method: "GET", path: files + "/list?path=%2F&depth=129", status: 400, code: "invalid_request"},
			call{name: "too many", method: "GET", path: files + "/list?path=%2F&limit=10001", status: 400, code: "invalid_request"}),
		"createDirectory": append(fileCalls("PUT", files+"/directory"),
			call{name: "ok", method: "PUT", path: files + "/directory" + one, status: 200, want: fileJSON},
			call{name: "exists", method: "PUT", path: files + "/directory?path=%2Fthere", status: 409, code: "conflict"}),
		"moveFile": append(append(jsonCalls(files+"/move"), sandboxCalls("POST", files+"/move", `{"from":"/x","to":"/a"}`, "")...),
			call{name: "ok", method: "POST", path: files + "/move", body: `{"from":"/x","to":"/a","user":"bob"}`, status: 200, want: fileJSON},
			call{name: "by default", method: "POST", path: files + "/move", body: `{"from":"/x","to":"/a"}`, status: 200, want: moved},
			call{name: "no file", method: "POST", path: files + "/move", body: `{"from":"/none","to":"/a"}`, status: 404, code: "not_found"},
			call{name: "nowhere", method: "POST", path: files + "/move", body: `{"from":"/x"}`, status: 400, code: "invalid_request"},
			call{name: "empty", method: "POST", path: files + "/move", body: `{"from":"","to":"/a"}`, status: 400, code: "invalid_request"}),
		"watchFiles": append(fileCalls("GET", files+"/watch"),
			call{name: "ok", method: "GET", path: files + "/watch" + one, status: 200,
				want: "event: start\ndata: {}\n\nevent: change\ndata: {\"path\":\"x\\ny\",\"type\":\"create\"}\n\n" +
					"event: end\ndata: {\"code\":\"not_found\",\"message\":\"the directory was removed\"}\n\n"},
			call{name: "recursive", method: "GET", path: files + "/watch?path=%2Fa&recursive=true", status: 200,
				want: "event: start\ndata: {}\n\nevent: change\ndata: {\"path\":\"x\\ny\",\"type\":\"create\"}\n\nevent: change\ndata: {\"path\":\"x/z\",\"type\":\"remove\"}\n\n" +
					"event: end\ndata: {\"code\":\"not_found\",\"message\":\"the directory was removed\"}\n\n"},
			call{name: "paused", method: "GET", path: files + "/watch?path=%2Fpaused", status: 200,
				want: "event: start\ndata: {}\n\nevent: change\ndata: {\"path\":\"x\\ny\",\"type\":\"create\"}\n\nevent: end\ndata: {\"code\":\"paused\",\"message\":\"it was paused\"}\n\n"},
			call{name: "neither", method: "GET", path: files + "/watch?path=%2Fa&recursive=perhaps", status: 400, code: "invalid_request"}),
		"listProcesses": append(sandboxCalls("GET", processes, "", ""),
			call{name: "ok", method: "GET", path: processes, status: 200, want: `[{"pid":7,"cmd":"true","args":[]},{"pid":9,"cmd":"sh","args":["-c","x"],"cwd":"/srv","tag":"t"}]`},
			call{name: "none", service: &stub{bare: true}, method: "GET", path: processes, status: 200, want: `[]`},
			call{name: "reader", method: "GET", path: processes, key: readerKey, status: 403, code: "forbidden"}),
		"signalProcess": append(append(jsonCalls(processes+"/7/signal"), sandboxCalls("POST", processes+"/7/signal", `{"signal":"SIGKILL"}`, "")...),
			call{name: "ok", method: "POST", path: processes + "/7/signal", body: `{"signal":"SIGKILL"}`, status: 204},
			call{name: "no process", method: "POST", path: processes + "/8/signal", body: `{"signal":"SIGKILL"}`, status: 404, code: "not_found"},
			call{name: "no number", method: "POST", path: processes + "/x/signal", body: `{"signal":"SIGKILL"}`, status: 404, code: "not_found"},
			call{name: "zero", method: "POST", path: processes + "/0/signal", body: `{"signal":"SIGKILL"}`, status: 404, code: "not_found"},
			call{name: "no signal", method: "POST", path: processes + "/7/signal", body: `{}`, status: 400, code: "invalid_request"},
			call{name: "another signal", method: "POST", path: processes + "/7/signal", body: `{"signal":"SIGSTOP"}`, status: 400, code: "invalid_request"}),
	}
}

// TestWatchEndsWithTheSession: a watch without changes is told from one that is cut off
// by comments, and does not outlive the session.
func TestWatchEndsWithTheSession(t *testing.T) {
	server := serve(t, &stub{sessionUses: 3}, func(s *Server) { s.times.comment = time.Millisecond })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+server.address+at+"/files/watch?path=%2Fquiet", nil)
	testkit.Must(t, err)
	req.Header = browserHeader()
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	want := "event: start\ndata: {}\n\n:\n\n:\n\n:\n\nevent: end\ndata: {\"code\":\"unauthorized\",\"message\":\"the session has ended\"}\n\n"
	if string(text) != want {
		t.Errorf("got %q, want %q", text, want)
	}
}
