package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// FileEntry describes a file, directory or symbolic link of a sandbox, as the sandbox
// says.
type FileEntry struct {
	Path       string    `json:"path"` // absolute
	Type       string    `json:"type"` // file, directory, symlink or unknown
	Size       int64     `json:"size"`
	Mode       uint32    `json:"mode"` // the nine bits of permissions; of a link those of what it leads to
	Owner      string    `json:"owner"`
	Group      string    `json:"group"`
	ModifiedAt time.Time `json:"modified_at"`
	Target     string    `json:"target,omitempty"` // of a link: the absolute path that it leads to
}

// sandboxFile is a request for a file of a sandbox.
func sandboxFile(method, id, part, name string, opts FileOptions) (request, error) {
	if err := checkName(name); err != nil {
		return request{}, err
	}
	query := url.Values{"path": {name}}
	if opts.User != "" {
		query.Set("user", opts.User)
	}
	return request{method: method, path: sandboxPath(id, "/files"+part), query: query}, nil
}

// File describes a file, directory or link of a sandbox: the code not_found if there is
// none. A relative name starts at the user's home.
func (c *Client) File(ctx context.Context, id, name string, opts FileOptions) (*FileEntry, error) {
	return c.fileEntry(ctx, http.MethodGet, id, "", name, opts)
}

// ListFiles says how a directory is listed. Zero values mean the server's defaults.
type ListFiles struct {
	FileOptions

	Depth    int // levels of directories; 0 means one
	PageSize int // entries per request
}

// Files lists the entries of a directory of a sandbox, in the order of their paths, a
// directory right before what is in it. It requests the next page when the loop reaches
// it. The loop ends after an error.
func (c *Client) Files(ctx context.Context, id, name string, list ListFiles) iter.Seq2[FileEntry, error] {
	r, err := sandboxFile(http.MethodGet, id, "/list", name, list.FileOptions)
	if err != nil {
		return func(yield func(FileEntry, error) bool) { yield(FileEntry{}, err) }
	}
	for name, n := range map[string]int{"depth": list.Depth, "limit": list.PageSize} {
		if n != 0 {
			r.query.Set(name, strconv.Itoa(n))
		}
	}
	return pages[FileEntry](ctx, c, r.path, r.query)
}

// CreateDirectory makes a directory of a sandbox, and those above it. If it exists the
// error has the code conflict.
func (c *Client) CreateDirectory(ctx context.Context, id, name string, opts FileOptions) (*FileEntry, error) {
	return c.fileEntry(ctx, http.MethodPut, id, "/directory", name, opts)
}

