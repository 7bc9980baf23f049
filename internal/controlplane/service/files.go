package service

import (
	"cmp"
	"context"
	"encoding/base64"
	"io"
	"slices"
	"strings"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/guestagent"
	"wrenn.dev/internal/controlplane/hostclient"
)

// Files move files into sandboxes and out of them, and look at and change their trees.
type Files struct{ *core }

// WriteFile writes content to path. The file changes as a whole at the end or
// not at all; an error of content is returned, wrapped.
func (s *Files) WriteFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string, content io.Reader) error {
	if err := checkFile(user, path); err != nil {
		return err
	}
	host, err := s.use(ctx, c, id)
	if err != nil {
		return err
	}
	defer s.used.add(id)
	err = host.Write(ctx, id, user, path, content)
	if s.leftHost(ctx, host, id, err) { // and some of the content may have been read
		return &wrenn.Error{Code: wrenn.Unavailable, Message: "the sandbox was moved to another host; try again", Err: err}
	}
	return err
}

// ReadFile opens a file. The caller closes it. A cut transfer is an error of
// Read, never io.EOF.
func (s *Files) ReadFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string) (io.ReadCloser, error) {
	if err := checkFile(user, path); err != nil {
		return nil, err
	}
	var content io.ReadCloser
	err := s.onHost(ctx, c, id, func(host *hostclient.Client) (err error) {
		content, err = host.Read(ctx, id, user, path)
		return err
	})
	return content, err
}

// StatFile describes a file, directory or link: NotFound if there is none.
func (s *Files) StatFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string) (entry wrenn.FileEntry, err error) {
	err = s.withFile(ctx, c, id, user, path, func(a *guestagent.Agent) error {
		entry, err = a.Stat(ctx, user, path)
		return err
	})
	return entry, err
}

const (
	// defaultListed is how many entries of a directory a page has by default.
	defaultListed = 1000
	maxListed     = 10_000
	maxLevels     = 128
)

// ListFiles says what to list. Zero values are the defaults.
type ListFiles struct {
	User   string
	Path   string
	Levels int    // of directories, 1 to 128; default 1
	Limit  int    // of entries, 1 to 10,000; default 1,000
	Page   string // a next of an earlier call
}

// ListFiles returns a page of the entries of a directory, in the order of the paths, a
// directory before what is in it. next is "" at the last page. A page shows the directory
// as it is then. It is GuestFailed when there are more than 50,000 entries in all.
func (s *Files) ListFiles(ctx context.Context, c Caller, id wrenn.SandboxID, list ListFiles) (page []wrenn.FileEntry, next string, err error) {
	list.Levels, list.Limit = cmp.Or(list.Levels, 1), cmp.Or(list.Limit, defaultListed)
	after, err := list.after()
	if err != nil {
		return nil, "", err
	}
	err = s.withFile(ctx, c, id, list.User, list.Path, func(a *guestagent.Agent) error {
		page, err = a.ListDir(ctx, list.User, list.Path, list.Levels)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	page = slices.DeleteFunc(page, func(e wrenn.FileEntry) bool { return treeOrder(e.Path) <= after })
	slices.SortFunc(page, func(a, b wrenn.FileEntry) int { return cmp.Compare(treeOrder(a.Path), treeOrder(b.Path)) })
	if len(page) > list.Limit {
		page = page[:list.Limit]
		next = base64.RawURLEncoding.EncodeToString([]byte(treeOrder(page[len(page)-1].Path)))
	}
	return page, next, nil
}

// after returns where the page begins; "" for the first one.
func (l ListFiles) after() (string, error) {
	if l.Levels < 1 || l.Levels > maxLevels || l.Limit < 1 || l.Limit > maxListed {
		return "", wrenn.Errorf(wrenn.Invalid, "a list has 1 to %d levels and 1 to %d entries on a page", maxLevels, maxListed)
	}
	after, err := base64.RawURLEncoding.DecodeString(l.Page)
	if err != nil || len(after) > 2*maxPath {
		return "", wrenn.Errorf(wrenn.Invalid, "invalid page token")
	}
	return string(after), nil
}

// treeOrder is a path as a text whose order is that of a tree: what is in a directory
// comes right after it.
func treeOrder(path string) string { return strings.ReplaceAll(path, "/", "\x00") }

// MakeDirectory makes a directory, and those above it: AlreadyExists if it exists.
func (s *Files) MakeDirectory(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string) (entry wrenn.FileEntry, err error) {
	err = s.withFile(ctx, c, id, user, path, func(a *guestagent.Agent) error {
		entry, err = a.MakeDir(ctx, user, path)
		return err
	})
	return entry, err
}

// MoveFile gives a file or directory another path. A file that has it is replaced, and
// directories above it are made. NotFound if there is nothing at from, AlreadyExists if
// a directory is at to.
func (s *Files) MoveFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, from, to string) (entry wrenn.FileEntry, err error) {
	if err := checkFile(user, to); err != nil {
		return entry, err
	}
	err = s.withFile(ctx, c, id, user, from, func(a *guestagent.Agent) error {
		entry, err = a.Move(ctx, user, from, to)
		return err
	})
	return entry, err
}

// RemoveFile removes a file or link, or a directory with all that is in it: NotFound if
// there is none. After an error a part of it may be removed.
func (s *Files) RemoveFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string) error {
	return s.withFile(ctx, c, id, user, path, func(a *guestagent.Agent) error {
		if _, err := a.Stat(ctx, user, path); err != nil { // Remove does not tell
			return err
		}
		return a.Remove(ctx, user, path)
	})
}

// withFile calls do with the agent of a sandbox, when user and path can be right.
func (s *Files) withFile(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string, do func(*guestagent.Agent) error) error {
	if err := checkFile(user, path); err != nil {
		return err
	}
	return s.withAgent(ctx, c, id, do)
}

// withAgent calls do with the agent of a sandbox.
func (c *core) withAgent(ctx context.Context, caller Caller, id wrenn.SandboxID, do func(*guestagent.Agent) error) error {
	agent, err := c.openAgent(ctx, caller, id)
	if err != nil {
		return err
	}
	defer agent.Close()
	defer c.used.add(id) // it may have taken long
	return agent.Explain(ctx, do(agent))
}

// openAgent connects to the agent of a sandbox. The caller closes it.
func (c *core) openAgent(ctx context.Context, caller Caller, id wrenn.SandboxID) (agent *guestagent.Agent, err error) {
	err = c.onHost(ctx, caller, id, func(host *hostclient.Client) error {
		token, err := c.tokens.of(ctx, id)
		if err != nil {
			return err
		}
		agent, err = guestagent.Open(ctx, host, id, token)
		return err
	})
	return agent, err
}

// FileWatch is a directory of a sandbox that is watched. Next is for one goroutine.
type FileWatch interface {
	// Next waits for a change. It returns io.EOF when the directory was removed.
	Next() (wrenn.FileChange, error)
	// Close ends the watch. Twice is allowed.
	Close()
}

// WatchFiles watches a directory of a sandbox, with recursive also those below it, until
// ctx ends. The caller closes the watch. A watch without changes is no use of the sandbox.
func (s *Files) WatchFiles(ctx context.Context, c Caller, id wrenn.SandboxID, user, path string, recursive bool) (FileWatch, error) {
	if err := checkFile(user, path); err != nil {
		return nil, err
	}
	agent, err := s.openAgent(ctx, c, id)
	if err != nil {
		return nil, err
	}
	watch, err := agent.Watch(ctx, user, path, recursive)
	if err != nil {
		agent.Close()
		return nil, err // not a FileWatch that holds a nil
	}
	return watch, nil
}
