package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"wrenn.dev/client"
)

type statsCommand struct {
	Last  time.Duration `default:"1m" placeholder:"TIME" help:"Show this much time until now, such as 90s or 1h; 0s is the whole life; default: 1m."`
	Watch bool          `short:"w" help:"Show them again every 5 seconds, until Ctrl-C."`
	ID    string        `arg:"" complete:"sandbox" help:"The sandbox, running or paused."`
}

// Help is shown below the usage.
func (*statsCommand) Help() string {
	return `A running sandbox is measured every 5 seconds, first within 10 seconds of its
start. All samples of the last half hour are kept, and fewer of the time before. A
paused sandbox keeps its samples: --last 0s shows all.`
}

// Run prints a table, or an array of JSON, oldest first.
func (c *statsCommand) Run(ctx context.Context, s *session) error {
	if c.Last < 0 {
		return fmt.Errorf("--last %s: write a time such as 90s or 1h, or 0s for the whole life", c.Last)
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	if c.Watch {
		return s.watch(ctx, watchStats, func(ctx context.Context) error { return c.once(ctx, s, api) })
	}
	return c.once(ctx, s, api)
}

func (c *statsCommand) once(ctx context.Context, s *session, api *client.Client) error {
	opts := client.MetricsOptions{}
	if c.Last > 0 {
		opts.Start = time.Now().Add(-c.Last)
	}
	samples, err := api.Metrics(ctx, c.ID, opts)
	if err != nil {
		return err
	}
	if samples == nil {
		samples = []client.MetricsSample{} // JSON's [], not null
	}
	if len(samples) == 0 && !s.json() {
		fmt.Fprintf(s.Err, "no samples: the sandbox was not measured in that time; --last 0s shows all\n")
		return nil
	}
	return s.print(samples, func(w io.Writer) { table(w, statsRows(samples)) })
}

func statsRows(samples []client.MetricsSample) [][]string {
	rows := [][]string{{"TIME", "CPUS", "CPU", "MEMORY", "OF", "CACHE", "DISK", "OF"}}
	for i := range samples {
		m := &samples[i]
		rows = append(rows, []string{
			m.Time.Local().Format(time.DateTime), fmt.Sprint(m.CPUs), fmt.Sprintf("%.1f%%", m.CPUPercent),
			mib(m.MemoryUsedBytes), mib(m.MemoryTotalBytes), mib(m.MemoryCacheBytes), mib(m.DiskUsedBytes), mib(m.DiskTotalBytes),
		})
	}
	return rows
}

func mib(bytes int64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
