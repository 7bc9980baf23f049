package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"wrenn.dev/client"
	"wrenn.dev/internal/image"
	"wrenn.dev/internal/storage"
)

// versus is a stack and, on the same disk, a lab that restores the same guest with
// only the driver: the bare limit of creating, copying and resuming.
type versus struct {
	*stack
	lab  *lab
	bare snapshot // taken after the guest ran a command
}

// newVersus starts a versus; the caller closes it.
func newVersus(ctx context.Context, b *bench) (_ *versus, err error) {
	v := &versus{lab: &lab{}}
	if v.stack, err = newStack(ctx, b, nil); err != nil {
		return nil, err
	}
	v.undo.Add(v.lab.close)
	if err := v.openLab(ctx, b); err != nil {
		return nil, errors.Join(err, v.close(ctx))
	}
	return v, nil
}

func (v *versus) openLab(ctx context.Context, b *bench) error {
	store, err := v.store()
	if err != nil {
		return err
	}
	l := v.lab
	l.store = &storage.Store{Dir: filepath.Join(store, "bench")}
	if err := os.Mkdir(l.store.Dir, 0o711); err != nil {
		return err
	}
	l.undo.Add(func(context.Context) error { return os.RemoveAll(l.store.Dir) })
	if l.guest, err = image.Prepare(ctx, image.Config{StateDir: "/var/lib/wrenn", Out: os.Stderr, Envd: "bin/envd", Stage0: "bin/stage0"}); err != nil {
		return err
	}
	if err := l.openDriver(ctx, b, forks); err != nil {
		return err
	}
	v.bare, err = l.freeze(ctx, l.guest, boxMemoryMB, warmExec)
	return err
}

// ran is the time until a command was done, and the VMM's CPU time until then,
// which is the same on a busy machine as on an idle one. They are the first two
// figures of all samples here.
func ran(seconds float64, pid int) (sample, error) {
	cpu, err := cpuSeconds(pid)
	return sample{seconds, cpu}, err
}

// restoreExec restores a machine and runs a command in it.
func (v *versus) restoreExec(ctx context.Context) (sample, error) {
	all, err := v.lab.execOne(ctx, v.bare)
	if err != nil {
		return nil, err
	}
	answers, done, cpu := all[0], all[1], all[2]
	return sample{done, cpu, answers}, nil
}

// true runs a command through the API.
func (s *stack) true(ctx context.Context, id string) error {
	_, err := s.api.Exec(ctx, id, client.Command{Cmd: "true", Timeout: startWait})
	return err
}

// createExec measures creating a sandbox and running a command in it. It deletes the sandbox.
func (s *stack) createExec(ctx context.Context) (_ sample, err error) {
	var made *client.Sandbox
	answers, err := timed(func() (err error) {
		made, err = s.box(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.api.DeleteSandbox(ctx, made.ID)) }()
	return s.thenTrue(ctx, made.ID, answers)
}

// thenTrue runs a command in a sandbox that answered after that many seconds.
func (s *stack) thenTrue(ctx context.Context, id string, answers float64) (sample, error) {
	exec, err := timed(func() error { return s.true(ctx, id) })
	if err != nil {
		return nil, err
	}
	of, err := s.record(id)
	if err != nil {
		return nil, err
	}
	figures, err := ran(answers+exec, of.Machine.PID)
	return append(figures, answers), err
}

// untilDone prints what ran measured.
func untilDone(what string, figures []comparison, limit string) []row {
	wall, cpu := figures[0], figures[1]
	rows := []row{
		{what, ms(wall.ours), ms(wall.bare), wall.ratio, limit},
		{"  the VMM's CPU time of it", ms(cpu.ours), ms(cpu.bare), cpu.ratio, ""},
	}
	if len(figures) > 2 {
		answers := figures[2]
		rows = append(rows, row{"  until the API answers; bare: until envd does", ms(answers.ours), ms(answers.bare), answers.ratio, ""})
	}
	return rows
}

const bareExec = "; bare: the driver's restore, and a command straight to envd"

// create makes sandboxes through the public API.
func create(ctx context.Context, b *bench) (_ []row, err error) {
	v, err := newVersus(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.close(ctx)) }()
	figures, err := pairs(ctx, 3*b.rounds, v.createExec, v.restoreExec)
	if err != nil {
		return nil, err
	}
	rows := untilDone("create by the API, and a command"+bareExec, figures, "<= 1.15")
	steps, err := v.steps(ctx, "slot", "disk", "machine", "ready")
	return append(rows, row{what: "  the agent's steps of it: slot, disk, machine, ready; mean", ours: steps}), err
}

