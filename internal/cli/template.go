package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
)

type templateCommands struct {
	Build   templateBuildCommand   `cmd:"" help:"Build a template, from which sandboxes start with their programs already running, and print the id of the build."`
	List    templateListCommand    `cmd:"" aliases:"ls" help:"List templates: base and those of the team."`
	Get     templateGetCommand     `cmd:"" help:"Show a template."`
	Logs    templateLogsCommand    `cmd:"" help:"Print the log of a template's newest build."`
	Network templateNetworkCommand `cmd:"" help:"Show or set what the sandboxes of a template may reach of the internet."`
	Delete  templateDeleteCommand  `cmd:"" aliases:"rm" help:"Delete templates; sandboxes created from them keep running."`
}

type templateBuildCommand struct {
	Name         string            `arg:"" complete:"template" help:"The template, as name or name:tag. An existing template of that name is replaced when the build is ready. The names base, code-interpreter-v1, desktop and mcp-gateway need nothing else: they have recipes."`
	Context      string            `arg:"" optional:"" placeholder:"DIR" help:"The directory that a Dockerfile's COPY copies from; default with --file: the current one."`
	File         string            `short:"f" placeholder:"FILE" help:"Build from a Dockerfile, - for standard input; default with a context: its Dockerfile."`
	BuildArgs    map[string]string `name:"build-arg" placeholder:"NAME=VALUE" mapsep:"none" help:"The value of an ARG of the Dockerfile; may be repeated."`
	NoCache      bool              `help:"Run all steps of the Dockerfile, even if their results are cached."`
	FromTemplate string            `xor:"from" complete:"template" placeholder:"NAME" help:"Start from the disk of another template, or of base; replaces FROM of a Dockerfile."`
	From         string            `xor:"from" placeholder:"IMAGE" help:"Start from a guest image of the host; default: base."`
	FromOCI      string            `name:"from-oci" xor:"from" placeholder:"REF" help:"Start from a container image in a registry, such as python:3.12-slim."`
	FromSandbox  string            `xor:"from" complete:"sandbox" placeholder:"ID" help:"Make the template from a running sandbox in its current state."`
	RegistryUser string            `placeholder:"NAME" help:"The registry's user, for --from-oci. Its password is not stored."`
	PasswordFile string            `name:"registry-password-file" placeholder:"FILE" help:"The registry's password or token, - for standard input; default: $$WRENN_REGISTRY_PASSWORD."`
	VCPUs        count             `name:"vcpus" placeholder:"N" help:"Virtual CPUs of its sandboxes; default: 1."`
	Memory       count             `short:"m" placeholder:"MB" help:"Memory of its sandboxes in MiB; default: 512."`
	Disk         mebibytes         `placeholder:"SIZE" help:"Size of the disk of its sandboxes, as 20G; default: that of the source, mostly 10G."`
	Env          map[string]string `short:"e" placeholder:"NAME=VALUE" mapsep:"none" help:"An environment variable of every command in its sandboxes; may be repeated."`
	StartCmd     string            `placeholder:"COMMAND" help:"A shell command, such as a server, that is running in every sandbox."`
	ReadyCmd     string            `placeholder:"COMMAND" help:"A shell command that succeeds once the start command is ready; repeated until it succeeds."`
	ReadyTimeout span              `placeholder:"TIME" help:"How long to wait for --ready-cmd; default: 2m."`
	networkLists
	Detach bool `short:"d" help:"Do not wait for the build, which runs on the server."`
}

