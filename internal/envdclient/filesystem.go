package envdclient

import (
	"context"
	"encoding/base64"
	"io"
	"slices"
	"time"

	"connectrpc.com/connect"

	"wrenn.dev"
	"wrenn.dev/internal/budget"
	"wrenn.dev/proto/gen/envd/filesystem"
	"wrenn.dev/proto/gen/envd/process"
)

const (
	// maxList bounds a list of files or processes: the 50,000 entries that envd lists at
	// most, with paths of 200 bytes.
	maxList = 16 << 20
	// watchKeepalive is as rare as envd allows, in seconds: a watch without events is no
	// use of the sandbox.
	watchKeepalive = "65535"
)

// as returns a context for a call as a user of the guest; "" is its default user.
func as(ctx context.Context, user string) (context.Context, connect.CallInfo) {
	ctx, call := connect.NewClientContext(ctx)
	if user != "" {
		call.RequestHeader().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
	return ctx, call
}

// Stat describes the file at path; NotFound if there is none. ~ and relative paths are
// those of user; "" is the guest's default user.
func (c *Client) Stat(ctx context.Context, user, path string) (wrenn.FileEntry, error) {
	ctx, _ = as(ctx, user)
	res, err := c.files.Stat(ctx, &filesystem.StatRequest{Path: path})
	return fileEntry("stat", res.GetEntry(), fromRPC("stat", err))
}

// ListDir lists a directory of so many levels, in the order of the paths. It is
// GuestFailed if the directory has more than 50,000 entries, or the guest answers with
// more than 16 MiB. What the list takes is reserved of the budget of ctx, see budget.With.
func (c *Client) ListDir(ctx context.Context, user, path string, levels int) ([]wrenn.FileEntry, error) {
	ctx, _ = as(budget.Whole(ctx), user)
	res, err := c.files.ListDir(ctx, &filesystem.ListDirRequest{Path: path, Depth: uint32(levels)})
	if err != nil {
		return nil, fromRPC("list", err)
	}
	out := make([]wrenn.FileEntry, len(res.GetEntries()))
	for i, e := range res.GetEntries() {
		out[i] = parseEntry(e)
	}
	return out, nil
}

// MakeDir makes a directory, and those above it. AlreadyExists if it exists.
func (c *Client) MakeDir(ctx context.Context, user, path string) (wrenn.FileEntry, error) {
	ctx, _ = as(ctx, user)
	res, err := c.files.MakeDir(ctx, &filesystem.MakeDirRequest{Path: path})
	return fileEntry("make directory", res.GetEntry(), fromChange("make directory", err))
}

// Move gives a file or a directory another path. It replaces a file, and makes the
// directories above the new path. AlreadyExists if that is a directory.
func (c *Client) Move(ctx context.Context, user, from, to string) (wrenn.FileEntry, error) {
	ctx, _ = as(ctx, user)
	res, err := c.files.Move(ctx, &filesystem.MoveRequest{Source: from, Destination: to})
	return fileEntry("move", res.GetEntry(), fromChange("move", err))
}

// Remove removes a file, or a directory with all that is in it. It is no error if it
// does not exist.
func (c *Client) Remove(ctx context.Context, user, path string) error {
	ctx, _ = as(ctx, user)
	_, err := c.files.Remove(ctx, &filesystem.RemoveRequest{Path: path})
	return fromChange("remove", err)
}

// fromChange is fromRPC of a call that changes the guest's files. There a guest may say
// that a file exists or that its disk is full, which meanings does not allow elsewhere.
func fromChange(doing string, err error) error {
	err = fromRPC(doing, err)
	switch code, _ := answered(err); code {
	case connect.CodeAlreadyExists:
		return wrenn.Errorf(wrenn.AlreadyExists, "%s", err)
	case connect.CodeResourceExhausted:
		return wrenn.Errorf(wrenn.NoSpace, "%s", err)
	default:
		return err
	}
}

// fileEntry returns what the guest says of a file. err is that of the call.
func fileEntry(doing string, e *filesystem.EntryInfo, err error) (wrenn.FileEntry, error) {
	switch {
	case err != nil:
		return wrenn.FileEntry{}, err
	case e == nil:
		return wrenn.FileEntry{}, wrenn.Errorf(wrenn.GuestFailed, "%s: the sandbox's agent breaks its protocol: it does not describe the file", doing)
	}
	return parseEntry(e), nil
}

var fileTypes = map[filesystem.FileType]wrenn.FileType{
	filesystem.FileType_FILE_TYPE_FILE:      wrenn.RegularFile,
	filesystem.FileType_FILE_TYPE_DIRECTORY: wrenn.Directory,
	filesystem.FileType_FILE_TYPE_SYMLINK:   wrenn.Symlink,
}

// parseEntry returns what the guest says of a file, where that makes sense.
func parseEntry(e *filesystem.EntryInfo) wrenn.FileEntry {
	out := wrenn.FileEntry{
		Path: e.GetPath(), Type: wrenn.OtherFile, Size: max(e.GetSize(), 0), Mode: e.GetMode() & 0o777,
		Owner: e.GetOwner(), Group: e.GetGroup(), ModifiedAt: time.Unix(0, 0).UTC(), Target: e.GetSymlinkTarget(),
	}
	if known, ok := fileTypes[e.GetType()]; ok {
		out.Type = known
	}
	if e.GetIsSymlink() || e.SymlinkTarget != nil {
		out.Type = wrenn.Symlink
	}
	if e.GetModifiedTime().IsValid() {
		out.ModifiedAt = e.GetModifiedTime().AsTime()
	}
	return out
}

// FileWatch is a directory that is watched. Next is for one goroutine, Close for any.
type FileWatch struct {
	stream *connect.ServerStreamForClient[filesystem.WatchDirResponse]
	cancel context.CancelFunc
}

// WatchDir watches a directory, with recursive also those below it. It returns when
// every later change is reported. NotFound if it does not exist, Invalid if it is no
// directory or on a network file system. The caller closes the watch, which also ends
// with ctx.
func (c *Client) WatchDir(ctx context.Context, user, path string, recursive bool) (*FileWatch, error) {
	ctx, cancel := context.WithCancel(ctx)
	ctx, call := as(ctx, user)
	call.RequestHeader().Set("Keepalive-Ping-Interval", watchKeepalive)
	stream, err := c.files.WatchDir(ctx, &filesystem.WatchDirRequest{Path: path, Recursive: recursive})
	if err != nil {
		cancel()
		return nil, fromRPC("watch", err)
	}
	w := &FileWatch{stream: stream, cancel: cancel}
	if !stream.Receive() {
		err := stream.Err()
		w.Close()
		if err == nil {
			err = wrenn.Errorf(wrenn.GuestFailed, "the sandbox's agent breaks its protocol: a watch ended before it began")
		}
		return nil, fromRPC("watch", err)
	}
	return w, nil
}

var fileChanges = map[filesystem.EventType]wrenn.FileChangeType{
	filesystem.EventType_EVENT_TYPE_CREATE: wrenn.FileCreated,
	filesystem.EventType_EVENT_TYPE_WRITE:  wrenn.FileWritten,
	filesystem.EventType_EVENT_TYPE_REMOVE: wrenn.FileRemoved,
	filesystem.EventType_EVENT_TYPE_RENAME: wrenn.FileRenamed,
	filesystem.EventType_EVENT_TYPE_CHMOD:  wrenn.FileChmod,
}

// Next waits for a change. It returns io.EOF when the directory was removed, and
// GuestFailed when changes were lost because they were not read quickly enough; both
// end the watch.
func (w *FileWatch) Next() (wrenn.FileChange, error) {
	for w.stream.Receive() {
		ev := w.stream.Msg().GetFilesystem()
		if kind, ok := fileChanges[ev.GetType()]; ok {
			return wrenn.FileChange{Path: ev.GetName(), Type: kind}, nil
		}
	}
	if err := w.stream.Err(); err != nil {
		return wrenn.FileChange{}, fromRPC("watch", err)
	}
	return wrenn.FileChange{}, io.EOF
}

// Close ends the watch. Twice is allowed.
func (w *FileWatch) Close() { w.cancel() }

// Processes returns the programs that run and were started through the agent, by their
// PIDs. What the list takes is reserved of the budget of ctx.
func (c *Client) Processes(ctx context.Context) ([]wrenn.ProcessInfo, error) {
	res, err := c.processes.List(budget.Whole(ctx), &process.ListRequest{})
	if err != nil {
		return nil, fromRPC("list processes", err)
	}
	out := make([]wrenn.ProcessInfo, len(res.GetProcesses()))
	for i, p := range res.GetProcesses() {
		out[i] = wrenn.ProcessInfo{
			PID: int(p.GetPid()), Cmd: p.GetConfig().GetCmd(), Args: p.GetConfig().GetArgs(), Cwd: p.GetConfig().GetCwd(), Tag: p.GetTag(),
		}
	}
	slices.SortFunc(out, func(a, b wrenn.ProcessInfo) int { return a.PID - b.PID })
	return out, nil
}
