package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/run"
)

type sandboxCommands struct {
	Create   createCommand   `cmd:"" help:"Create a sandbox and print its id."`
	List     listCommand     `cmd:"" aliases:"ls" help:"List sandboxes, newest first. Those that have ended are listed only with --all or --state."`
	Get      getCommand      `cmd:"" help:"Show a sandbox."`
	Exec     execCommand     `cmd:"" help:"Run a command in a sandbox, with its input, output and exit code here."`
	Shell    shellCommand    `cmd:"" help:"Open a shell in a sandbox."`
	Kill     killCommand     `cmd:"" aliases:"rm" help:"Destroy sandboxes."`
	Pause    pauseCommand    `cmd:"" help:"Save sandboxes with their running programs to the disk and free their memory."`
	Resume   resumeCommand   `cmd:"" help:"Continue paused sandboxes where they stopped."`
	Fork     forkCommand     `cmd:"" help:"Make running copies of a sandbox and print their ids."`
	SSH      sshCommand      `cmd:"" name:"ssh" help:"Open an SSH session in a sandbox, by this machine's ssh; the sandbox needs no SSH server."`
	SSHProxy sshProxyCommand `cmd:"" name:"ssh-proxy" hidden:""`
	Wait     waitCommand     `cmd:"" help:"Wait until a sandbox runs, is paused, or has ended."`
	Timeout  timeoutCommand  `cmd:"" help:"Set the time without use after which a sandbox ends."`
	Set      settingsCommand `cmd:"" help:"Change what happens at a sandbox's timeout, by its next use, and when its host is lost."`
	Network  networkCommand  `cmd:"" help:"Show or set what a sandbox may reach, what it reached, and why."`
	Stats    statsCommand    `cmd:"" help:"Show how much CPU, memory and disk a sandbox used."`
	Logs     logsCommand     `cmd:"" help:"Print a sandbox's console, or the output of a program that exec -d started."`
	Cp       copyCommand     `cmd:"" help:"Copy files into, out of or between sandboxes."`
	Files    fileCommands    `cmd:"" aliases:"file" help:"List, remove, move and watch files of a sandbox."`
	PS       psCommand       `cmd:"" name:"ps" help:"List the programs that run in a sandbox."`
	Signal   signalCommand   `cmd:"" help:"End programs of a sandbox, by their process ids."`
	Port     portCommand     `cmd:"" help:"Print the URL of a web server in a sandbox."`
}

// never is the text for client.Never.
const never = "never"

// idle is the idle time after which a sandbox's timeout happens.
type idle struct{ time.Duration }

// UnmarshalText reads "90s", "1h30m" or "never".
func (d *idle) UnmarshalText(text []byte) (err error) {
	if string(text) == never {
		d.Duration = client.Never
		return nil
	}
	d.Duration, err = time.ParseDuration(string(text))
	if err != nil || d.Duration <= 0 {
		return fmt.Errorf("%q is not a duration: write 90s, 1h30m or never", text)
	}
	return nil
}

// createFlags are what a new sandbox is like.
type createFlags struct {
	Name            string            `placeholder:"NAME" help:"A name, by which commands find it; kept as the label \"name\"."`
	Template        string            `short:"t" complete:"template" placeholder:"NAME" help:"The template to start from; default: base."`
	VCPUs           count             `name:"vcpus" placeholder:"N" help:"Virtual CPUs; default: 1, or those of --template."`
	Memory          count             `short:"m" placeholder:"MB" help:"Memory in MiB; default: 512, or that of --template."`
	Disk            mebibytes         `placeholder:"SIZE" help:"Size of the disk, as 20G; default: that of the template, of which base has 10G."`
	Timeout         idle              `placeholder:"TIME" help:"Time without use after which it ends, such as 90s, 1h or never; default: 5m."`
	OnTimeout       client.OnTimeout  `enum:"destroy,pause,pause_disk" default:"destroy" help:"What happens after --timeout: ${enum}."`
	AutoResume      bool              `help:"Resume it by its next use after a pause."`
	OnHostLoss      client.OnHostLoss `enum:"fail,restore" default:"fail" help:"What becomes of it when its host is lost while it runs: ${enum}. It is restored from its newest checkpoint in the snapshot store."`
	CheckpointEvery time.Duration     `placeholder:"TIME" help:"Make a checkpoint this often while it is used, such as 5m; default: never."`
	Metadata        map[string]string `short:"l" placeholder:"NAME=VALUE" mapsep:"none" help:"A label; may be repeated."`
	Env             map[string]string `short:"e" placeholder:"NAME=VALUE" mapsep:"none" help:"An environment variable of every command; may be repeated."`
	Require         map[string]string `placeholder:"KEY=VALUE" mapsep:"none" help:"A label that its host must have, or zone=NAME; may be repeated."`
	Volumes         []mountFlag       `name:"volume" placeholder:"NAME:/PATH" sep:"none" help:"A volume to mount, and where; may be repeated."`
	networkRules
	portRules
}