// steps returns how long steps took so far, on average.
func (s *stack) steps(ctx context.Context, names ...string) (string, error) {
	var shown []string
	for _, name := range names {
		count, sum, err := s.step(ctx, name)
		if err != nil {
			return "", err
		}
		shown = append(shown, ms(sum/max(count, 1)))
	}
	return strings.Join(shown, ", "), nil
}

// copies forks a running sandbox, and restores as many machines at once.
func copies(ctx context.Context, b *bench) (_ []row, err error) {
	v, err := newVersus(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.close(ctx)) }()
	parent, err := v.box(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.true(ctx, parent.ID); err != nil {
		return nil, err
	}
	figures, err := pairs(ctx, b.rounds,
		func(ctx context.Context) (sample, error) { return v.forkExec(ctx, parent.ID) },
		func(ctx context.Context) (sample, error) { return v.restoreMany(ctx) })
	if err != nil {
		return nil, err
	}
	f := figures[0]
	what := fmt.Sprintf("%d forks by the API, a command in each; bare: as many restores at once by the driver", forks)
	rows := []row{{what, ms(f.ours), ms(f.bare), f.ratio, "<= 1.15"}}
	steps, err := v.steps(ctx, "fork", "still", "slot", "disk", "machine", "ready")
	return append(rows, row{what: "  the agent's steps: snapshot; of it still; slot, disk, machine, ready; mean", ours: steps}), err
}

// forkExec measures forking a sandbox and running a command in each copy. It deletes the copies.
func (v *versus) forkExec(ctx context.Context, id string) (_ sample, err error) {
	var made *client.Forked
	took, err := timed(func() (err error) {
		if made, err = v.api.ForkSandbox(ctx, id, client.Fork{Count: forks}); err != nil {
			return err
		}
		if len(made.Sandboxes) != forks {
			return fmt.Errorf("%d of %d copies: %v", len(made.Sandboxes), forks, made.Errors)
		}
		return v.each(ctx, made.Sandboxes, v.true)
	})
	if made != nil {
		err = errors.Join(err, v.each(ctx, made.Sandboxes, v.api.DeleteSandbox))
	}
	return sample{took}, err
}