// Run starts the build and, without --detach, follows it to its end.
func (c *templateBuildCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	if recipe, ok := c.recipe(); ok {
		done, err := c.useRecipe(recipe)
		if err != nil {
			return err
		}
		defer done()
	}
	password, err := c.password(s)
	if err != nil {
		return err
	}
	build := client.BuildTemplate{
		Name: c.Name, FromImage: c.From, FromOCI: c.FromOCI, RegistryUsername: c.RegistryUser, RegistryPassword: password,
		FromSandbox: c.FromSandbox, FromTemplate: c.FromTemplate,
		VCPUs: int(c.VCPUs), MemoryMB: int(c.Memory), DiskMB: int(c.Disk), Env: c.Env, StartCmd: c.StartCmd, ReadyCmd: c.ReadyCmd, ReadyTimeout: c.ReadyTimeout.Duration, Network: c.lists(),
	}
	if c.File != "" || c.Context != "" {
		err = c.addDockerfile(ctx, s, api, &build)
	} else if len(c.BuildArgs) > 0 || c.NoCache {
		err = errors.New("--build-arg and --no-cache are for a Dockerfile: give --file or its directory")
	}
	if err != nil {
		return err
	}
	g, err := api.BuildTemplate(ctx, build)
	if err != nil {
		return err
	}
	if c.Detach {
		fmt.Fprintf(s.Err, "building; follow it with: wrenn template logs --follow %s\n", g.Template)
		return s.print(g, func(w io.Writer) { fmt.Fprintln(w, g.ID) })
	}
	return s.followBuild(ctx, api, g)
}

