package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"wrenn.dev/client"
	"wrenn.dev/internal/plain"
	"wrenn.dev/internal/wake"
)

type hostCommands struct {
	List     hostListCommand     `cmd:"" aliases:"ls" help:"List hosts."`
	Get      hostGetCommand      `cmd:"" help:"Print a host."`
	Cordon   hostCordonCommand   `cmd:"" help:"Place no new sandboxes on hosts; those that they have stay."`
	Uncordon hostUncordonCommand `cmd:"" help:"Place sandboxes on hosts again."`
	Drain    hostDrainCommand    `cmd:"" help:"Move all sandboxes of hosts to others; running ones are paused for some seconds."`
	Explain  hostExplainCommand  `cmd:"" help:"Say why a sandbox is on its host, and which hosts could have it."`
	Remove   hostRemoveCommand   `cmd:"" help:"End the use of hosts that are cordoned and empty."`
	Lost     hostLostCommand     `cmd:"" help:"Declare that hosts do not come back: their sandboxes become failed."`
	Token    hostTokenCommand    `cmd:"" help:"Print a token with which one machine becomes a host, once."`
}

type hostListCommand struct{}

// Run prints a table, or an array of JSON.
func (*hostListCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	hosts, err := api.Hosts(ctx)
	if err != nil {
		return err
	}
	return s.print(hosts, func(w io.Writer) {
		rows := [][]string{{"ID", "STATUS", "ANSWERS", "ZONE", "DRIVER", "SANDBOXES", "MEMORY MB", "DISK FREE MB", "SEEN"}}
		for i := range hosts {
			h := &hosts[i]
			c := h.Capacity
			rows = append(rows, []string{
				h.ID, h.Status, yesNo(h.Reachable), orDash(h.Zone), orDash(h.Driver), ofLimit(int64(c.SandboxesUsed), int64(c.Sandboxes)),
				ofLimit(c.MemoryMBUsed, c.MemoryMB), strconv.FormatInt(c.DiskFreeMB, 10), seen(h),
			})
		}
		table(w, rows)
	})
}

type hostGetCommand struct {
	ID string `arg:"" complete:"host" help:"The host."`
}

// Run prints what is known of the host.
func (c *hostGetCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	h, err := api.Host(ctx, c.ID)
	if err != nil {
		return err
	}
	return s.print(h, func(w io.Writer) { printHost(w, h) })
}

func printHost(w io.Writer, h *client.Host) {
	from := "configuration"
	if h.Joined {
		from = "joined"
	}
	c := h.Capacity
	table(w, [][]string{
		{"id", h.ID},
		{"name", orDash(h.Name)},
		{"url", h.URL},
		{"zone", orDash(h.Zone)},
		{"labels", orDash(labels(h.Labels))},
		{"status", h.Status},
		{"from", from},
		{"answers", yesNo(h.Reachable)},
		{"seen", seen(h)},
		{"certificate until", until(h.CertificateUntil)},
		{"driver", orDash(h.Driver)},
		{"platform", orDash(h.Platform)},
		{"version", orDash(h.Version)},
		{"sandboxes", ofLimit(int64(c.SandboxesUsed), int64(c.Sandboxes))},
		{"memory MB", ofLimit(c.MemoryMBUsed, c.MemoryMB)},
		{"disk free MB", ofLimit(c.DiskFreeMB, c.DiskMB)},
		{"disks MB", ofLimit(c.DisksMBUsed, c.DisksMB)},
	})
	if h.Drain == nil {
		return
	}
	fmt.Fprintf(w, "\ndrain: %d sandboxes left, %d of them on their way\n", h.Drain.Left, h.Drain.Moving)
	rows := [][]string{{"NOT MOVED", "REASON"}}
	for _, sb := range h.Drain.NotMoved {
		rows = append(rows, []string{sb.Sandbox, plain.Line(sb.Reason)})
	}
	if len(rows) > 1 {
		table(w, rows)
	}
}

type hostCordonCommand struct {
	IDs []string `arg:"" name:"id" complete:"host" help:"The hosts."`
}

// Run cordons them one by one.
func (c *hostCordonCommand) Run(ctx context.Context, s *session) error {
	return s.eachHost(ctx, "cordoning", c.IDs, (*client.Client).CordonHost)
}

type hostUncordonCommand struct {
	IDs []string `arg:"" name:"id" complete:"host" help:"The hosts."`
}

// Run uncordons them one by one.
func (c *hostUncordonCommand) Run(ctx context.Context, s *session) error {
	return s.eachHost(ctx, "uncordoning", c.IDs, (*client.Client).UncordonHost)
}

type hostDrainCommand struct {
	IDs  []string `arg:"" name:"id" complete:"host" help:"The hosts."`
	Wait bool     `help:"Wait until they have no sandboxes, or only such as cannot be moved."`
}

// drainLook is how often a host is looked at that is drained.
const drainLook = time.Second

