package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"wrenn/client"
)

type hostCommands struct {
	List     hostListCommand     `cmd:"" aliases:"ls" help:"List hosts."`
	Get      hostGetCommand      `cmd:"" help:"Print a host."`
	Cordon   hostCordonCommand   `cmd:"" help:"Place no new sandboxes on hosts; those that they have stay."`
	Uncordon hostUncordonCommand `cmd:"" help:"Place sandboxes on hosts again."`
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
		{"driver", orDash(h.Driver)},
		{"version", orDash(h.Version)},
		{"sandboxes", ofLimit(int64(c.SandboxesUsed), int64(c.Sandboxes))},
		{"memory MB", ofLimit(c.MemoryMBUsed, c.MemoryMB)},
		{"disk free MB", ofLimit(c.DiskFreeMB, c.DiskMB)},
		{"disks MB", ofLimit(c.DisksMBUsed, c.DisksMB)},
	})
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