// password returns the password of the registry's user.
func (c *templateBuildCommand) password(s *session) (string, error) {
	const most = 8 << 10 // the server's limit
	if c.RegistryUser == "" && c.PasswordFile == "" {
		return "", nil
	}
	if c.FromOCI == "" && c.File == "" && c.Context == "" {
		return "", errors.New("a registry's user and password are for --from-oci and a Dockerfile")
	}
	from := s.In
	switch c.PasswordFile {
	case "":
		return s.Environ("WRENN_REGISTRY_PASSWORD"), nil
	case standard:
	default:
		f, err := os.Open(c.PasswordFile)
		if err != nil {
			return "", fmt.Errorf("registry's password: %w", err)
		}
		defer f.Close()
		from = f
	}
	text, err := io.ReadAll(io.LimitReader(from, most+1))
	if err != nil {
		return "", fmt.Errorf("registry's password: %w", err)
	}
	if len(text) > most {
		return "", fmt.Errorf("the registry's password is longer than %d bytes", most)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// followBuild prints a build's log, and its id when it is ready. The
// server builds: interrupting followBuild does not cancel the build.
func (s *session) followBuild(ctx context.Context, api *client.Client, g *client.Build) error {
	done, err := api.FollowBuild(ctx, g.Template, g.ID, func(line string) {
		fmt.Fprintln(s.Err, s.paint(s.Err, faint, plain.Line(line)))
	})
	if err != nil {
		if ctx.Err() != nil {
			fmt.Fprintf(s.Err, "\nThe build continues. Follow it with: wrenn template logs --follow %s\nCancel it with:                      wrenn template delete %[1]s\n", g.Template)
		}
		return err
	}
	if done.State != client.BuildReady {
		return fmt.Errorf("template %s was not built: %s", plain.Line(g.Template), plain.Line(cmp.Or(done.Reason, string(done.State))))
	}
	return s.print(done, func(w io.Writer) { fmt.Fprintln(w, done.ID) })
}

type templateListCommand struct {
	Quiet bool `short:"q" help:"Print only the names."`
}

// Run prints a table, or an array of JSON.
func (c *templateListCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	list, err := api.Templates(ctx)
	if err != nil {
		return err
	}
	return s.print(list, func(w io.Writer) {
		if c.Quiet {
			for _, t := range list {
				fmt.Fprintln(w, plain.Line(t.Name))
			}
			return
		}
		rows := [][]string{{"NAME", "BUILD", "VCPUS", "MEMORY", "SIZE", "AGE", "FROM", "STATE"}}
		for _, t := range list {
			rows = append(rows, templateRow(t))
		}
		table(w, rows)
	})
}

func templateRow(t client.Template) []string {
	g := t.Current
	if g == nil {
		g = t.Latest
	}
	if g == nil {
		return []string{t.Name, "-", "any", "any", "-", "-", "the guest image", "built in"}
	}
	mib := "-"
	if g.SizeBytes > 0 {
		mib = size(g.SizeBytes)
	}
	return []string{t.Name, g.ID, fmt.Sprint(g.VCPUs), fmt.Sprintf("%dM", g.MemoryMB), mib, age(g.CreatedAt), sourceOf(g), templateState(t)}
}

func sourceOf(g *client.Build) string {
	switch {
	case g.FromOCI != "":
		return g.FromOCI
	case g.FromImage != "":
		return "image " + g.FromImage
	case g.FromSandbox != "":
		return "sandbox " + g.FromSandbox
	case g.FromTemplate != "":
		return "template " + g.FromTemplate
	}
	return "base"
}

// templateState describes whether a template can be used, and the state of its newest build.
func templateState(t client.Template) string {
	newest := ""
	if t.Latest != nil && (t.Current == nil || t.Latest.ID != t.Current.ID) {
		newest = string(t.Latest.State)
		if t.Latest.Reason != "" {
			newest += ": " + t.Latest.Reason
		}
	}
	switch {
	case t.Current == nil:
		return newest
	case newest == "":
		return readyState(t.Current)
	}
	return readyState(t.Current) + "; the newest build: " + newest
}

// readyState is the state of a build that is used.
func readyState(g *client.Build) string {
	if g.StoredAt.IsZero() {
		return string(g.State)
	}
	return string(g.State) + ", stored"
}

type templateGetCommand struct {
	Name string `arg:"" complete:"template" help:"The template."`
}

// Run shows a template and its builds.
func (c *templateGetCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	t, err := api.Template(ctx, c.Name)
	if err != nil {
		return err
	}
	return s.print(t, func(w io.Writer) {
		fmt.Fprintf(w, "name        %s\nstate       %s\n", plain.Line(t.Name), plain.Line(templateRow(*t)[7]))
		if t.Current != nil {
			showBuild(w, "build", t.Current)
		}
		if t.Latest != nil && (t.Current == nil || t.Latest.ID != t.Current.ID) {
			showBuild(w, "newest", t.Latest)
		}
	})
}

func showBuild(w io.Writer, what string, g *client.Build) {
	fmt.Fprintf(w, "%-11s %s (%s ago)\n", what, g.ID, age(g.CreatedAt))
	for _, row := range [][2]string{
		{"from", sourceOf(g)}, {"digest", g.Digest}, {"vcpus", fmt.Sprint(g.VCPUs)}, {"memory", fmt.Sprintf("%d MiB", g.MemoryMB)}, {"disk", fmt.Sprintf("%d MiB", g.DiskMB)},
		{"start", g.StartCmd}, {"ready", g.ReadyCmd},
	} {
		if row[1] != "" {
			fmt.Fprintf(w, "  %-9s %s\n", row[0], plain.Line(row[1]))
		}
	}
	if g.SizeBytes > 0 {
		fmt.Fprintf(w, "  %-9s %s on the disk\n", "size", size(g.SizeBytes))
	}
}

type templateLogsCommand struct {
	Name   string `arg:"" complete:"template" help:"The template."`
	Follow bool   `short:"f" help:"Print new lines until the build ends; exit with 1 if it fails."`
}

// Run prints the log to standard output.
func (c *templateLogsCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	t, err := api.Template(ctx, c.Name)
	if err != nil {
		return err
	}
	if t.Latest == nil {
		return fmt.Errorf("template %s is built in: there was no build", plain.Line(t.Name))
	}
	if c.Follow {
		return s.followBuild(ctx, api, t.Latest)
	}
	lines := []string{} // JSON's [], not null
	for from := int64(0); ; {
		log, err := api.BuildLog(ctx, c.Name, t.Latest.ID, from)
		if err != nil {
			return err
		}
		if len(log.Lines) == 0 {
			break
		}
		lines, from = append(lines, log.Lines...), log.Next
	}
	return s.print(lines, func(w io.Writer) {
		for _, line := range lines {
			fmt.Fprintln(w, plain.Line(line))
		}
	})
}

type templateDeleteCommand struct {
	Names []string `arg:"" name:"name" complete:"template" help:"The templates."`
}

// Run deletes them one by one.
func (c *templateDeleteCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, "deleting", c.Names, api.DeleteTemplate)
}