// create makes the sandbox and returns when it runs.
func (c *createFlags) create(ctx context.Context, s *session, api *client.Client) (sb *client.Sandbox, err error) {
	network, err := c.policy()
	if err != nil {
		return nil, err
	}
	labels, err := named(ctx, api, c.Name, c.Metadata)
	if err != nil {
		return nil, err
	}
	err = s.during(ctx, "creating a sandbox", func(ctx context.Context) (err error) {
		sb, err = api.CreateSandbox(ctx, client.CreateSandbox{
			Template: c.Template, VCPUs: int(c.VCPUs), MemoryMB: int(c.Memory), DiskMB: int(c.Disk), Timeout: c.Timeout.Duration,
			OnTimeout: c.OnTimeout, AutoResume: c.AutoResume, Metadata: labels, Env: c.Env, Network: network, Ports: c.ports(), Volumes: mountsOf(c.Volumes), Requires: c.Require,
			OnHostLoss: c.OnHostLoss, CheckpointEvery: c.CheckpointEvery,
		})
		return err
	})
	return sb, err
}

type createCommand struct {
	createFlags

	FromCheckpoint string `complete:"file" placeholder:"ID:CHECKPOINT" help:"Copy a checkpoint of a sandbox, which has all settings but the name and the labels."`
}

// Help is shown below the usage.
func (*createCommand) Help() string {
	return `It prints the id alone, for scripts:

  ID=$(wrenn sandbox create --timeout 1h -l user=alice)
  wrenn sandbox create --name web -t python --memory 2048 --on-timeout pause --auto-resume
  wrenn sandbox create --network none --allow pypi.org --allow '*.pythonhosted.org'
  wrenn sandbox create --from-checkpoint $ID:$CHECKPOINT`
}

// Run prints the id alone, for scripts.
func (c *createCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	create := c.create
	if c.FromCheckpoint != "" {
		create = c.copyCheckpoint
	}
	sb, err := create(ctx, s, api)
	if err != nil {
		return err
	}
	return s.print(sb, func(w io.Writer) { fmt.Fprintln(w, sb.ID) })
}

