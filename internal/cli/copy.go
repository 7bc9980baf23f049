package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/run"
)

// standard is the name of standard input and output.
const standard = "-"

type copyCommand struct {
	Recursive bool     `short:"r" help:"Copy a directory with its content; the sandbox needs tar."`
	MaxSize   byteSize `default:"16G" placeholder:"SIZE" help:"Largest total size to accept when copying a directory from a sandbox; default: ${default}."`
	User      string   `short:"u" placeholder:"USER" help:"The user that reads or writes in the sandbox; default: the template's default user."`

	Paths []string `arg:"" name:"path" complete:"file" help:"The sources, then the destination: ID:PATH in a sandbox, PATH on this machine, or - for standard input or output. A destination that ends with / is a directory, as it must be for several sources. Wildcards in quotes are the sandbox's: ID:'/srv/*.log'."`

	From, To string `kong:"-"` // of the copy that is being made
}

// remote is a file of a sandbox. An empty path is the user's home.
type remote struct{ id, path string }

var remoteForm = regexp.MustCompile(`(?s)^(i[a-z0-9]{20}):(.*)$`)

func parseRemote(name string) (remote, bool) {
	m := remoteForm.FindStringSubmatch(name)
	if m == nil {
		return remote{}, false
	}
	return remote{m[1], m[2]}, true
}

// Run copies files, each completely or not at all, or with -r directories.
func (c *copyCommand) Run(ctx context.Context, s *session) error {
	if len(c.Paths) < 2 {
		return fmt.Errorf("%w: give what to copy, and where to", run.ErrUsage)
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	sources, err := expand(ctx, api, c.User, c.Paths[:len(c.Paths)-1])
	if err != nil {
		return err
	}
	to := c.Paths[len(c.Paths)-1]
	if len(sources) > 1 {
		if to, err = destination(to); err != nil {
			return err
		}
	}
	for _, from := range sources {
		c.From, c.To = from, to
		if len(sources) > 1 && c.Recursive {
			c.To += baseOf(from)
		}
		if err := c.one(ctx, s, api); err != nil {
			return err
		}
	}
	return nil
}

// one copies From to To.
func (c *copyCommand) one(ctx context.Context, s *session, api *client.Client) error {
	from, fromRemote := parseRemote(c.From)
	to, toRemote := parseRemote(c.To)
	switch {
	case c.Recursive && (fromRemote || toRemote):
		return c.tree(ctx, s, api)
	case fromRemote && toRemote:
		return c.across(ctx, s, api, from, to)
	case toRemote:
		return c.upload(ctx, s, api, to)
	case fromRemote:
		return c.download(ctx, s, api, from)
	}
	return fmt.Errorf("neither %s nor %s is in a sandbox: write ID:PATH", c.From, c.To)
}

func (c *copyCommand) options() client.FileOptions { return client.FileOptions{User: c.User} }

// under returns the destination of a file named base: name itself, or base below it when name ends with a slash.
func under(name, base string) string {
	if name == "" || strings.HasSuffix(name, "/") {
		return name + base
	}
	return name
}

func (c *copyCommand) upload(ctx context.Context, s *session, api *client.Client, to remote) error {
	in, base := s.In, ""
	if c.From != standard {
		f, err := os.Open(c.From)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil {
			return err
		} else if info.IsDir() {
			return fmt.Errorf("%s is a directory: copy it with -r", c.From)
		}
		in, base = f, filepath.Base(c.From)
	}
	name := under(to.path, base)
	if name == "" || strings.HasSuffix(name, "/") {
		return fmt.Errorf("the file needs a name in the sandbox: write %s:PATH", to.id)
	}
	meter := &meter{r: in}
	defer s.progress(meter.what("copying to " + name))()
	return api.WriteFile(ctx, to.id, name, meter, c.options())
}

func (c *copyCommand) download(ctx context.Context, s *session, api *client.Client, from remote) (err error) {
	in, err := api.ReadFile(ctx, from.id, from.path, c.options())
	if err != nil {
		return err
	}
	defer in.Close()
	meter := &meter{r: in}
	defer s.progress(meter.what("copying " + from.path))()
	if c.To == standard {
		_, err := io.Copy(s.Out, meter)
		return err
	}
	return receive(localName(c.To, path.Base(from.path)), meter)
}

func (c *copyCommand) across(ctx context.Context, s *session, api *client.Client, from, to remote) error {
	in, err := api.ReadFile(ctx, from.id, from.path, c.options())
	if err != nil {
		return err
	}
	defer in.Close()
	meter := &meter{r: in}
	defer s.progress(meter.what("copying to " + to.id))()
	return api.WriteFile(ctx, to.id, under(to.path, path.Base(from.path)), meter, c.options())
}

// receive writes content to the file name. A regular file is replaced in one step
// at the end; a device or a pipe is written to directly.
func receive(name string, content io.Reader) (err error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	}
	staged, err := os.OpenFile(name+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o666) // the umask applies, as in any program
	if err != nil {
		return err
	}
	_, err = io.Copy(staged, content)
	if err = errors.Join(err, staged.Close()); err == nil {
		err = os.Rename(staged.Name(), name)
	}
	if err != nil {
		_ = os.Remove(staged.Name()) // the first error is the one that counts
	}
	return err
}

// meter counts the bytes read or written.
type meter struct {
	r io.Reader
	w io.Writer
	n atomic.Int64
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	m.n.Add(int64(n))
	return n, err
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n.Add(int64(n))
	return n, err
}

// what returns a function for session.progress that includes the count.
func (m *meter) what(doing string) func() string {
	return func() string { return fmt.Sprintf("%s, %.1f MiB", plain.Line(doing), float64(m.n.Load())/(1<<20)) }
}
