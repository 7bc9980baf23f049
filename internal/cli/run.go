package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/run"
)

// cleanUp bounds the removal of a sandbox at the end of run.
const cleanUp = 30 * time.Second

type runCommand struct {
	createFlags

	Copy    []copyIn `short:"v" sep:"none" placeholder:"DIR:/PATH" help:"A directory of this machine to copy into it before the command runs; may be repeated. Changes are not copied back."`
	Remove  bool     `name:"rm" help:"Destroy it when the command ends; otherwise it stays for its --timeout."`
	Tty     bool     `help:"Give the command a terminal; default: without a command only, for a shell."`
	Cwd     string   `short:"C" placeholder:"DIR" help:"Working directory of the command; default: the user's home."`
	User    string   `short:"u" placeholder:"USER" help:"The user that runs it; default: the template's default user."`
	Command []string `arg:"" optional:"" passthrough:"partial" help:"The command and its arguments; default: a shell, if this is a terminal. It is not run by a shell: use sh -c '...' for pipes."`
}

// Help is shown below the usage.
func (*runCommand) Help() string {
	return `Examples:

  wrenn run --rm -- python3 -c 'print(6*7)'
  wrenn run --rm -v ./src:/work -C /work -- make test
  wrenn run --name web -t web --timeout 1h -- sleep infinity
  wrenn run --rm --network none`
}

// copyIn is a directory of this machine, and where it goes.
type copyIn struct{ from, to string }

// UnmarshalText reads "DIR:/PATH".
func (c *copyIn) UnmarshalText(text []byte) error {
	at := strings.LastIndex(string(text), ":/")
	if at <= 0 {
		return fmt.Errorf("%.80q is not a directory and where to copy it: write DIR:/PATH", text)
	}
	c.from, c.to = string(text[:at]), string(text[at+1:])
	return nil
}

// Run ends with the command's exit code. The id goes to standard error, because
// standard output is the command's.
func (c *runCommand) Run(ctx context.Context, s *session) (err error) {
	command := afterDashes(c.Command)
	tty := c.Tty
	if len(command) == 0 {
		if terminal(s.In) == nil {
			return fmt.Errorf("%w: which command? wrenn run -- COMMAND", run.ErrUsage)
		}
		command, tty = loginShell(), true
	}
	if tty && s.json() {
		return fmt.Errorf("%w: -o json is not for a command with a terminal", run.ErrUsage)
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	sb, err := c.create(ctx, s, api)
	if err != nil {
		return err
	}
	if c.Remove {
		defer func() { err = errors.Join(err, remove(ctx, api, sb.ID)) }()
	} else {
		fmt.Fprintln(s.Err, s.paint(s.Err, faint, sb.ID))
	}
	if err := c.copyAll(ctx, s, api, sb.ID); err != nil {
		return err
	}
	p := &program{s: s, id: sb.ID, tty: tty, input: true}
	return p.start(ctx, api, client.Command{Cmd: command[0], Args: command[1:], Cwd: c.Cwd, User: c.User})
}

// remove destroys a sandbox, also after Ctrl-C.
func remove(ctx context.Context, api *client.Client, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
	defer cancel()
	if err := api.DeleteSandbox(ctx, id); err != nil {
		return fmt.Errorf("destroy %s: %w", id, err)
	}
	return nil
}

// copyAll copies the directories of -v, each into one that the command's user owns.
func (c *runCommand) copyAll(ctx context.Context, s *session, api *client.Client, id string) error {
	for _, dir := range c.Copy {
		if err := c.makeFor(ctx, api, id, dir.to); err != nil {
			return fmt.Errorf("make %s: %w", dir.to, err)
		}
		tree := &copyCommand{Recursive: true, User: c.User, From: strings.TrimRight(dir.from, "/") + "/.", To: id + ":" + dir.to}
		if err := tree.tree(ctx, s, api); err != nil {
			return err
		}
	}
	return nil
}

// makeFor makes a directory for the command's user, unless it exists.
func (c *runCommand) makeFor(ctx context.Context, api *client.Client, id, dir string) error {
	user, err := api.Exec(ctx, id, client.Command{Cmd: "id", Args: []string{"-u"}, User: c.User})
	if err != nil {
		return err
	}
	const script = `[ -d "$1" ] || { mkdir -p -- "$1" && chown -- "$2" "$1"; }`
	made, err := api.Exec(ctx, id, client.Command{
		Cmd: "/bin/sh", Args: []string{"-c", script, "sh", dir, strings.TrimSpace(string(user.Stdout))}, User: "root",
	})
	if err == nil && made.ExitCode != 0 {
		err = errors.New(strings.TrimSpace(string(made.Stderr)))
	}
	return err
}