// copyCheckpoint makes a copy of a checkpoint.
func (c *createCommand) copyCheckpoint(ctx context.Context, s *session, api *client.Client) (*client.Sandbox, error) {
	id, checkpoint, ok := strings.Cut(c.FromCheckpoint, ":")
	if !ok || checkpoint == "" {
		return nil, fmt.Errorf("%w: --from-checkpoint is SANDBOX:CHECKPOINT; wrenn checkpoint list shows them", run.ErrUsage)
	}
	network, err := c.policy()
	if err != nil {
		return nil, err
	}
	if c.Template != "" || c.VCPUs+c.Memory+count(c.Disk) > 0 || c.Timeout.Duration != 0 || c.OnTimeout != client.DestroyOnTimeout || c.AutoResume || c.OnHostLoss != client.FailOnHostLoss || c.CheckpointEvery != 0 ||
		len(c.Env)+len(c.Volumes) > 0 || network != nil || c.ports() != nil {
		return nil, fmt.Errorf("%w: with --from-checkpoint only --name and -l: a copy has the other settings of the sandbox", run.ErrUsage)
	}
	labels, err := named(ctx, api, c.Name, c.Metadata)
	if err != nil {
		return nil, err
	}
	if labels == nil {
		labels = map[string]string{} // none, not those of the sandbox
	}
	var forked *client.Forked
	err = s.during(ctx, "copying a checkpoint of "+id, func(ctx context.Context) (err error) {
		forked, err = api.ForkSandbox(ctx, id, client.Fork{Metadata: labels, Checkpoint: checkpoint})
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(forked.Sandboxes) != 1 {
		return nil, errors.New("the server made no copy")
	}
	return &forked.Sandboxes[0], nil
}

type listCommand struct {
	All      bool              `short:"a" help:"Also list those that have ended."`
	State    []client.State    `placeholder:"STATE" help:"List only those in this state; may be repeated."`
	Metadata map[string]string `short:"l" placeholder:"NAME=VALUE" mapsep:"none" help:"List only those with this label; may be repeated."`
	Limit    count             `short:"n" placeholder:"N" help:"Print at most this many; default: all."`
	Quiet    bool              `short:"q" help:"Print only the ids."`
	Watch    bool              `short:"w" help:"Show the list again every 2 seconds, until Ctrl-C."`
}

// living are the states of sandboxes that did not end.
var living = []client.State{
	client.Pending, client.Starting, client.Running, client.Pausing, client.Paused, client.Resuming, client.Stopping,
}

// Run prints a table, or an array of JSON.
func (c *listCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	if !c.Watch {
		return c.once(ctx, s, api)
	}
	return s.watch(ctx, watchList, func(ctx context.Context) error { return c.once(ctx, s, api) })
}

func (c *listCommand) once(ctx context.Context, s *session, api *client.Client) error {
	list := client.ListSandboxes{States: c.State, Metadata: c.Metadata}
	if len(c.State) == 0 && !c.All {
		list.States = living
	}
	sandboxes := []client.Sandbox{} // JSON's [], not null
	for sb, err := range api.Sandboxes(ctx, list) {
		if err != nil {
			return err
		}
		sandboxes = append(sandboxes, sb)
		if len(sandboxes) == int(c.Limit) {
			break
		}
	}
	return s.print(sandboxes, func(w io.Writer) {
		if c.Quiet {
			for _, sb := range sandboxes {
				fmt.Fprintln(w, sb.ID)
			}
			return
		}
		s.listing(w, sandboxes)
	})
}

// listing writes a table of sandboxes. The last column is cut at the width of a terminal.
func (s *session) listing(w io.Writer, sandboxes []client.Sandbox) {
	rows := [][]string{{"ID", "STATE", "LEFT", "TEMPLATE", "VCPUS", "MEMORY", "AGE", "DETAILS"}}
	for _, sb := range sandboxes {
		rows = append(rows, []string{
			sb.ID, string(sb.State), left(sb), sb.Template, fmt.Sprint(sb.VCPUs), fmt.Sprintf("%dM", sb.MemoryMB), age(sb.CreatedAt), details(sb),
		})
	}
	const stateColumn = 1
	s.fitted(w, rows, func(row, column int, text string) string {
		if row == 0 || column != stateColumn {
			return text
		}
		return s.paint(w, stateColor(client.State(strings.TrimSpace(text))), text)
	})
}

// left returns how much is left of a running sandbox's timeout.
func left(sb client.Sandbox) string {
	switch {
	case sb.State != client.Running:
		return "-"
	case sb.TimeoutSec == 0:
		return never
	}
	return span{time.Until(deadline(sb))}.String()
}

// deadline returns when a running sandbox's timeout happens if it is not used until then.
func deadline(sb client.Sandbox) time.Time {
	if !sb.EndsAt.IsZero() {
		return sb.EndsAt
	}
	used := sb.LastActiveAt
	if used.IsZero() {
		used = sb.CreatedAt
	}
	return used.Add(time.Duration(sb.TimeoutSec) * time.Second)
}

// details returns what else there is to know of a sandbox: why it ended, and its labels.
func details(sb client.Sandbox) string {
	var parts []string
	if u := sb.Unresponsive; u != nil {
		parts = append(parts, fmt.Sprintf("unresponsive for %s: %s", age(u.Since), u.Reason))
	} else if sb.Reason != "" {
		parts = append(parts, sb.Reason)
	}
	if !sb.StoredAt.IsZero() {
		parts = append(parts, "stored")
	}
	if len(sb.Metadata) > 0 {
		parts = append(parts, pairs(sb.Metadata))
	}
	return orDash(strings.Join(parts, "; "))
}

// pairs formats labels in one line.
func pairs(labels map[string]string) string {
	out := make([]string, 0, len(labels))
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, name+"="+labels[name])
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, ",")
}