// each calls f for all sandboxes concurrently.
func (s *stack) each(ctx context.Context, boxes []client.Sandbox, f func(context.Context, string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, x := range boxes {
		g.Go(func() error { return f(ctx, x.ID) })
	}
	return g.Wait()
}

func (v *versus) restoreMany(ctx context.Context) (_ sample, err error) {
	boxes := make([]*box, forks)
	defer func() {
		for _, x := range boxes {
			if x != nil {
				err = errors.Join(err, x.close(ctx))
			}
		}
	}()
	took, err := timed(func() error { return v.lab.thawAll(ctx, v.bare, boxes) })
	return sample{took}, err
}

// resume pauses a sandbox and resumes it.
func resume(ctx context.Context, b *bench) (_ []row, err error) {
	v, err := newVersus(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.close(ctx)) }()
	x, err := v.box(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.true(ctx, x.ID); err != nil {
		return nil, err
	}
	var pauses []float64
	figures, err := pairs(ctx, 3*b.rounds, func(ctx context.Context) (sample, error) {
		took, err := timed(func() error { _, err := v.api.PauseSandbox(ctx, x.ID); return err })
		if err != nil {
			return nil, err
		}
		pauses = append(pauses, took)
		return v.resumeExec(ctx, x.ID)
	}, v.restoreExec)
	if err != nil {
		return nil, err
	}
	rows := untilDone("resume by the API, and a command"+bareExec, figures, "<= 1.15")
	steps, err := v.steps(ctx, "slot", "disk", "machine", "ready", "resume")
	return append(rows,
		row{what: "  the agent's steps of it: slot, disk, machine, ready; in all; mean", ours: steps},
		row{what: "pause by the API", ours: ms(median(pauses))}), err
}

func (v *versus) resumeExec(ctx context.Context, id string) (sample, error) {
	answers, err := timed(func() error { _, err := v.api.ResumeSandbox(ctx, id); return err })
	if err != nil {
		return nil, err
	}
	return v.thenTrue(ctx, id, answers)
}

// dirt is how many bytes the guest of still writes between two checkpoints.
const dirt = 64 << 20

// still measures how long a checkpoint keeps a guest from running.
func still(ctx context.Context, b *bench) (_ []row, err error) {
	s, err := newStack(ctx, b, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	vmm, err := startBareVMM(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, vmm.close()) }()
	x, err := s.box(ctx)
	if err != nil {
		return nil, err
	}
	ours := func(ctx context.Context) (sample, error) { return s.checkpointStill(ctx, x.ID) }
	quiet, err := pairs(ctx, 3*b.rounds, ours, vmm.saveState)
	if err != nil {
		return nil, err
	}
	inside, err := s.insideGaps(ctx, b, x.ID)
	if err != nil {
		return nil, err
	}
	busy, err := pairs(ctx, b.rounds, func(ctx context.Context) (sample, error) {
		if err := s.soil(ctx, x.ID); err != nil {
			return nil, err
		}
		return ours(ctx)
	}, vmm.saveState)
	if err != nil {
		return nil, err
	}
	const bare = "; bare: the VMM stops, saves its devices' state and goes on"
	q, d := quiet[0], busy[0]
	return append([]row{
		{"a checkpoint keeps the vCPUs of a guest with 512 MiB from running" + bare, ms(q.ours), ms(q.bare), spread{}, "<= 30 ms more"},
		{fmt.Sprintf("  when it wrote %d MiB of memory since the last one", dirt>>20), ms(d.ours), ms(d.bare), spread{}, ""},
	}, inside...), nil
}

// checkpointStill returns how long the vCPUs were stopped, as the agent reports it.
func (s *stack) checkpointStill(ctx context.Context, id string) (sample, error) {
	_, before, err := s.step(ctx, "still")
	if err != nil {
		return nil, err
	}
	c, err := s.api.CreateCheckpoint(ctx, id, "bench")
	if err != nil {
		return nil, err
	}
	_, after, err := s.step(ctx, "still")
	if err != nil {
		return nil, err
	}
	return sample{after - before}, s.api.DeleteCheckpoint(ctx, id, c.ID)
}

// soil makes the guest write to memory and keep it.
func (s *stack) soil(ctx context.Context, id string) error {
	script := fmt.Sprintf("head -c %d /dev/urandom >/dev/shm/soil", dirt)
	_, err := s.api.Exec(ctx, id, client.Command{Cmd: "sh", Args: []string{"-c", script}, Timeout: startWait})
	return err
}

// watchClock is a program that prints the longest time between two reads of the clock, in seconds.
const watchClock = `
import time, sys
end = time.monotonic() + float(sys.argv[1])
last, longest = time.time(), 0.0
while time.monotonic() < end:
    now = time.time()
    longest = max(longest, now - last)
    last = now
print(longest)
`

const watched = 6 * time.Second // by the guest's own clock

// insideGaps measures how long a program in the guest is stopped by a checkpoint,
// and without one.
func (s *stack) insideGaps(ctx context.Context, b *bench, id string) ([]row, error) {
	figures, err := pairs(ctx, b.rounds,
		s.longestGap(id, func(ctx context.Context) error { _, err := s.checkpointStill(ctx, id); return err }),
		s.longestGap(id, func(context.Context) error { return nil }))
	if err != nil {
		return nil, err
	}
	f := figures[0]
	return []row{{"  the longest time between two looks at the clock in it; bare: without a checkpoint", ms(f.ours), ms(f.bare), spread{}, ""}}, nil
}

// longestGap runs a program that reads the clock all the time, and calls during
// while it does.
func (s *stack) longestGap(id string, during func(context.Context) error) func(context.Context) (sample, error) {
	cmd := client.Command{Cmd: "python3", Args: []string{"-c", watchClock, fmt.Sprint(watched.Seconds())}, Timeout: startWait}
	return func(ctx context.Context) (sample, error) {
		var out *client.Result
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() (err error) {
			out, err = s.api.Exec(ctx, id, cmd)
			return err
		})
		g.Go(func() error { return errors.Join(pause(ctx, watched/2), during(ctx)) })
		if err := g.Wait(); err != nil {
			return nil, err
		}
		seconds, err := strconv.ParseFloat(strings.TrimSpace(string(out.Stdout)), 64)
		return sample{seconds}, err
	}
}
