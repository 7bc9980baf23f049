package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
	"wrenn.dev"

	"wrenn.dev/client"
	"wrenn.dev/internal/envdclient"
)

// pair is a sandbox with two ways to reach it: the public API, and its envd directly.
type pair struct {
	*stack
	box    *client.Sandbox
	direct *envdclient.Client
}

// newPair starts a stack with a sandbox; the caller closes it.
func newPair(ctx context.Context, b *bench) (_ *pair, err error) {
	p := &pair{}
	if p.stack, err = newStack(ctx, b, nil); err != nil {
		return nil, err
	}
	if p.box, err = p.stack.box(ctx); err == nil {
		p.direct, err = p.envd(ctx, p.box)
	}
	if err != nil {
		return nil, errors.Join(err, p.close(ctx))
	}
	p.undo.AddFunc(p.direct.Close)
	return p, nil
}

const (
	execsARound = 40
	warmExecs   = 10
)

// execRoundTrip runs a command through the public API and directly through envd.
func execRoundTrip(ctx context.Context, b *bench) (_ []row, err error) {
	p, err := newPair(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	ours := seconds(func(ctx context.Context) error {
		_, err := p.api.Exec(ctx, p.box.ID, client.Command{Cmd: "true"})
		return err
	})
	bare := seconds(func(ctx context.Context) error {
		_, err := p.direct.Exec(ctx, wrenn.ExecCommand{Cmd: "true"})
		return err
	})
	if _, err := pairs(ctx, warmExecs, ours, bare); err != nil {
		return nil, err
	}
	figures, err := pairs(ctx, execsARound*b.rounds, ours, bare)
	if err != nil {
		return nil, err
	}
	f := figures[0]
	return []row{{"exec by the API; bare: straight to envd", ms(f.ours), ms(f.bare), f.ratio, "<= 1.3"}}, nil
}

// seconds returns a measurement of how long f takes.
func seconds(f func(context.Context) error) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		took, err := timed(func() error { return f(ctx) })
		return sample{took}, err
	}
}

// remote is a file on a sandbox's disk.
const remote = "/srv/file"

// upload writes a file to a sandbox through the public API and directly through envd.
func upload(ctx context.Context, b *bench) (_ []row, err error) {
	p, err := newPair(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	size := int64(b.fileMiB) << 20
	w, err := p.watch()
	if err != nil {
		return nil, err
	}
	f, err := transfers(ctx, b, w,
		func(ctx context.Context) error {
			return p.api.WriteFile(ctx, p.box.ID, remote, content(size), client.FileOptions{})
		},
		func(ctx context.Context) error { return p.direct.WriteFile(ctx, "root", remote, content(size)) })
	if err != nil {
		return nil, err
	}
	return []row{
		{"upload by the API; bare: straight to envd", mibs(f.ours), mibs(f.bare), f.ratio, ">= 0.8"},
		w.perGiB("  CPU time of a GiB: control plane, agent", b.fileMiB),
		w.memory(fmt.Sprintf("  memory over idle while %d MiB move: control plane, agent", b.fileMiB)),
	}, nil
}

// download reads a file from a sandbox through the public API and directly through envd.
func download(ctx context.Context, b *bench) (_ []row, err error) {
	p, err := newPair(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	size := int64(b.fileMiB) << 20
	if err := p.direct.WriteFile(ctx, "root", remote, content(size)); err != nil {
		return nil, err
	}
	w, err := p.watch()
	if err != nil {
		return nil, err
	}
	f, err := transfers(ctx, b, w,
		func(ctx context.Context) error {
			return drain(size)(p.api.ReadFile(ctx, p.box.ID, remote, client.FileOptions{}))
		},
		func(ctx context.Context) error { return drain(size)(p.direct.ReadFile(ctx, "root", remote)) })
	if err != nil {
		return nil, err
	}
	cpu := w.perGiB("  CPU time of a GiB: control plane, agent", b.fileMiB)
	moved := w.memory(fmt.Sprintf("  memory over idle while %d MiB move: control plane, agent", b.fileMiB))
	if err := w.during(func() error { return p.crawl(ctx) }); err != nil {
		return nil, fmt.Errorf("slow download: %w", err)
	}
	return []row{
		{"download by the API; bare: straight to envd", mibs(f.ours), mibs(f.bare), f.ratio, ">= 0.8"},
		cpu, moved,
		w.memory("  the same with a reader that stalls"),
	}, nil
}

// transfers compares two ways to move a file and watches the programs' memory during the first.
func transfers(ctx context.Context, b *bench, w *watch, ours, bare func(context.Context) error) (comparison, error) {
	rate := func(f func(context.Context) error) func(context.Context) (sample, error) {
		return func(ctx context.Context) (sample, error) {
			took, err := timed(func() error { return f(ctx) })
			return sample{float64(b.fileMiB) / took}, err
		}
	}
	if _, err := pairs(ctx, 1, rate(ours), rate(bare)); err != nil { // warms up connections and caches
		return comparison{}, err
	}
	figures, err := pairs(ctx, b.rounds,
		rate(func(ctx context.Context) error { return w.during(func() error { return ours(ctx) }) }),
		rate(bare))
	if err != nil {
		return comparison{}, err
	}
	return figures[0], nil
}

// content is a file without repetitions within the data in flight at one time.
func content(size int64) io.Reader {
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * i >> 7)
	}
	return io.LimitReader(&repeated{block: block}, size)
}