type getCommand struct {
	ID string `arg:"" complete:"sandbox" help:"The sandbox."`
}

// Run shows one sandbox.
func (c *getCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	sb, err := api.Sandbox(ctx, c.ID)
	if err != nil {
		return err
	}
	return s.show(sb)
}

func (s *session) show(sb *client.Sandbox) error {
	return s.print(sb, func(w io.Writer) {
		timeout := never
		if sb.TimeoutSec > 0 {
			timeout = fmt.Sprintf("%s, then %s", time.Duration(sb.TimeoutSec)*time.Second, sb.OnTimeout)
			if sb.State == client.Running {
				timeout += ", " + left(*sb) + " left"
			}
		}
		fmt.Fprintf(w, "id        %s\nstate     %s\n", sb.ID, s.paintState(sb.State))
		if sb.Reason != "" {
			fmt.Fprintf(w, "reason    %s\n", plain.Line(sb.Reason))
		}
		if sb.State == client.Stopped || sb.State == client.Failed {
			fmt.Fprintf(w, "ended     %s (%s ago)\n", sb.UpdatedAt.Local().Format(time.DateTime), age(sb.UpdatedAt))
		}
		if sb.EndCause != "" {
			fmt.Fprintf(w, "ended by  %s\n", plain.Line(string(sb.EndCause)))
		}
		if u := sb.Unresponsive; u != nil {
			fmt.Fprintf(w, "silent    for %s: %s; kill it, or pause it with --force\n", age(u.Since), plain.Line(u.Reason))
		}
		fmt.Fprintf(w, "template  %s\nvcpus     %d\nmemory    %d MiB\ndisk      %d MiB\ntimeout   %s\nmetadata  %s\ncreated   %s (%s ago)\n",
			plain.Line(sb.Template), sb.VCPUs, sb.MemoryMB, sb.DiskMB, timeout, plain.Line(pairs(sb.Metadata)),
			sb.CreatedAt.Local().Format(time.DateTime), age(sb.CreatedAt))
		if sb.Network != nil {
			fmt.Fprintf(w, "network   %s\n", networkLine(sb.Network))
		}
		if sb.Ports != nil {
			fmt.Fprintf(w, "ports     %s\n", portsLine(sb.Ports))
		}
		if len(sb.Volumes) > 0 {
			fmt.Fprintf(w, "volumes   %s\n", plain.Line(mountsLine(sb.Volumes)))
		}
		if sb.OnHostLoss == client.RestoreOnHostLoss || sb.CheckpointEverySec > 0 {
			fmt.Fprintf(w, "host loss %s\n", lossLine(sb))
		}
		if sb.AutoResume {
			fmt.Fprintln(w, "resumes   when it is used")
		}
		if sb.ParentID != "" {
			fmt.Fprintf(w, "copy of   %s\n", sb.ParentID)
		}
		if !sb.LastActiveAt.IsZero() {
			fmt.Fprintf(w, "last use  %s ago\n", age(sb.LastActiveAt))
		}
	})
}

type killCommand struct {
	IDs      []string          `arg:"" complete:"sandbox" name:"id" optional:"" help:"The sandboxes."`
	All      bool              `xor:"which" help:"Destroy all sandboxes of the team."`
	Metadata map[string]string `short:"l" xor:"which" placeholder:"NAME=VALUE" mapsep:"none" help:"Destroy those with this label; may be repeated, all must match."`
	Yes      bool              `short:"y" help:"Do not ask. Without a terminal nothing is asked."`
}

