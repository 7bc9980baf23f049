package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"wrenn.dev/client"
)

// density keeps many sandboxes alive at once and runs a command in each.
func density(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := newStack(ctx, b, settings{
		"limits": settings{"sandboxes": b.live, "memory_mb": -1},
		"driver": settings{"qemu_code_mb": b.codeMB}, // 0 is ignored
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	free, err := availableMiB()
	if err != nil {
		return nil, err
	}
	d := &crowd{stack: s}
	made, err := timed(func() error { return d.create(ctx, b.live) })
	if err != nil {
		return nil, fmt.Errorf("after %d sandboxes: %w", len(d.boxes), err)
	}
	all, err := timed(func() error { return d.exec(ctx) })
	if err != nil {
		return nil, err
	}
	left, err := availableMiB()
	if err != nil {
		return nil, err
	}
	rows := []row{
		{what: fmt.Sprintf("%d sandboxes made by the API", b.live), ours: fmt.Sprintf("%.1f s, %s each", made, ms(made/float64(b.live)))},
		{what: fmt.Sprintf("  a command in each, %d at a time", askers*runtime.NumCPU()), ours: fmt.Sprintf("%.1f s", all), limit: "all answer"},
		{what: "  memory that this machine has less, of each", ours: fmt.Sprintf("%.1f MiB", (free-left)/float64(b.live))},
	}
	more, err := d.idle(ctx, b)
	return append(rows, more...), err
}

// crowd is a stack with many sandboxes.
type crowd struct {
	*stack
	mu    sync.Mutex // guards boxes
	boxes []client.Sandbox
}

func (d *crowd) create(ctx context.Context, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for range n {
		g.Go(func() error {
			made, err := d.box(ctx)
			if err != nil {
				return err
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.boxes = append(d.boxes, *made)
			if len(d.boxes)%50 == 0 {
				fmt.Fprintln(os.Stderr, len(d.boxes), "sandboxes")
			}
			return nil
		})
	}
	return g.Wait()
}

// askers is how many commands run at once per CPU. With all commands at once, the
// result would be that of a machine with a hundred times too much work.
const askers = 8

// exec runs a command in each sandbox.
func (d *crowd) exec(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(askers * runtime.NumCPU())
	for _, x := range d.boxes {
		g.Go(func() error { return d.true(ctx, x.ID) })
	}
	return g.Wait()
}

// idle waits without using the sandboxes and measures what they and the daemons use.
func (d *crowd) idle(ctx context.Context, b *bench) ([]row, error) {
	pids := d.pids()
	daemons := len(pids)
	for _, x := range d.boxes {
		of, err := d.record(x.ID)
		if err != nil {
			return nil, err
		}
		pids = append(pids, of.Machine.PID)
	}
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	cpu := make([]float64, len(pids))
	for i, pid := range pids {
		before, err := cpuSeconds(pid)
		if err != nil {
			return nil, err
		}
		cpu[i] = -before
	}
	if err := pause(ctx, b.window); err != nil {
		return nil, err
	}
	private := make([]float64, len(pids))
	sum := 0.0
	for i, pid := range pids {
		after, err := cpuSeconds(pid)
		if err != nil {
			return nil, err
		}
		cpu[i] = (cpu[i] + after) / b.window.Seconds()
		if private[i], err = privateMiB(pid); err != nil {
			return nil, err
		}
		if i >= daemons {
			sum += cpu[i]
		}
	}
	return []row{
		{what: "  private memory of one, median", ours: fmt.Sprintf("%.1f MiB", median(private[daemons:]))},
		{what: "  CPU of one that is idle, median; of all", ours: fmt.Sprintf("%s, %.2f CPUs", percent(median(cpu[daemons:])), sum)},
		{what: "  control plane and agent: CPU", ours: percent(cpu[0]) + ", " + percent(cpu[1])},
		{what: "  control plane and agent: private memory", ours: fmt.Sprintf("%.0f, %.0f MiB", private[0], private[1])},
	}, nil
}

// availableMiB returns the memory available to new programs, see proc_meminfo(5).
func availableMiB() (float64, error) {
	return sumMiB("/proc/meminfo", func(name string) bool { return name == "MemAvailable" })
}
