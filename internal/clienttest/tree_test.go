package clienttest

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev"
	"wrenn.dev/client"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/testkit"
)

func (f *fake) StatFile(_ context.Context, _ service.Caller, _ wrenn.SandboxID, user, path string) (wrenn.FileEntry, error) {
	if path == "none" {
		return wrenn.FileEntry{}, wrenn.Errorf(wrenn.NotFound, "there is no file")
	}
	return wrenn.FileEntry{Path: path, Type: wrenn.Symlink, Size: 3, Mode: 0o777, Owner: user, Group: "staff", ModifiedAt: made, Target: "/x"}, nil
}

// ListFiles has two pages, of the entries 1 and 2.
func (f *fake) ListFiles(ctx context.Context, c service.Caller, id wrenn.SandboxID, list service.ListFiles) ([]wrenn.FileEntry, string, error) {
	e, err := f.StatFile(ctx, c, id, list.User, list.Path+strings.Repeat("/a", list.Levels))
	if list.Page == "" {
		return []wrenn.FileEntry{e}, "2", err
	}
	e.Path, e.Size = list.Page, int64(list.Limit)
	return []wrenn.FileEntry{e}, "", err
}

func (f *fake) MakeDirectory(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string) (wrenn.FileEntry, error) {
	return f.StatFile(ctx, c, id, user, path)
}

func (f *fake) MoveFile(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, from, to string) (wrenn.FileEntry, error) {
	return f.StatFile(ctx, c, id, user, from+">"+to)
}

func (f *fake) RemoveFile(ctx context.Context, c service.Caller, id wrenn.SandboxID, user, path string) error {
	_, err := f.StatFile(ctx, c, id, user, path)
	return err
}

type fakeWatch struct {
	changes []wrenn.FileChange
	end     error
}

func (w *fakeWatch) Next() (wrenn.FileChange, error) {
	if len(w.changes) == 0 {
		return wrenn.FileChange{}, w.end
	}
	next := w.changes[0]
	w.changes = w.changes[1:]
	return next, nil
}

func (w *fakeWatch) Close() {}

func (f *fake) WatchFiles(_ context.Context, _ service.Caller, _ wrenn.SandboxID, user, path string, recursive bool) (service.FileWatch, error) {
	w := &fakeWatch{end: wrenn.Errorf(wrenn.CutByPause, "it was paused")}
	if recursive {
		w.changes = []wrenn.FileChange{{Path: user + "\n" + path, Type: wrenn.FileRenamed}}
	}
	return w, nil
}

func (f *fake) Processes(context.Context, service.Caller, wrenn.SandboxID) ([]wrenn.ProcessInfo, error) {
	return []wrenn.ProcessInfo{{PID: 7, Cmd: "sh", Args: []string{"-c", "x"}, Cwd: "/srv", Tag: "t"}}, nil
}

func (f *fake) SignalProcess(_ context.Context, _ service.Caller, _ wrenn.SandboxID, pid int, signal wrenn.Signal) error {
	return wrenn.Errorf(wrenn.NotFound, "no process %d for %s", pid, signal)
}

