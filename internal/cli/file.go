package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/run"
)

type fileCommands struct {
	List   fileListCommand   `cmd:"" aliases:"ls" help:"List a directory, or show a file."`
	Stat   fileStatCommand   `cmd:"" help:"Show what files are: type, size, owner, permissions, time."`
	Mkdir  fileMkdirCommand  `cmd:"" help:"Make directories, and those above them."`
	Remove fileRemoveCommand `cmd:"" aliases:"rm" help:"Remove files, or directories with all that is in them."`
	Move   fileMoveCommand   `cmd:"" aliases:"mv" help:"Move or rename a file or directory."`
	Watch  fileWatchCommand  `cmd:"" help:"Print the changes in a directory as they happen."`
}

// fileUser is the user of a sandbox that does what is asked for.
type fileUser struct {
	User string `short:"u" placeholder:"USER" help:"The user of the sandbox who does it; default: the template's default user."`
}

func (u fileUser) options() client.FileOptions { return client.FileOptions{User: u.User} }

type fileListCommand struct {
	fileUser

	Depth count  `placeholder:"N" help:"How many levels of directories, up to 128; default: 1."`
	Limit count  `short:"n" placeholder:"N" help:"Print at most this many; default: all."`
	ID    string `arg:"" complete:"sandbox" help:"The sandbox."`
	Path  string `arg:"" optional:"" default:"~" help:"The directory; default: the user's home."`
}

// Help is shown below the usage.
func (*fileListCommand) Help() string {
	return `Links are shown, and not followed. Paths in the table begin at the directory.

  wrenn sandbox files ls ID /srv
  wrenn sandbox files ls --depth 3 -o json ID /etc`
}

// Run prints a table, or an array of JSON.
func (c *fileListCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	entries, err := c.list(ctx, api)
	if client.CodeOf(err) == client.InvalidRequest { // perhaps no directory
		one, failed := api.File(ctx, c.ID, c.Path, c.options())
		if failed != nil || one.Type == "directory" {
			return err
		}
		entries, err = []client.FileEntry{*one}, nil
	}
	if err != nil {
		return err
	}
	return s.print(entries, func(w io.Writer) {
		rows := [][]string{{"MODE", "OWNER", "SIZE", "AGE", "PATH"}}
		for i := range entries {
			e := &entries[i]
			rows = append(rows, []string{entryMode(e), e.Owner + ":" + e.Group, strconv.FormatInt(e.Size, 10), age(e.ModifiedAt), entryPath(e, path.Dir(entries[0].Path))})
		}
		s.fitted(w, rows, func(_, _ int, text string) string { return text })
	})
}

func (c *fileListCommand) list(ctx context.Context, api *client.Client) ([]client.FileEntry, error) {
	entries := []client.FileEntry{} // JSON's [], not null
	for e, err := range api.Files(ctx, c.ID, c.Path, client.ListFiles{FileOptions: c.options(), Depth: int(c.Depth)}) {
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
		if len(entries) == int(c.Limit) {
			break
		}
	}
	return entries, nil
}

// entryMode is the type and permissions of an entry, as ls -l shows them.
func entryMode(e *client.FileEntry) string {
	return modeText(client.VolumeEntry{Type: e.Type, Mode: e.Mode})
}

// entryPath is the path of an entry below a directory, and where a link leads. The first
// entry of a list is in the directory itself.
func entryPath(e *client.FileEntry, dir string) string {
	text := plain.Line(e.Path)
	if below, ok := strings.CutPrefix(e.Path, strings.TrimSuffix(dir, "/")+"/"); ok {
		text = plain.Line(below)
	}
	if e.Type == "symlink" {
		text += " -> " + plain.Line(e.Target)
	}
	return text
}

type fileStatCommand struct {
	fileUser

	ID    string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Paths []string `arg:"" name:"path" help:"The files."`
}

// Run prints all that is known of the files, as fields or as an array of JSON.
func (c *fileStatCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	entries := []client.FileEntry{}
	var failed []error
	for _, name := range c.Paths {
		e, err := api.File(ctx, c.ID, name, c.options())
		if err != nil {
			failed = append(failed, err)
			continue
		}
		entries = append(entries, *e)
	}
	err = s.print(entries, func(w io.Writer) {
		for i := range entries {
			e := &entries[i]
			fmt.Fprintf(w, "path      %s\ntype      %s\nsize      %d\nmode      %04o %s\nowner     %s:%s\nmodified  %s\n",
				plain.Line(e.Path), e.Type, e.Size, e.Mode, entryMode(e), plain.Line(e.Owner), plain.Line(e.Group), e.ModifiedAt.Local().Format(time.DateTime))
			if e.Type == "symlink" {
				fmt.Fprintf(w, "target    %s\n", plain.Line(e.Target))
			}
		}
	})
	return errors.Join(append(failed, err)...)
}

type fileMkdirCommand struct {
	fileUser

	Exist bool     `short:"p" name:"parents" help:"It is no error if it exists."`
	ID    string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Paths []string `arg:"" name:"path" help:"The directories."`
}