// Run destroys as many of the sandboxes as possible; its error names the others.
func (c *killCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	ids := c.IDs
	switch chosen := c.All || len(c.Metadata) > 0; {
	case chosen && len(ids) > 0:
		return fmt.Errorf("%w: give ids, or --all or -l", run.ErrUsage)
	case chosen:
		if ids, err = c.selected(ctx, api); err != nil {
			return err
		}
		if ok, err := c.sure(ctx, s, ids); err != nil || !ok {
			return err
		}
	case len(ids) == 0:
		return errors.New("which sandboxes? Give their ids, or -l NAME=VALUE, or --all")
	}
	return s.each(ctx, "destroying", ids, api.DeleteSandbox)
}

func (c *killCommand) selected(ctx context.Context, api *client.Client) (ids []string, err error) {
	return matching(ctx, api, client.ListSandboxes{States: living, Metadata: c.Metadata}, "")
}

// sure asks on a terminal whether to destroy the sandboxes.
func (c *killCommand) sure(ctx context.Context, s *session, ids []string) (bool, error) {
	if c.Yes || len(ids) == 0 || terminal(s.In) == nil {
		return true, nil
	}
	fmt.Fprintf(s.Err, "Destroy %d sandboxes, with their files and checkpoints? [y/N] ", len(ids))
	answer, err := line(ctx, s.In)
	if err != nil {
		return false, err
	}
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes"), nil
}

// each calls do for each id and prints the ids for which it succeeded; the error names the others.
func (s *session) each(ctx context.Context, what string, ids []string, do func(context.Context, string) error) error {
	var failed []error
	done := []string{}
	for _, id := range ids {
		err := s.during(ctx, what+" "+id, func(ctx context.Context) error { return do(ctx, id) })
		if err == nil {
			done = append(done, id)
			continue
		}
		failed = append(failed, fmt.Errorf("%s: %w", id, err))
		if ctx.Err() != nil {
			break
		}
	}
	err := s.print(done, func(w io.Writer) {
		for _, id := range done {
			fmt.Fprintln(w, id)
		}
	})
	return errors.Join(append(failed, err)...)
}

type pauseCommand struct {
	IDs   []string `arg:"" complete:"sandbox" name:"id" help:"The sandboxes."`
	Force bool     `xor:"how" help:"Pause a sandbox that does not answer: its programs and disk are saved in their current state."`

	DiskOnly bool `xor:"how" help:"Save the disk alone: resumed, the sandbox boots, without the programs that ran."`
	Durable  bool `help:"Wait until the sandbox is in the snapshot store, from where any host can resume it."`
}

// Run pauses the sandboxes and returns when their memory is free.
func (c *pauseCommand) Run(ctx context.Context, s *session) error {
	pause := func(api *client.Client, ctx context.Context, id string) (*client.Sandbox, error) {
		return api.PauseSandboxBy(ctx, id, client.PauseOptions{Force: c.Force, DiskOnly: c.DiskOnly, Durable: c.Durable})
	}
	return s.change(ctx, "pausing", c.IDs, pause)
}

type resumeCommand struct {
	IDs  []string `arg:"" complete:"sandbox" name:"id" help:"The sandboxes."`
	Boot bool     `help:"Boot from the disk, although the memory was saved: programs, and what they have not written, are lost."`
}

// Run resumes the sandboxes and returns when they run.
func (c *resumeCommand) Run(ctx context.Context, s *session) error {
	if c.Boot {
		return s.change(ctx, "booting", c.IDs, (*client.Client).BootSandbox)
	}
	return s.change(ctx, "resuming", c.IDs, (*client.Client).ResumeSandbox)
}

func (s *session) change(ctx context.Context, what string, ids []string, do func(*client.Client, context.Context, string) (*client.Sandbox, error)) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, what, ids, func(ctx context.Context, id string) error {
		_, err := do(api, ctx, id)
		return err
	})
}