func TestFileTree(t *testing.T) {
	c := serve(t, &fake{})
	id, as := boxID, client.FileOptions{User: "bob"}
	entry := func(path string, size int64) client.FileEntry {
		return client.FileEntry{Path: path, Type: "symlink", Size: size, Mode: 0o777, Owner: "bob", Group: "staff", ModifiedAt: made, Target: "/x"}
	}
	for name, call := range map[string]func() (*client.FileEntry, error){
		"a b":   func() (*client.FileEntry, error) { return c.File(t.Context(), id, "a b", as) },
		"ä":     func() (*client.FileEntry, error) { return c.CreateDirectory(t.Context(), id, "ä", as) },
		"/1>/2": func() (*client.FileEntry, error) { return c.MoveFile(t.Context(), id, "/1", "/2", as) },
	} {
		got, err := call()
		testkit.Must(t, err)
		if diff := cmp.Diff(entry(name, 3), *got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	testkit.Must(t, c.DeleteFile(t.Context(), id, "/a", as))
	if err := c.DeleteFile(t.Context(), id, "none", as); client.CodeOf(err) != client.NotFound {
		t.Errorf("delete what does not exist: %v", err)
	}
	if _, err := c.File(t.Context(), id, "\xff", as); client.CodeOf(err) != client.InvalidRequest {
		t.Errorf("a name that is no text: %v", err)
	}
	var listed []client.FileEntry
	for e, err := range c.Files(t.Context(), id, "/d", client.ListFiles{FileOptions: as, Depth: 2, PageSize: 9}) {
		testkit.Must(t, err)
		listed = append(listed, e)
	}
	if diff := cmp.Diff([]client.FileEntry{entry("/d/a/a", 3), entry("2", 9)}, listed); diff != "" {
		t.Errorf("listed (-want +got):\n%s", diff)
	}
	for _, err := range c.Files(t.Context(), id, "\xff", client.ListFiles{}) {
		if client.CodeOf(err) != client.InvalidRequest {
			t.Errorf("list a name that is no text: %v", err)
		}
	}
}

func TestWatchFiles(t *testing.T) {
	c := serve(t, &fake{})
	watch, err := c.WatchFiles(t.Context(), boxID, "/d", client.WatchFiles{FileOptions: client.FileOptions{User: "bob"}, Recursive: true})
	testkit.Must(t, err)
	got, err := watch.Next()
	testkit.Must(t, err)
	if want := (client.FileChange{Path: "bob\n/d", Type: "rename"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := watch.Next(); client.CodeOf(err) != client.CutByPause || err.Error() != "it was paused" {
		t.Errorf("the end is %v", err)
	}
	if _, err := watch.Next(); client.CodeOf(err) != client.Unavailable {
		t.Errorf("after the end: %v", err)
	}
	testkit.Must(t, watch.Close())
}

func TestProcesses(t *testing.T) {
	c := serve(t, &fake{})
	got, err := c.Processes(t.Context(), boxID)
	testkit.Must(t, err)
	if diff := cmp.Diff([]client.Process{{PID: 7, Cmd: "sh", Args: []string{"-c", "x"}, Cwd: "/srv", Tag: "t"}}, got); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
	if err := c.SignalProcess(t.Context(), boxID, 8, client.SIGKILL); client.CodeOf(err) != client.NotFound || err.Error() != "no process 8 for SIGKILL" {
		t.Errorf("signal: %v", err)
	}
}

// WatchSandboxes has a snapshot of two parts and a change; then the server stops.
func (f *fake) WatchSandboxes(_ context.Context, _ service.Caller, send func(service.Changes) error) error {
	for _, changes := range []service.Changes{
		{First: true, Sandboxes: []wrenn.Sandbox{*box(boxID)}}, {}, {Dropped: []wrenn.SandboxID{boxID}},
	} {
		if err := send(changes); err != nil {
			return err
		}
	}
	return io.EOF
}

func TestEvents(t *testing.T) {
	c := serve(t, &fake{})
	var snapshots []bool
	var ids, dropped []string
	var end error
	for changes, err := range c.Events(t.Context()) {
		if end = err; err != nil {
			break
		}
		snapshots = append(snapshots, changes.Snapshot)
		dropped = append(dropped, changes.Dropped...)
		for i := range changes.Sandboxes {
			ids = append(ids, changes.Sandboxes[i].ID)
		}
	}
	if client.CodeOf(end) != client.Unavailable || !slices.Equal(snapshots, []bool{true, false}) || !slices.Equal(ids, []string{boxID}) || !slices.Equal(dropped, ids) {
		t.Errorf("got snapshots %v, sandboxes %v, dropped %v, %v", snapshots, ids, dropped, end)
	}
}
