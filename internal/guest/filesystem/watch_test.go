package filesystem

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wrenn.dev/internal/testkit"
	pb "wrenn.dev/proto/gen/envd/filesystem"
)

// shown prints events shortly: "create a/b".
func shown(events []*pb.FilesystemEvent) []string {
	var all []string
	for _, e := range events {
		kind := strings.ToLower(strings.TrimPrefix(e.GetType().String(), "EVENT_TYPE_"))
		all = append(all, kind+" "+e.GetName())
	}
	return all
}

// observer is a client of WatchDir.
type observer struct {
	stream *connect.ServerStreamForClient[pb.WatchDirResponse]
	stop   context.CancelFunc
}

// watchDir starts to watch and returns when the start event came.
func watchDir(t *testing.T, h *house, req *pb.WatchDirRequest) *observer {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	t.Cleanup(stop)
	stream, err := h.rpc.WatchDir(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		t.Fatalf("first message = %v, %v", stream.Msg(), stream.Err())
	}
	return &observer{stream: stream, stop: stop}
}

// until returns the events up to the one that reads like last.
func (o *observer) until(t *testing.T, last string) []*pb.FilesystemEvent {
	t.Helper()
	var events []*pb.FilesystemEvent
	for o.stream.Receive() {
		e := o.stream.Msg().GetFilesystem()
		if e == nil {
			continue
		}
		events = append(events, e)
		if shown(events[len(events)-1:])[0] == last {
			return events
		}
	}
	t.Fatalf("%q did not come, but %q: %v", last, shown(events), o.stream.Err())
	return nil
}