type forkCommand struct {
	ID       string            `arg:"" complete:"sandbox" help:"The sandbox, running or paused. It does not change."`
	Count    count             `short:"n" placeholder:"N" default:"1" help:"Number of copies, up to 100; default: 1."`
	Metadata map[string]string `short:"l" placeholder:"NAME=VALUE" mapsep:"none" help:"A label of each copy, instead of those of the sandbox; may be repeated."`

	Checkpoint string `placeholder:"CHECKPOINT" help:"Copy this checkpoint of the sandbox, and not the sandbox as it is now."`
}

// Help is shown below the usage.
func (*forkCommand) Help() string {
	return `Each copy has the memory, the running programs and the disk of one moment.

  wrenn sandbox fork ID -n 10 -l group=search
  wrenn sandbox fork ID --checkpoint $(wrenn checkpoint create ID "before the upgrade")`
}

// Run prints the ids of the copies that run, and fails when a copy does not.
func (c *forkCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	var forked *client.Forked
	err = s.during(ctx, "copying "+c.ID, func(ctx context.Context) (err error) {
		forked, err = api.ForkSandbox(ctx, c.ID, client.Fork{Count: int(c.Count), Metadata: c.Metadata, Checkpoint: c.Checkpoint})
		return err
	})
	if err != nil {
		return err
	}
	err = s.print(forked, func(w io.Writer) {
		for _, sb := range forked.Sandboxes {
			fmt.Fprintln(w, sb.ID)
		}
	})
	failed := []error{err}
	for _, f := range forked.Errors {
		failed = append(failed, fmt.Errorf("%s: %s", f.ID, plain.Line(f.Message)))
	}
	return errors.Join(failed...)
}

type timeoutCommand struct {
	ID   string `arg:"" complete:"sandbox" help:"The sandbox."`
	Time idle   `arg:"" help:"Time without use, such as 90s, 1h or never."`
}

// Run sets the timeout, counted from now.
func (c *timeoutCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	sb, err := api.SetTimeout(ctx, c.ID, c.Time.Duration)
	if err != nil {
		return err
	}
	return s.show(sb)
}

type settingsCommand struct {
	ID              string            `arg:"" complete:"sandbox" help:"The sandbox, which runs or is paused."`
	OnTimeout       client.OnTimeout  `enum:",destroy,pause,pause_disk" default:"" placeholder:"ACTION" help:"What happens at its timeout: destroy, pause or pause_disk."`
	AutoResume      string            `enum:",yes,no" default:"" placeholder:"yes|no" help:"Whether its next use after a pause resumes it."`
	OnHostLoss      client.OnHostLoss `enum:",fail,restore" default:"" placeholder:"ACTION" help:"What becomes of it when its host is lost while it runs: fail or restore."`
	CheckpointEvery idle              `placeholder:"TIME" help:"Make a checkpoint this often while it is used, such as 5m, or never."`
}

// Run changes what was given, and shows the sandbox.
func (c *settingsCommand) Run(ctx context.Context, s *session) error {
	change := client.ChangeSandbox{OnTimeout: c.OnTimeout, OnHostLoss: c.OnHostLoss}
	if c.AutoResume != "" {
		change.AutoResume = new(c.AutoResume == "yes")
	}
	if c.CheckpointEvery.Duration != 0 {
		change.CheckpointEvery = &c.CheckpointEvery.Duration
	}
	if change == (client.ChangeSandbox{}) {
		return fmt.Errorf("%w: say what to change, such as --on-host-loss restore", run.ErrUsage)
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	sb, err := api.ChangeSandbox(ctx, c.ID, change)
	if err != nil {
		return err
	}
	return s.show(sb)
}

// lossLine says what becomes of a sandbox when its host is lost, and from when it could be restored.
func lossLine(sb *client.Sandbox) string {
	line := string(sb.OnHostLoss)
	if sb.CheckpointEverySec > 0 {
		line += fmt.Sprintf(", a checkpoint every %s", time.Duration(sb.CheckpointEverySec)*time.Second)
	}
	if sb.CheckpointStoredAt.IsZero() {
		return line + ", none is stored yet"
	}
	return line + fmt.Sprintf(", the newest was stored %s ago", age(sb.CheckpointStoredAt))
}