// MoveFile gives a file or directory of a sandbox another path. A file that has it is
// replaced; a directory with entries is an error with the code conflict.
func (c *Client) MoveFile(ctx context.Context, id, from, to string, opts FileOptions) (*FileEntry, error) {
	for _, name := range []string{from, to} {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	body := map[string]string{"from": from, "to": to}
	if opts.User != "" {
		body["user"] = opts.User
	}
	out := &FileEntry{}
	if err := c.call(ctx, request{method: http.MethodPost, path: sandboxPath(id, "/files/move"), body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteFile deletes a file or link of a sandbox, or a directory with all that is in it.
func (c *Client) DeleteFile(ctx context.Context, id, name string, opts FileOptions) error {
	r, err := sandboxFile(http.MethodDelete, id, "", name, opts)
	if err != nil {
		return err
	}
	return c.call(ctx, r, nil)
}

func (c *Client) fileEntry(ctx context.Context, method, id, part, name string, opts FileOptions) (*FileEntry, error) {
	r, err := sandboxFile(method, id, part, name, opts)
	if err != nil {
		return nil, err
	}
	out := &FileEntry{}
	if err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// FileChange is a change in a watched directory.
type FileChange struct {
	Path string `json:"path"` // from the watched directory; "." is the directory itself
	// Type is create, write, remove, rename (of the old path; the new one is created) or chmod.
	Type string `json:"type"`
}

// WatchFiles says how a directory is watched.
type WatchFiles struct {
	FileOptions

	Recursive bool // also the directories below it, new ones included
}

// FileWatch is a directory of a sandbox that is watched. Close it.
type FileWatch struct{ events *events }

// WatchFiles watches a directory of a sandbox. When it returns every later change is
// reported. The watch ends with ctx; the caller closes it.
func (c *Client) WatchFiles(ctx context.Context, id, name string, opts WatchFiles) (*FileWatch, error) {
	r, err := sandboxFile(http.MethodGet, id, "/watch", name, opts.FileOptions)
	if err != nil {
		return nil, err
	}
	if opts.Recursive {
		r.query.Set("recursive", "true")
	}
	events, err := c.events(ctx, r)
	if err != nil {
		return nil, err
	}
	return &FileWatch{events}, nil
}

// Next waits for a change. After an error the watch has ended. The code not_found means
// that the directory was removed, paused and invalid_state that the sandbox was paused
// or has ended, and guest_failed that changes were lost: list the directory, and watch
// it again.
func (w *FileWatch) Next() (FileChange, error) {
	for {
		name, data, err := w.events.next()
		if err != nil {
			return FileChange{}, err
		}
		switch name {
		case "change":
			var change FileChange
			return change, w.events.decode(data, &change)
		case "end":
			var why struct {
				Code    Code   `json:"code"`
				Message string `json:"message"`
			}
			if err := w.events.decode(data, &why); err != nil {
				return FileChange{}, err
			}
			return FileChange{}, &Error{Code: why.Code, Message: why.Message}
		}
	}
}

// Close ends the watch. Twice is allowed.
func (w *FileWatch) Close() error { return w.events.body.Close() }

// Process is a program of a sandbox.
type Process struct {
	PID  int      `json:"pid"`
	Cmd  string   `json:"cmd"`
	Args []string `json:"args"`
	Cwd  string   `json:"cwd,omitempty"` // "" if it was not given
	Tag  string   `json:"tag,omitempty"` // that its starter has given it
}

// Processes lists the programs of a sandbox that run and were started by the API.
func (c *Client) Processes(ctx context.Context, id string) ([]Process, error) {
	var out []Process
	err := c.call(ctx, request{method: http.MethodGet, path: sandboxPath(id, "/processes")}, &out)
	return out, err
}

// SignalProcess signals a program that the API has started, and all that it started: the
// code not_found if there is none.
func (c *Client) SignalProcess(ctx context.Context, id string, pid int, signal Signal) error {
	return c.call(ctx, request{
		method: http.MethodPost, path: sandboxPath(id, "/processes/"+strconv.Itoa(pid)+"/signal"), body: map[string]Signal{"signal": signal},
	}, nil)
}

// SandboxChanges are sandboxes that are new, have changed or ended.
type SandboxChanges struct {
	// Snapshot is set in the first one, which has all sandboxes that have not ended, and in
	// those that continue it.
	Snapshot  bool      `json:"-"`
	Sandboxes []Sandbox `json:"sandboxes"`
	Dropped   []string  `json:"dropped"` // ids of sandboxes of which nothing is known any more
}

// Events follows the team's sandboxes: first all that have not ended, then the changes.
// What changes twice before the loop reads it comes once. The loop ends after an error;
// a caller that begins again gets all sandboxes again.
func (c *Client) Events(ctx context.Context) iter.Seq2[SandboxChanges, error] {
	return func(yield func(SandboxChanges, error) bool) {
		events, err := c.events(ctx, request{method: http.MethodGet, path: "/v1/events"})
		if err != nil {
			yield(SandboxChanges{}, err)
			return
		}
		defer events.body.Close()
		for {
			name, data, err := events.next()
			changes := SandboxChanges{Snapshot: name == "snapshot"}
			if err == nil {
				err = events.decode(data, &changes)
			}
			if !yield(changes, err) || err != nil {
				return
			}
		}
	}
}