// wantOnce checks that each of the events came, once.
func wantOnce(t *testing.T, events []*pb.FilesystemEvent, want ...string) {
	t.Helper()
	got := shown(events)
	for _, w := range want {
		n := 0
		for _, g := range got {
			if g == w {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%q came %d times in %q", w, n, got)
		}
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("sub"))
	o := watchDir(t, h, &pb.WatchDirRequest{Path: "~"})
	write(t, h.in("file"), "x")
	if err := os.Chmod(h.in("file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(h.in("file"), h.in("renamed")); err != nil {
		t.Fatal(err)
	}
	write(t, h.in("sub", "unseen"), "")
	if err := os.Remove(h.in("renamed")); err != nil {
		t.Fatal(err)
	}
	want := []string{"create file", "write file", "chmod file", "rename file", "create renamed", "remove renamed"}
	if diff := cmp.Diff(want, shown(o.until(t, "remove renamed"))); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestWatchRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	write(t, h.in("file"), "")
	for path, code := range map[string]connect.Code{"nothing": connect.CodeNotFound, "file": connect.CodeInvalidArgument} {
		stream, err := h.rpc.WatchDir(t.Context(), &pb.WatchDirRequest{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if stream.Receive() {
			t.Errorf("%s: %v", path, stream.Msg())
		}
		testkit.WantRPCCode(t, stream.Err(), code)
		stream.Close()
		_, err = h.rpc.CreateWatcher(t.Context(), &pb.CreateWatcherRequest{Path: path})
		testkit.WantRPCCode(t, err, code)
	}
	if n := len(h.watches.open); n != 0 {
		t.Errorf("%d watches are open", n)
	}
}

// Trees that appear at once are reported as a whole: no program waits for a watch before
// putting files into a new directory.
func TestWatchRecursive(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("w/old/deep"))
	o := watchDir(t, h, &pb.WatchDirRequest{Path: "w", Recursive: true})
	var want []string
	for i := range 20 {
		dir := fmt.Sprintf("new%d/a/b", i)
		mkdir(t, h.in("w", dir))
		write(t, h.in("w", dir, "file"), "x")
		want = append(want, fmt.Sprintf("create new%d", i), fmt.Sprintf("create new%d/a", i), "create "+dir, "create "+dir+"/file")
	}
	write(t, h.in("w/old/deep/file"), "")
	want = append(want, "create old/deep/file")
	write(t, h.in("w/last"), "")
	events := o.until(t, "create last")
	for _, w := range want[:len(want)-1] {
		if !slices.Contains(shown(events), w) {
			events = append(events, o.until(t, w)...) // announced after it
		}
	}
	wantOnce(t, events, want...)
}

// A directory that gets another name is followed under it, and left when it
// goes out of the tree.
func TestWatchRenamedDirectories(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("w/one/sub"))
	o := watchDir(t, h, &pb.WatchDirRequest{Path: "w", Recursive: true})
	if err := os.Rename(h.in("w/one"), h.in("w/two")); err != nil {
		t.Fatal(err)
	}
	events := o.until(t, "create two/sub")
	write(t, h.in("w/two/sub/file"), "x")
	events = append(events, o.until(t, "write two/sub/file")...)
	wantOnce(t, events, "rename one", "create two", "create two/sub", "create two/sub/file")

	if err := os.Chmod(h.in("w/two"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(h.in("w/two"), h.in("out")); err != nil {
		t.Fatal(err)
	}
	wantOnce(t, o.until(t, "rename two"), "chmod two")
	write(t, h.in("out/sub/unseen"), "")
	mkdir(t, h.in("w/two")) // another one of that name
	o.until(t, "create two")
	write(t, h.in("w/two/again"), "")
	for _, e := range shown(o.until(t, "create two/again")) {
		if strings.Contains(e, "unseen") {
			t.Errorf("an event from outside: %s", e)
		}
	}
}

// A directory that takes the place of an empty one, which rename(2) allows.
func TestWatchReplacedDirectory(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("w/empty"))
	mkdir(t, h.in("w/full/sub"))
	o := watchDir(t, h, &pb.WatchDirRequest{Path: "w", Recursive: true})
	if err := unix.Rename(h.in("w/full"), h.in("w/empty")); err != nil {
		t.Fatal(err)
	}
	o.until(t, "create empty/sub")
	write(t, h.in("w/empty/file"), "x")
	write(t, h.in("w/empty/sub/file"), "x")
	events := o.until(t, "write empty/sub/file")
	wantOnce(t, events, "create empty/file", "write empty/file", "create empty/sub/file")
}

func TestWatchWithEntries(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	o := watchDir(t, h, &pb.WatchDirRequest{Path: "~", IncludeEntry: true})
	write(t, h.in("file"), "12345")
	events := o.until(t, "write file")
	e := events[len(events)-1].GetEntry()
	if e.GetPath() != h.in("file") || e.GetSize() != 5 || e.GetOwner() != "me" {
		t.Errorf("entry = %v", e)
	}
	if err := os.Remove(h.in("file")); err != nil {
		t.Fatal(err)
	}
	events = o.until(t, "remove file")
	if e := events[len(events)-1].GetEntry(); e != nil {
		t.Errorf("entry of a removed file = %v", e)
	}
}

// What users do: watch, upload, wait for a write event of that name.
func TestWatchUpload(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	write(t, h.in("old"), "old")
	mkdir(t, h.in("sub"))
	symlink(t, h.in("sub"), h.in("link"))
	o := watchDir(t, h, &pb.WatchDirRequest{Path: "~", Recursive: true})
	byLink := watchDir(t, h, &pb.WatchDirRequest{Path: "link"})
	apart := watchDir(t, h, &pb.WatchDirRequest{Path: "sub"})
	for _, name := range []string{"new", "old", "new", "sub/new", "sub/new", "link/new"} {
		answered(t, h.put(t, name, strings.NewReader("content")))
	}
	removeFile(t, h.in("sub/new"))
	write(t, h.in("sub/end"), "")
	created := func(name string) []string { return []string{"create " + name, "chmod " + name, "write " + name} }
	changed := func(name string) []string { return []string{"chmod " + name, "write " + name, "write " + name} }
	in := func(name string) []string {
		return slices.Concat(created(name), changed(name), changed(name), []string{"remove " + name})
	}
	all := slices.Concat(created("new"), changed("old"), changed("new"), in("sub/new"), []string{"create sub/end"})
	for _, tc := range []struct {
		observer *observer
		last     string
		want     []string
	}{
		{o, "create sub/end", all},
		{byLink, "create end", append(in("new"), "create end")},
		{apart, "create end", append(in("new"), "create end")},
	} {
		if diff := cmp.Diff(tc.want, shown(tc.observer.until(t, tc.last))); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	}
}

func removeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestWatchEndsWithItsDirectory(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, leave := range []func(string) error{os.RemoveAll, func(dir string) error { return os.Rename(dir, dir+".moved") }} {
		mkdir(t, h.in("w/sub"))
		o := watchDir(t, h, &pb.WatchDirRequest{Path: "w", Recursive: true})
		if err := leave(h.in("w")); err != nil {
			t.Fatal(err)
		}
		var last *pb.FilesystemEvent
		for o.stream.Receive() {
			last = o.stream.Msg().GetFilesystem()
		}
		if err := o.stream.Err(); err != nil || last.GetName() != "." {
			t.Errorf("last event = %v, %v", last, err)
		}
	}
}

func TestWatchEndsWithTheService(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	o := watchDir(t, h, &pb.WatchDirRequest{Path: "~"})
	created, err := h.rpc.CreateWatcher(t.Context(), &pb.CreateWatcherRequest{Path: "~"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
	if o.stream.Receive() {
		t.Errorf("message = %v", o.stream.Msg())
	}
	testkit.WantRPCCode(t, o.stream.Err(), connect.CodeUnavailable)
	_, err = h.rpc.GetWatcherEvents(t.Context(), &pb.GetWatcherEventsRequest{WatcherId: created.GetWatcherId()})
	testkit.WantRPCCode(t, err, connect.CodeNotFound)
	_, err = h.rpc.CreateWatcher(t.Context(), &pb.CreateWatcherRequest{Path: "~"})
	testkit.WantRPCCode(t, err, connect.CodeUnavailable)
}

func TestKeepalive(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set(keepaliveHeader, "1")
	stream, err := h.rpc.WatchDir(ctx, &pb.WatchDirRequest{Path: "~"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for range 2 {
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
	}
	if stream.Msg().GetKeepalive() == nil {
		t.Errorf("second message = %v", stream.Msg())
	}
	for header, want := range map[string]time.Duration{"50": 50 * time.Second, "": keepalive, "0": keepalive, "-1": keepalive, "x": keepalive, "99999999": keepalive} {
		if got := silenceFrom(map[string][]string{keepaliveHeader: {header}}); got != want {
			t.Errorf("silenceFrom(%q) = %v, want %v", header, got, want)
		}
	}
}

func TestPolledWatcher(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	created, err := h.rpc.CreateWatcher(t.Context(), &pb.CreateWatcherRequest{Path: "~", Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	id := created.GetWatcherId()
	got, err := h.rpc.GetWatcherEvents(t.Context(), &pb.GetWatcherEventsRequest{WatcherId: id})
	if err != nil || len(got.GetEvents()) != 0 {
		t.Errorf("events of nothing = %v, %v", got, err)
	}
	mkdir(t, h.in("dir"))
	write(t, h.in("dir/file"), "x")
	var events []*pb.FilesystemEvent
	testkit.WaitUntil(t, "the events came", func() bool {
		got, err := h.rpc.GetWatcherEvents(t.Context(), &pb.GetWatcherEventsRequest{WatcherId: id})
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, got.GetEvents()...)
		return slices.Contains(shown(events), "create dir/file")
	})
	wantOnce(t, events, "create dir", "create dir/file")
	if _, err := h.rpc.RemoveWatcher(t.Context(), &pb.RemoveWatcherRequest{WatcherId: id}); err != nil {
		t.Fatal(err)
	}
	_, err = h.rpc.GetWatcherEvents(t.Context(), &pb.GetWatcherEventsRequest{WatcherId: id})
	testkit.WantRPCCode(t, err, connect.CodeNotFound)
	_, err = h.rpc.RemoveWatcher(t.Context(), &pb.RemoveWatcherRequest{WatcherId: id})
	testkit.WantRPCCode(t, err, connect.CodeNotFound)
}

// A client that does not poll loses events, and is told.
func TestPolledWatcherOverflows(t *testing.T) {
	t.Parallel()
	p := &poller{}
	some := make([]*pb.FilesystemEvent, maxBuffered-1)
	p.record(some, nil)
	p.record(some[:2], nil)
	p.record(some[:1], nil)
	events, err := p.fetch(time.Now())
	if len(events) != maxBuffered || err != nil {
		t.Errorf("before the loss: %d events, %v", len(events), err)
	}
	p.record(some[:1], nil) // still not told
	events, err = p.fetch(time.Now())
	if len(events) != 0 || !errors.Is(err, errLost) {
		t.Errorf("the loss: %d events, %v", len(events), err)
	}
	p.record(some[:1], nil)
	events, err = p.fetch(time.Now())
	if len(events) != 1 || err != nil {
		t.Errorf("after it: %d events, %v", len(events), err)
	}
}

// More entries at once than a watch remembers, and a full queue of the kernel.
func TestWatchOverflows(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	mkdir(t, h.in("w"))
	mkdir(t, h.in("big/sub"))
	for i := range maxPending + 10 {
		write(t, h.in("big", fmt.Sprint(i)), "")
	}
	w, err := newWatch(watchSpec{user: asRoot, root: h.in("w"), recursive: true, accounts: h.accounts})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := os.Rename(h.in("big"), h.in("w/big")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events, err := w.next(ctx)
	if len(events) != maxPending || err != nil {
		t.Fatalf("%d events, %v", len(events), err)
	}
	if _, err = w.next(ctx); !errors.Is(err, errLost) {
		t.Fatalf("the loss: %v", err)
	}
	if _, ok := w.dirs[h.in("w/big/sub")]; !ok {
		t.Error("a directory was lost too")
	}

	for i := range kernelQueue(t) + 3*4096 { // fsnotify has a buffer of 4096 itself
		// Two names in turn, since the kernel merges what repeats.
		if err := os.Chmod(h.in("w/big", fmt.Sprint(i%2)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(t, h.in("w/late/sub"))
	if err := os.Rename(h.in("w/big"), h.in("w/huge")); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err = w.next(ctx); err != nil {
			break
		}
	}
	want := []string{h.in("w"), h.in("w/huge"), h.in("w/huge/sub"), h.in("w/late"), h.in("w/late/sub")}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(w.dirs))); diff != "" || !errors.Is(err, errLost) {
		t.Errorf("after an overflow of the kernel: %v, directories (-want +got):\n%s", err, diff)
	}
}

func kernelQueue(t *testing.T) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(read(t, "/proc/sys/fs/inotify/max_queued_events"), &n); err != nil {
		t.Fatal(err)
	}
	if n > 1<<17 {
		t.Skipf("the kernel's queue holds %d events", n)
	}
	return n
}

func TestWatchesAreBounded(t *testing.T) {
	t.Parallel()
	r := &registry{open: map[*watch]bool{}, pollers: map[string]*poller{}}
	now := time.Now()
	dir := t.TempDir()
	add := func(at time.Time) (*watch, error) {
		w, err := newWatch(watchSpec{user: asRoot, root: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
		return w, r.admit(w, at)
	}
	first, err := add(now)
	if err != nil {
		t.Fatal(err)
	}
	id, err := r.poll(first, now)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	for i := range maxWatches - 1 {
		r.open[&watch{watchSpec: watchSpec{root: fmt.Sprint(i)}}] = true // streams; an inotify instance each would be too many for tests at once
	}
	r.mu.Unlock()
	if _, err := add(now.Add(abandonedAfter - time.Second)); !errors.Is(err, errTooMany) {
		t.Errorf("one more: %v", err)
	}
	if _, err := add(now.Add(abandonedAfter)); err != nil {
		t.Errorf("one more when a client was gone: %v", err)
	}
	if _, err := r.poller(id); !errors.Is(err, errNoWatcher) {
		t.Errorf("the abandonedAfter watcher: %v", err)
	}
	if _, err := add(now.Add(abandonedAfter)); !errors.Is(err, errTooMany) {
		t.Errorf("one more: %v", err)
	}
	r.running.Wait()
}

// Clients come and go; nothing of their watches stays.
func TestWatchLeaksNothing(t *testing.T) {
	h := newHouse(t)
	mkdir(t, h.in("a/b/c"))
	round := func() {
		o := watchDir(t, h, &pb.WatchDirRequest{Path: "~", Recursive: true})
		created, err := h.rpc.CreateWatcher(t.Context(), &pb.CreateWatcherRequest{Path: "a", Recursive: true})
		if err != nil {
			t.Fatal(err)
		}
		write(t, h.in("a/b/c/file"), "x")
		o.until(t, "write a/b/c/file")
		o.stop() // without a word, as clients go
		if _, err := h.rpc.RemoveWatcher(t.Context(), &pb.RemoveWatcherRequest{WatcherId: created.GetWatcherId()}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(h.in("a/b/c/file")); err != nil {
			t.Fatal(err)
		}
		wantNoGoroutineIn(t, "fsnotify")
		wantNoGoroutineIn(t, "filesystem.(*Service).WatchDir")
		wantNoGoroutineIn(t, "filesystem.(*poller).run")
	}
	round()
	h.http.CloseIdleConnections()
	before := openFiles(t)
	for range 20 {
		round()
	}
	testkit.WaitUntil(t, "the file descriptors are closed", func() bool { h.http.CloseIdleConnections(); return openFiles(t) <= before })
	if len(h.watches.open) != 0 || len(h.watches.pollers) != 0 {
		t.Errorf("registered: %v, %v", h.watches.open, h.watches.pollers)
	}
}
