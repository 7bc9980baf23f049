package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"
	"time"

	"wrenn"
	"wrenn/internal/controlplane"
)

// hosts prints what the database knows of the hosts, for operators.
func hosts(ctx context.Context, cfg controlplane.Config, log *slog.Logger, stdout io.Writer) error {
	svc, closeStore, err := controlplane.Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer closeStore()
	known, unknown, err := svc.Hosts(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "HOST\tURL\tDRIVER\tVERSION\tSANDBOXES\tMEMORY MB\tDISK FREE MB\tSEEN")
	for _, h := range known {
		c := h.Info.Capacity
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", h.ID, h.URL, cmp.Or(h.Info.Driver, "-"), cmp.Or(h.Info.Version, "-"),
			of(int64(c.SandboxesUsed), int64(c.Sandboxes)), of(c.MemoryMiBUsed, c.MemoryMiB), c.DiskMiBFree, ago(h.SeenAt))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return strangers(stdout, unknown)
}

// move makes a host the one of a paused sandbox whose files were copied there.
func move(ctx context.Context, cfg controlplane.Config, log *slog.Logger, sandbox, host string) error {
	id, err := wrenn.ParseSandboxID(sandbox)
	if err != nil {
		return err
	}
	svc, closeStore, err := controlplane.Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer closeStore()
	_, err = svc.MoveSandbox(ctx, id, wrenn.HostID(host))
	return err
}

// strangers prints what a person has to look at, if there is any.
func strangers(stdout io.Writer, unknown []wrenn.UnknownSandbox) error {
	if len(unknown) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nUNKNOWN SANDBOX\tHOST\tSTATE\tSINCE\tREASON")
	for _, u := range unknown {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", u.ID, u.Host, u.State, ago(u.FirstSeenAt), cmp.Or(u.Reason, "no row explains it"))
	}
	return table.Flush()
}

// of is what is used of how much; 0 is no limit.
func of(used, limit int64) string {
	if limit == 0 {
		return fmt.Sprint(used)
	}
	return fmt.Sprintf("%d/%d", used, limit)
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return time.Since(t).Round(time.Second).String() + " ago"
}
