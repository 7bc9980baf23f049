package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"text/tabwriter"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/pgserver"
)

type migrateCommand struct{}

// Run migrates the schema. Twice is allowed.
func (migrateCommand) Run(ctx context.Context, cfg controlplane.Config) error {
	return controlplane.Migrate(ctx, cfg)
}

type databaseCommand struct {
	Role string `default:"wrenn" help:"The role to make, if the URL of the database names none."`
}

// Run makes role and database on a PostgreSQL of this machine. Twice is allowed.
func (c *databaseCommand) Run(ctx context.Context, cfg controlplane.Config, env environment) error {
	made, err := pgserver.EnsureLocal(ctx, cfg.Database.URL, c.Role)
	for _, what := range made {
		fmt.Fprintln(env.out, "made the", what)
	}
	return err
}

type keyCommand struct {
	Team string `arg:"" help:"The team's name."`
	Name string `arg:"" help:"A name by which people recognize the key."`

	Operator bool `help:"It may also be used for hosts, which all teams share."`
}

// Run prints the secret of a key: the first of a team; later ones come by POST /v1/keys.
func (c *keyCommand) Run(ctx context.Context, cfg controlplane.Config, log *slog.Logger, env environment) error {
	return open(ctx, cfg, log, func(svc *service.Service) error {
		id, err := svc.EnsureTeam(ctx, c.Team)
		if err != nil {
			return fmt.Errorf("team %s: %w", c.Team, err)
		}
		_, secret, err := svc.CreateKey(ctx, service.Caller{Team: id}, service.NewKey{Name: c.Name, Scopes: c.scopes()})
		if err != nil {
			return fmt.Errorf("create a key: %w", err)
		}
		_, err = fmt.Fprintln(env.out, secret)
		return err
	})
}

func (c *keyCommand) scopes() wrenn.Scopes {
	if c.Operator {
		return wrenn.OperatorScopes
	}
	return wrenn.AllScopes
}

type authorityCommand struct {
	File string `arg:"" type:"path" help:"The file to make, for [fleet] authority of every control plane. One that exists stays as it is."`
}

// Run makes the file, which has a key.
func (c *authorityCommand) Run(env environment) error {
	if err := authority.Create(c.File); err != nil {
		return err
	}
	made, err := authority.Load(c.File)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(env.out, "authority %s is in %s: copy the file to every control plane, and keep it secret\n", made.Fingerprint(), c.File)
	return err
}

type moveCommand struct {
	ID   string `arg:"" help:"The sandbox."`
	Host string `arg:"" help:"The host to which its files were copied."`
}

// Run makes the host that of a paused sandbox whose files were copied there.
func (c *moveCommand) Run(ctx context.Context, cfg controlplane.Config, log *slog.Logger) error {
	id, err := wrenn.ParseSandboxID(c.ID)
	if err != nil {
		return err
	}
	return open(ctx, cfg, log, func(svc *service.Service) error {
		_, err := svc.MoveSandbox(ctx, id, wrenn.HostID(c.Host))
		return err
	})
}

type garbageCommand struct {
	Team string `arg:"" optional:"" help:"The id of a team, whose objects are printed; default: the numbers of each team."`
}

// Run prints what nothing needs in the snapshot store.
func (c *garbageCommand) Run(ctx context.Context, cfg controlplane.Config, log *slog.Logger, env environment) error {
	return open(ctx, cfg, log, func(svc *service.Service) error {
		found, err := svc.StoreGarbage(ctx, wrenn.TeamID(c.Team))
		if err != nil {
			return err
		}
		table := tabwriter.NewWriter(env.out, 0, 0, 2, ' ', 0)
		fmt.Fprintf(table, "uploads are of round %d; what nothing needs is deleted through round %s\n", found.Round, cmp.Or(roundText(found.Through), "none yet"))
		fmt.Fprintln(table, "TEAM\tOBJECTS TO DELETE\tMIB\tLATER\tMIB")
		for i := range found.Teams {
			t := &found.Teams[i]
			if t.Err != nil {
				fmt.Fprintf(table, "%s\tunknown: %v\n", t.Team, t.Err)
				continue
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\n", t.Team, count(t.Objects, t.More), t.Bytes>>20, t.YoungObjects, t.YoungBytes>>20)
			for _, o := range t.Listed {
				if c.Team != "" {
					fmt.Fprintf(table, "%s\t%d bytes\n", o.Key, o.Bytes)
				}
			}
		}
		return table.Flush()
	})
}

// roundText returns a round, "" for none.
func roundText(round int64) string {
	if round < 0 {
		return ""
	}
	return strconv.FormatInt(round, 10)
}

// count formats a number that may be more.
func count(n int64, more bool) string {
	if more {
		return fmt.Sprintf("%d or more", n)
	}
	return strconv.FormatInt(n, 10)
}

type hostsCommand struct{}

// Run prints the last answers of the hosts, from the database.
func (hostsCommand) Run(ctx context.Context, cfg controlplane.Config, log *slog.Logger, env environment) error {
	return open(ctx, cfg, log, func(svc *service.Service) error {
		known, unknown, err := svc.Hosts(ctx)
		if err != nil {
			return err
		}
		table := tabwriter.NewWriter(env.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "HOST\tSTATUS\tURL\tDRIVER\tVERSION\tSANDBOXES\tMEMORY MB\tDISK FREE MB\tSEEN")
		for _, h := range known {
			c := h.Info.Capacity
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", h.ID, h.Status, h.URL, cmp.Or(h.Info.Driver, "-"), cmp.Or(h.Info.Version, "-"),
				of(int64(c.SandboxesUsed), int64(c.Sandboxes)), of(c.MemoryMiBUsed, c.MemoryMiB), c.DiskMiBFree, ago(h.SeenAt))
		}
		if err := table.Flush(); err != nil {
			return err
		}
		return printUnknown(env.out, unknown)
	})
}

// printUnknown prints the sandboxes that an operator has to look at, if any.
func printUnknown(out io.Writer, unknown []wrenn.UnknownSandbox) error {
	if len(unknown) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nUNKNOWN SANDBOX\tHOST\tSTATE\tSINCE\tREASON")
	for _, u := range unknown {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", u.ID, u.Host, u.State, ago(u.FirstSeenAt), cmp.Or(u.Reason, "no row explains it"))
	}
	return table.Flush()
}

// of formats a use and its limit; 0 is no limit.
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
