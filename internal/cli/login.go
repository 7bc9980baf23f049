package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/term"

	"wrenn.dev/client"
	"wrenn.dev/client/settings"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/run"
)

// maxKey bounds a key that is read from standard input.
const maxKey = 256

func noContext(name string) error {
	return fmt.Errorf("there is no context %s: wrenn context list shows them, wrenn login makes one", plain.Line(name))
}

type loginCommand struct {
	Name   string `placeholder:"NAME" help:"Its name among the contexts; default: the host of the URL."`
	Server string `arg:"" name:"url" help:"The server's address, such as https://wrenn.example.com."`
}

// Help is shown below the usage.
func (*loginCommand) Help() string {
	return `The key is asked for, or read from standard input, or taken from $WRENN_API_KEY:

  wrenn login https://wrenn.example.com
  wrenn login https://wrenn.example.com < key.txt
  wrenn context use local`
}

// Run keeps the server if the key works.
func (c *loginCommand) Run(ctx context.Context, s *session) error {
	name, err := c.name()
	if err != nil {
		return err
	}
	key, err := s.readKey(ctx)
	if err != nil {
		return err
	}
	api, err := client.New(client.Config{URL: c.Server, Key: key, UserAgent: "wrenn-cli/" + version()})
	if err != nil {
		return err
	}
	if _, err := api.Templates(ctx); err != nil { // every scope may read
		return fmt.Errorf("%s: %w", plain.Line(c.Server), err)
	}
	return s.changeSettings(func(file *settings.File) error {
		file.Contexts[name] = settings.Server{URL: api.URL(), Key: key}
		file.URL, file.Key = api.URL(), key
		return s.print(map[string]string{"context": name, "url": api.URL()}, func(w io.Writer) {
			fmt.Fprintf(w, "%s is in use from now on, as %s\n", plain.Line(api.URL()), name)
		})
	})
}

func (c *loginCommand) name() (string, error) {
	name := c.Name
	if name == "" {
		if parsed, err := url.Parse(c.Server); err == nil {
			name = parsed.Hostname()
		}
	}
	if !nameForm.MatchString(name) {
		return "", fmt.Errorf("%w: give a name by --name, of A-Z a-z 0-9 _ . and -", run.ErrUsage)
	}
	return name, nil
}

// readKey returns the key of the environment, else asks for it on a terminal, where
// it is not shown, or reads a line of the input.
func (s *session) readKey(ctx context.Context) (string, error) {
	key := s.Environ("WRENN_API_KEY")
	switch f := terminal(s.In); {
	case key != "":
	case f != nil:
		fmt.Fprint(s.Err, "API key: ")
		secret, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(s.Err)
		if err != nil {
			return "", fmt.Errorf("read the key: %w", err)
		}
		key = string(secret)
	default:
		text, err := line(ctx, io.LimitReader(s.In, maxKey))
		if err != nil {
			return "", fmt.Errorf("read the key: %w", err)
		}
		key = text
	}
	if key = strings.TrimSpace(key); key == "" {
		return "", errors.New("no API key was given")
	}
	return key, nil
}

// changeSettings changes the configuration file. The server in use is kept among the
// contexts, so that it is not lost.
func (s *session) changeSettings(change func(*settings.File) error) error {
	file, err := s.settings()
	if err != nil {
		return err
	}
	if file.Contexts == nil {
		file.Contexts = map[string]settings.Server{}
	}
	if file.URL != "" && !slices.Contains(slices.Collect(maps.Values(file.Contexts)), file.InUse()) {
		file.Contexts[localContext] = file.InUse()
	}
	if err := change(&file); err != nil {
		return err
	}
	_, err = s.save(file)
	return err
}

// localContext is the context of a server that login did not keep: that of wrenn up.
const localContext = "local"

type contextCommands struct {
	List   contextListCommand   `cmd:"" aliases:"ls" help:"List the contexts."`
	Use    contextUseCommand    `cmd:"" help:"Use a context from now on."`
	Delete contextDeleteCommand `cmd:"" aliases:"rm" help:"Forget a context and its key. The key is not revoked."`
}

type contextListCommand struct{}

// Run prints a table, or an array of JSON. Keys are not shown.
func (*contextListCommand) Run(s *session) error {
	type context struct {
		Name  string `json:"name"`
		URL   string `json:"url"`
		InUse bool   `json:"in_use"`
	}
	file, err := s.settings()
	if err != nil {
		return err
	}
	all := []context{}
	for _, name := range slices.Sorted(maps.Keys(file.Contexts)) {
		one := file.Contexts[name]
		all = append(all, context{name, one.URL, one == file.InUse()})
	}
	if file.URL != "" && !slices.ContainsFunc(all, func(c context) bool { return c.InUse }) {
		all = append(all, context{localContext, file.URL, true})
	}
	return s.print(all, func(w io.Writer) {
		rows := [][]string{{"NAME", "URL", "IN USE"}}
		for _, c := range all {
			rows = append(rows, []string{c.Name, c.URL, map[bool]string{true: "yes", false: "-"}[c.InUse]})
		}
		table(w, rows)
	})
}

type contextUseCommand struct {
	Name string `arg:"" help:"The context."`
}

// Run makes the context the server in use.
func (c *contextUseCommand) Run(s *session) error {
	return s.changeSettings(func(file *settings.File) error {
		one, ok := file.Contexts[c.Name]
		if !ok {
			return noContext(c.Name)
		}
		file.URL, file.Key = one.URL, one.Key
		return nil
	})
}

type contextDeleteCommand struct {
	Name string `arg:"" help:"The context."`
}

// Run forgets the context; if it is in use, no server is in use afterwards.
func (c *contextDeleteCommand) Run(s *session) error {
	return s.changeSettings(func(file *settings.File) error {
		one, ok := file.Contexts[c.Name]
		if !ok {
			return noContext(c.Name)
		}
		if one == file.InUse() {
			file.URL, file.Key = "", ""
		}
		delete(file.Contexts, c.Name)
		return nil
	})
}

// withLocal returns the contexts with that of this machine's server, if there are any.
func withLocal(contexts map[string]settings.Server, here settings.Server) map[string]settings.Server {
	if len(contexts) > 0 {
		contexts[localContext] = here
	}
	return contexts
}