// Run prints the paths of those that were made.
func (c *fileMkdirCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "making", c.Paths, func(ctx context.Context, name string) error {
		_, err := api.CreateDirectory(ctx, c.ID, name, c.options())
		if c.Exist && client.CodeOf(err) == client.Conflict {
			return nil
		}
		return err
	})
}

type fileRemoveCommand struct {
	fileUser

	Recursive bool     `short:"r" help:"Also directories, with all that is in them."`
	Force     bool     `short:"f" help:"It is no error if a file does not exist."`
	ID        string   `arg:"" complete:"sandbox" help:"The sandbox."`
	Paths     []string `arg:"" name:"path" help:"The files."`
}

// Run prints the paths of those that were removed.
func (c *fileRemoveCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "removing", c.Paths, func(ctx context.Context, name string) error {
		err := c.remove(ctx, api, name)
		if c.Force && client.CodeOf(err) == client.NotFound {
			return nil
		}
		return err
	})
}

func (c *fileRemoveCommand) remove(ctx context.Context, api *client.Client, name string) error {
	if !c.Recursive {
		e, err := api.File(ctx, c.ID, name, c.options())
		if err != nil {
			return err
		}
		if e.Type == "directory" {
			return errors.New("it is a directory: add -r")
		}
	}
	return api.DeleteFile(ctx, c.ID, name, c.options())
}

type fileMoveCommand struct {
	fileUser

	ID   string `arg:"" complete:"sandbox" help:"The sandbox."`
	From string `arg:"" help:"The file or directory."`
	To   string `arg:"" help:"Its new path, or a directory to which it goes. A file that has the path is replaced."`
}

// Run moves into a directory that exists, as mv(1) does.
func (c *fileMoveCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	to := c.To
	if e, err := api.File(ctx, c.ID, to, c.options()); err == nil && e.Type == "directory" {
		to = path.Join(e.Path, path.Base(c.From))
	}
	moved, err := api.MoveFile(ctx, c.ID, c.From, to, c.options())
	if err != nil {
		return err
	}
	return s.print(moved, func(io.Writer) {})
}

type fileWatchCommand struct {
	fileUser

	Recursive bool   `short:"r" help:"Also the directories below it."`
	ID        string `arg:"" complete:"sandbox" help:"The sandbox."`
	Path      string `arg:"" help:"The directory."`
}

// Help is shown below the usage.
func (*fileWatchCommand) Help() string {
	return `It prints a line for each change: create, write, remove, rename or chmod, and the path
from the directory. With -o json each is an object. It ends when the directory is removed
and when the sandbox is paused or ends. Directories of volumes cannot be watched.

  wrenn sandbox files watch -r ID /srv`
}

// Run prints changes until the watch ends.
func (c *fileWatchCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	watch, err := api.WatchFiles(ctx, c.ID, c.Path, client.WatchFiles{FileOptions: c.options(), Recursive: c.Recursive})
	if err != nil {
		return err
	}
	defer func() { _ = watch.Close() }() // nothing was written
	for {
		change, err := watch.Next()
		if err == nil {
			err = c.show(s, change)
		}
		if err != nil {
			return err
		}
	}
}

func (*fileWatchCommand) show(s *session, change client.FileChange) error {
	if s.json() {
		return json.NewEncoder(s.Out).Encode(change)
	}
	_, err := fmt.Fprintf(s.Out, "%-6s  %s\n", plain.Line(change.Type), plain.Line(change.Path))
	return err
}

type psCommand struct {
	ID string `arg:"" complete:"sandbox" help:"The sandbox."`
}

// Help is shown below the usage.
func (*psCommand) Help() string {
	return `Programs that were started through the API and have not ended: those of exec, shell and
ssh, of E2B's SDKs, and the start command of a template; not what they have started
themselves: wrenn sandbox exec ID -- ps ax

  wrenn sandbox ps ID
  wrenn sandbox exec ID --attach PID
  wrenn sandbox signal ID PID`
}

// Run prints a table, or an array of JSON.
func (c *psCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	list, err := api.Processes(ctx, c.ID)
	if err != nil {
		return err
	}
	return s.print(list, func(w io.Writer) {
		rows := [][]string{{"PID", "COMMAND"}}
		for _, p := range list {
			rows = append(rows, []string{strconv.Itoa(p.PID), strings.Join(append([]string{p.Cmd}, p.Args...), " ")})
		}
		s.fitted(w, rows, func(_, _ int, text string) string { return text })
	})
}

type signalCommand struct {
	Signal string   `short:"s" enum:"TERM,KILL" default:"TERM" help:"${enum}; default: ${default}."`
	ID     string   `arg:"" complete:"sandbox" help:"The sandbox."`
	PIDs   []string `arg:"" name:"pid" help:"The process ids, as ps shows them."`
}

// Run prints the process ids that it signaled.
func (c *signalCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "signaling", c.PIDs, func(ctx context.Context, text string) error {
		pid, err := strconv.ParseUint(text, 10, 31)
		if err != nil || pid == 0 {
			return fmt.Errorf("%w: it is no process id", run.ErrUsage)
		}
		return api.SignalProcess(ctx, c.ID, int(pid), client.Signal("SIG"+c.Signal))
	})
}
