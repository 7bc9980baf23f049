package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"wrenn.dev/client"
)

type usageCommand struct {
	Days int    `help:"How many days until now." default:"7" placeholder:"N"`
	By   string `help:"Add up by day or by hour, in UTC." enum:"day,hour" default:"day"`
	Team string `help:"Another team, for keys with the scope operator." placeholder:"NAME"`
}

// Help is shown below the usage.
func (*usageCommand) Help() string {
	return `Each column is an amount times hours: two vCPUs for half an hour are 1 vCPU hour, also
when they are idle. Disks count while their sandboxes run or are paused. Steps without
any use are left out; -o json has all, in seconds and MiB.`
}

// Run prints what the team used, oldest first, and the total.
func (c *usageCommand) Run(ctx context.Context, s *session) error {
	if c.Days < 1 {
		return fmt.Errorf("--days %d: it must be above 0", c.Days)
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	step := map[string]time.Duration{"hour": time.Hour, "day": 24 * time.Hour}[c.By]
	now := time.Now().UTC()
	from := now.AddDate(0, 0, -c.Days).Truncate(step).Add(step)
	use, err := api.Usage(ctx, client.UsageQuery{From: from, To: now, Step: c.By, Team: c.Team})
	if err != nil {
		return err
	}
	return s.print(use, func(w io.Writer) { printUsage(w, use) })
}

func printUsage(w io.Writer, use *client.Usage) {
	layout := "2006-01-02 15:04"
	if use.Step == "day" {
		layout = time.DateOnly
	}
	rows := [][]string{{"FROM (UTC)", "CREATES", "SANDBOX H", "PAUSED H", "VCPU H", "MEMORY GIB H", "DISK GIB H", "VOLUME GIB H", "TEMPLATE GIB H"}}
	for i := range use.Steps {
		if use.Steps[i].Used != (client.Used{}) {
			rows = append(rows, usageRow(use.Steps[i].From.UTC().Format(layout), &use.Steps[i].Used))
		}
	}
	table(w, append(rows, usageRow("total", &use.Total)))
	fmt.Fprintf(w, "\nCounted until %s.", use.CountedUntil.Local().Format(time.DateTime))
	if use.CountedFrom.After(use.From) {
		fmt.Fprintf(w, " Nothing before %s was counted.", use.CountedFrom.Local().Format(time.DateTime))
	}
	fmt.Fprintln(w)
}

func usageRow(name string, u *client.Used) []string {
	hours := func(seconds float64) string { return strconv.FormatFloat(seconds/3600, 'f', 2, 64) }
	gib := func(mibSeconds float64) string { return hours(mibSeconds / 1024) }
	return []string{
		name, strconv.FormatInt(u.Creates, 10), hours(u.SandboxSeconds), hours(u.PausedSeconds), hours(u.VCPUSeconds),
		gib(u.MemoryMiBSeconds), gib(u.DiskMiBSeconds), gib(u.VolumeMiBSeconds), gib(u.TemplateMiBSeconds),
	}
}

type limitsCommand struct{}

// Run prints the limits, with what is used now and who changes them.
func (*limitsCommand) Run(ctx context.Context, s *session) error {
	api, err := s.client()
	if err != nil {
		return err
	}
	limits, err := api.Limits(ctx)
	if err != nil {
		return err
	}
	return s.print(limits, func(w io.Writer) {
		rows := [][]string{{"LIMIT", "OF", "USED", "ALLOWED", "UNIT", "CHANGED BY"}}
		for _, l := range limits {
			used := "-"
			if l.Used != nil {
				used = strconv.FormatFloat(*l.Used, 'f', -1, 64)
			}
			rows = append(rows, []string{l.Name, l.Of, used, strconv.FormatFloat(l.Allowed, 'f', -1, 64), l.Unit, changer(&l)})
		}
		table(w, rows)
	})
}

func changer(l *client.Limit) string {
	switch l.ChangedBy {
	case "configuration":
		return "the operator, " + l.Setting + " of the configuration"
	case "team":
		return "the operator, " + l.Setting + " of this team"
	}
	return "fixed"
}
