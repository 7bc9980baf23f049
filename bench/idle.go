package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"wrenn.dev/client"
)

// idle watches an unused sandbox, and beside it a machine with only bareagent.
func idle(ctx context.Context, b *bench) (_ []row, err error) {
	v, err := newVersus(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.close(ctx)) }()
	if v.lab.bare, err = bareGuest(ctx, b.dir, v.lab.guest); err != nil {
		return nil, err
	}
	least, err := v.lab.freeze(ctx, v.lab.bare, boxMemoryMB, warmAgain)
	if err != nil {
		return nil, err
	}
	bare, err := v.lab.thaw(ctx, least)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bare.close(ctx)) }()
	x, err := v.box(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.true(ctx, x.ID); err != nil {
		return nil, err
	}
	of, err := v.record(x.ID)
	if err != nil {
		return nil, err
	}
	rows, err := b.watchBoth(ctx, of.Machine.PID, bare.machine.Ref().PID)
	if err != nil {
		return nil, err
	}
	parts, err := v.insideIdle(ctx, b, x.ID)
	return append(rows, parts...), err
}

// watchBoth waits without using the two VMMs and measures what they used in that time.
func (b *bench) watchBoth(ctx context.Context, ours, bare int) ([]row, error) {
	if err := pause(ctx, settle); err != nil {
		return nil, err
	}
	var cpu [2]float64
	for i, pid := range []int{ours, bare} {
		before, err := cpuSeconds(pid)
		if err != nil {
			return nil, err
		}
		cpu[i] = -before
	}
	if err := pause(ctx, b.window); err != nil {
		return nil, err
	}
	var private, proportional [2]float64
	for i, pid := range []int{ours, bare} {
		after, err := cpuSeconds(pid)
		if err != nil {
			return nil, err
		}
		cpu[i] = (cpu[i] + after) / b.window.Seconds()
		if private[i], err = privateMiB(pid); err != nil {
			return nil, err
		}
		if proportional[i], err = proportionalMiB(pid); err != nil {
			return nil, err
		}
	}
	mib := func(x float64) string { return fmt.Sprintf("%.1f MiB", x) }
	const beside = "; bare: a machine with a 20-line agent"
	return []row{
		{"private memory of an idle sandbox" + beside, mib(private[0]), mib(private[1]), spread{}, ""},
		{"  with its part of what it shares", mib(proportional[0]), mib(proportional[1]), spread{}, ""},
		{fmt.Sprintf("CPU of an idle sandbox, in %v", b.window) + beside, percent(cpu[0]), percent(cpu[1]), spread{}, ""},
	}, nil
}

func percent(part float64) string { return fmt.Sprintf("%.2f %%", 100*part) }

// watchTasks prints the CPU time of each program of the guest, and the interrupts
// of its timer, while it sleeps itself.
const watchTasks = `
import glob, sys, time
def look():
    cpu = {}
    for path in glob.glob('/proc/[0-9]*/task/*/schedstat'):
        try:
            run, _, times = open(path).read().split()
            name = open(path.rsplit('/', 1)[0] + '/comm').read().strip()
            cpu[path] = name, int(run), int(times)
        except OSError:
            pass
    ticks = sum(int(n) for line in open('/proc/interrupts') if line.startswith(' LOC') for n in line.split()[1:] if n.isdigit())
    return cpu, ticks
look()
before, t0 = look()
time.sleep(float(sys.argv[1]))
after, t1 = look()
total = {}
for path, (name, run, times) in after.items():
    _, run0, times0 = before.get(path, ('', 0, 0))
    r, n = total.get(name, (0, 0))
    total[name] = r + run - run0, n + times - times0
for name, (run, times) in sorted(total.items(), key=lambda x: -x[1][0]):
    if times:
        print(name, run / 1e9, times)
print('timer', 0, t1 - t0)
`

// insideIdle measures which programs of an unused guest run.
func (s *stack) insideIdle(ctx context.Context, b *bench, id string) ([]row, error) {
	cmd := client.Command{Cmd: "python3", Args: []string{"-c", watchTasks, fmt.Sprint(b.window.Seconds())}, Timeout: startWait}
	out, err := s.api.Exec(ctx, id, cmd)
	if err != nil {
		return nil, err
	}
	if out.ExitCode != 0 {
		return nil, fmt.Errorf("watch tasks: %s: %s", out.Status, out.Stderr)
	}
	rows := []row{}
	for line := range strings.Lines(string(out.Stdout)) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		var cpu, times float64
		if _, err := fmt.Sscan(strings.Join(fields[len(fields)-2:], " "), &cpu, &times); err != nil {
			return nil, err
		}
		name := strings.Join(fields[:len(fields)-2], " ")
		rows = append(rows, row{what: "  in it: " + name, ours: fmt.Sprintf("%s, %.1f times a second", percent(cpu/b.window.Seconds()), times/b.window.Seconds())})
	}
	return slices.Clip(rows[:min(len(rows), 10)]), nil
}
