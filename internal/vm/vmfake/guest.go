package vmfake

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"wrenn.dev/internal/vm"
)

// Guest is what happens inside a machine. What it does as its own code waits
// while the machine is paused and fails when that is gone; what ends it, and
// Print, work at any time. It is safe for concurrent use.
type Guest struct {
	find func() (*process, error)
}

// Spec is the machine's.
func (g *Guest) Spec() (vm.Spec, error) {
	p, err := g.find()
	if err != nil {
		return vm.Spec{}, err
	}
	return p.spec, nil
}

// Print writes on the console, of which the end is kept.
func (g *Guest) Print(text string) error {
	p, err := g.find()
	if err != nil {
		return err
	}
	return p.whileAlive(func() {
		p.console = append(p.console, text...)
		p.console = slices.Clone(p.console[max(0, len(p.console)-consoleSize):])
	})
}

// do calls f as code of the guest.
func (g *Guest) do(ctx context.Context, f func(*process)) error {
	p, err := g.find()
	if err != nil {
		return err
	}
	return p.asGuest(ctx, func() { f(p) })
}

// end ends the machine.
func (g *Guest) end(why ending) error {
	p, err := g.find()
	if err != nil {
		return err
	}
	p.end(why)
	return nil
}

// WaitReady returns when the guest runs, or with an error when it is gone.
func (g *Guest) WaitReady(ctx context.Context, _ func(context.Context) error) error {
	return g.do(ctx, func(*process) {})
}

// Fill makes a memory-backed file hold nothing but the byte b.
func (g *Guest) Fill(ctx context.Context, name string, b byte) error {
	return g.do(ctx, func(p *process) { p.mem.Files[name] = b })
}

// Filled reports whether the file holds nothing but b.
func (g *Guest) Filled(ctx context.Context, name string, b byte) (same bool, err error) {
	err = g.do(ctx, func(p *process) {
		got, ok := p.mem.Files[name]
		same = ok && got == b
	})
	return same, err
}

// diskText is how much of the first disk WriteDisk uses.
const diskText = 512

// WriteDisk keeps a text at the start of the first disk.
func (g *Guest) WriteDisk(ctx context.Context, text string) error {
	if len(text) > diskText {
		return fmt.Errorf("a text of %d bytes does not fit the fake's disk", len(text))
	}
	return g.disk(ctx, func(f *os.File) error {
		block := make([]byte, diskText)
		copy(block, text)
		_, err := f.WriteAt(block, 0)
		return err
	})
}

// ReadDisk returns the text that WriteDisk kept.
func (g *Guest) ReadDisk(ctx context.Context) (text string, err error) {
	err = g.disk(ctx, func(f *os.File) error {
		block, err := io.ReadAll(io.NewSectionReader(f, 0, diskText))
		text = string(bytes.TrimRight(block, "\x00"))
		return err
	})
	return text, err
}

// GrowDisk checks that the first disk has size bytes.
func (g *Guest) GrowDisk(ctx context.Context, size int64) error {
	return g.disk(ctx, func(f *os.File) error {
		info, err := f.Stat()
		if err == nil && info.Size() < size {
			err = fmt.Errorf("the disk has %d bytes, not %d", info.Size(), size)
		}
		return err
	})
}

// disk calls f with the first disk when the guest runs; not under its lock.
func (g *Guest) disk(ctx context.Context, f func(*os.File) error) error {
	var disks []*os.File
	if err := g.do(ctx, func(p *process) { disks = p.disks }); err != nil {
		return err
	}
	if len(disks) == 0 {
		return fmt.Errorf("the machine has no disk")
	}
	return f(disks[0])
}

// StartCounter starts, from zero, what Counter reads.
func (g *Guest) StartCounter(ctx context.Context) error {
	return g.do(ctx, func(p *process) { p.mem.Counting, p.mem.Counted, p.since = true, 0, time.Now() })
}

// counterTick is how long the guest must run for the counter to go on by one.
const counterTick = time.Millisecond

// Counter returns the counter's value.
func (g *Guest) Counter(ctx context.Context) (n int, err error) {
	err = g.do(ctx, func(p *process) { n = int(p.counted() / counterTick) })
	return n, err
}

// BusyTimer always works in a fake.
func (g *Guest) BusyTimer(ctx context.Context) error { return g.do(ctx, func(*process) {}) }

// PrintMuch prints n bytes.
func (g *Guest) PrintMuch(ctx context.Context, n int) error {
	if err := g.do(ctx, func(*process) {}); err != nil {
		return err
	}
	return g.Print(strings.Repeat("x", n))
}

// Flood prints more than the console keeps.
func (g *Guest) Flood(ctx context.Context) error { return g.PrintMuch(ctx, 2*consoleSize) }

// PowerOff ends the machine as a guest that powers off does.
func (g *Guest) PowerOff(context.Context) error { return g.end(poweredOff) }

// Panic ends the machine as a guest's kernel does when it panics.
func (g *Guest) Panic(context.Context) error {
	return g.end(ending{reason: "guest panicked", panicked: true})
}

// Die ends the VMM for the reason, like "exit status 1".
func (g *Guest) Die(reason string) error { return g.end(died(reason)) }