type repeated struct {
	block []byte
	at    int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.block[r.at:])
	r.at = (r.at + n) % len(r.block)
	return n, nil
}

// drain reads a file to its end, and fails unless it has size bytes.
func drain(size int64) func(io.ReadCloser, error) error {
	return func(body io.ReadCloser, err error) error {
		if err != nil {
			return err
		}
		defer body.Close()
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, make([]byte, 64<<10))
		if err == nil && n != size {
			err = fmt.Errorf("%d bytes came of %d", n, size)
		}
		return err
	}
}

const (
	stall    = 3 * time.Second // long enough to fill all buffers on the way
	pieces   = 200
	aPiece   = 64 << 10
	slowPace = 20 * time.Millisecond
)

// crawl downloads like a slow reader: it waits first, and then reads slowly.
func (p *pair) crawl(ctx context.Context) error {
	body, err := p.api.ReadFile(ctx, p.box.ID, remote, client.FileOptions{})
	if err != nil {
		return err
	}
	defer body.Close()
	if err := pause(ctx, stall); err != nil {
		return err
	}
	buf := make([]byte, aPiece)
	for range pieces {
		if _, err := io.ReadFull(body, buf); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil // a small file
			}
			return err
		}
		if err := pause(ctx, slowPace); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watch measures how much more memory the control plane and the agent use than at
// first, and their CPU time.
type watch struct {
	s           *stack
	idle, peaks [2]float64
	cpu         [2][]float64 // seconds in each measurement
}

func (s *stack) watch() (*watch, error) {
	w := &watch{s: s}
	return w, w.read("VmRSS", &w.idle)
}

func (w *watch) read(field string, into *[2]float64) error {
	for i, pid := range w.s.pids() {
		mib, err := statusMiB(pid, field)
		if err != nil {
			return err
		}
		into[i] = max(into[i], mib)
	}
	return nil
}

// during watches while f runs.
func (w *watch) during(f func() error) error {
	var before [2]float64
	for i, pid := range w.s.pids() {
		if err := resetPeak(pid); err != nil {
			return err
		}
		var err error
		if before[i], err = cpuSeconds(pid); err != nil {
			return err
		}
	}
	if err := f(); err != nil {
		return err
	}
	for i, pid := range w.s.pids() {
		after, err := cpuSeconds(pid)
		if err != nil {
			return err
		}
		w.cpu[i] = append(w.cpu[i], after-before[i])
	}
	return w.read("VmHWM", &w.peaks)
}

// memory returns the measurements since its last call.
func (w *watch) memory(what string) row {
	r := row{what: what, ours: fmt.Sprintf("+%.1f, +%.1f MiB", w.peaks[0]-w.idle[0], w.peaks[1]-w.idle[1])}
	w.peaks = [2]float64{}
	return r
}

// perGiB returns the CPU time for moving a GiB, which is the same on a busy machine as on an idle one.
func (w *watch) perGiB(what string, fileMiB int) row {
	gib := float64(fileMiB) / 1024
	return row{what: what, ours: fmt.Sprintf("%.2f, %.2f s", median(w.cpu[0])/gib, median(w.cpu[1])/gib)}
}