// Run drains them one by one.
func (c *hostDrainCommand) Run(ctx context.Context, s *session) error {
	return s.eachHost(ctx, "draining", c.IDs, func(api *client.Client, ctx context.Context, id string) (*client.Host, error) {
		h, err := api.DrainHost(ctx, id)
		for err == nil && c.Wait && h.Drain != nil && h.Drain.Left > len(h.Drain.NotMoved) {
			if !wake.Sleep(ctx, drainLook) {
				return nil, context.Cause(ctx)
			}
			h, err = api.Host(ctx, id)
		}
		if err == nil && c.Wait && h.Drain != nil && h.Drain.Left > 0 {
			err = fmt.Errorf("%d sandboxes could not be moved: `wrenn host get %s` has the reasons", h.Drain.Left, id)
		}
		return h, err
	})
}

type hostExplainCommand struct {
	ID string `arg:"" name:"sandbox" help:"The id of the sandbox, of any team."`
}

// Run prints what was decided and a verdict on each host.
func (c *hostExplainCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	p, err := api.ExplainPlacement(ctx, c.ID)
	if err != nil {
		return err
	}
	return s.print(p, func(w io.Writer) {
		fmt.Fprintf(w, "%s is %s on host %s\n", p.Sandbox, p.State, orDash(p.Host))
		if len(p.Requires) > 0 {
			fmt.Fprintf(w, "requires %s\n", labels(p.Requires))
		}
		decided := [][]string{{"DECIDED", "HOST", "BY", "REASON"}}
		for _, d := range p.Decisions {
			decided = append(decided, []string{d.At.Local().Format(time.DateTime), d.Host, d.Actor, plain.Line(d.Reason)})
		}
		fmt.Fprintln(w)
		table(w, decided)
		if len(p.Hosts) == 0 {
			return
		}
		hosts := [][]string{{"HOST", "HERE", "FITS", "COST", "NOW"}}
		for _, h := range p.Hosts {
			cost := "-"
			if h.Fits {
				cost = strconv.FormatFloat(h.Cost, 'f', 2, 64)
			}
			hosts = append(hosts, []string{h.Host, yesNo(h.Here), yesNo(h.Fits), cost, plain.Line(h.Reason)})
		}
		fmt.Fprintln(w)
		table(w, hosts)
	})
}

type hostRemoveCommand struct {
	IDs []string `arg:"" name:"id" complete:"host" help:"The hosts."`
}

// Run removes them one by one.
func (c *hostRemoveCommand) Run(ctx context.Context, s *session) error {
	return s.eachHost(ctx, "removing", c.IDs, (*client.Client).RemoveHost)
}

type hostLostCommand struct {
	IDs []string `arg:"" name:"id" complete:"host" help:"The hosts; each must have stopped answering."`
}

// Run declares them lost one by one.
func (c *hostLostCommand) Run(ctx context.Context, s *session) error {
	return s.eachHost(ctx, "giving up", c.IDs, (*client.Client).LoseHost)
}

type hostTokenCommand struct {
	ID    string            `name:"id" placeholder:"ID" help:"The id of the host, which never changes: 1 to 63 of a-z, 0-9 and -. That of a host that joined lets it join again. Default: a made-up one."`
	Name  string            `help:"A name for people; default: the machine's."`
	Zone  string            `help:"Hosts of one zone may fail together."`
	Label map[string]string `placeholder:"KEY=VALUE" help:"What the host offers; may be repeated."`
	TTL   span              `name:"ttl" default:"1h" help:"For how long the token can be used." placeholder:"DURATION"`
}

// Run prints the token alone, for scripts.
func (c *hostTokenCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	made, err := api.CreateHostToken(ctx, client.CreateHostToken{Host: c.ID, Name: c.Name, Zone: c.Zone, Labels: c.Label, TTL: c.TTL.Duration})
	if err != nil {
		return err
	}
	return s.print(made, func(w io.Writer) {
		fmt.Fprintln(w, made.Token)
		if terminal(s.Out) != nil {
			fmt.Fprintln(s.Err, s.paint(s.Err, faint, "On the new host: host-agent join URL TOKEN. It is not shown again."))
		}
	})
}

// eachHost changes hosts one by one.
func (s *session) eachHost(ctx context.Context, doing string, ids []string, change func(*client.Client, context.Context, string) (*client.Host, error)) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	return s.each(ctx, doing, ids, func(ctx context.Context, id string) error {
		_, err := change(api, ctx, id)
		return err
	})
}

func seen(h *client.Host) string {
	if h.LastSeenAt.IsZero() {
		return "never"
	}
	return age(h.LastSeenAt) + " ago"
}

func until(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

// ofLimit formats a use and its limit; 0 is no limit.
func ofLimit(used, limit int64) string {
	if limit == 0 {
		return strconv.FormatInt(used, 10)
	}
	return fmt.Sprintf("%d/%d", used, limit)
}

func labels(of map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out = append(out, name+"="+of[name])
	}
	return strings.Join(out, ",")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
