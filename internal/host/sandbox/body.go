package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wrenn"
	"wrenn/internal/envdclient"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/network"
	"wrenn/internal/storage"
	"wrenn/internal/vm"
)

// body is what a sandbox runs in: a slot, a disk, a machine and the way to the
// agent in it. A sandbox gets a new one with every start and every restore. It
// belongs to who has the sandbox's turn.
type body struct {
	s       *Sandbox
	note    journal.Instance // as in the journal
	slot    *network.Slot
	machine vm.Machine
	guest   *envdclient.Client
	unwatch context.CancelFunc // stops the watcher; nil when there is none
}

// label tells the bodies of a sandbox apart, in names of files and machines.
func (b *body) label() string {
	if b.note.Start <= 1 {
		return ""
	}
	return fmt.Sprintf("-%d", b.note.Start)
}

func (b *body) name() string { return string(b.s.id) + b.label() }

// runDir is the machine's directory, of which the machine's note knows best: a
// machine that was in stock has kept its own.
func (b *body) runDir() string {
	if ref := b.note.Machine; ref != nil && ref.Dir != "" {
		return ref.Dir
	}
	return filepath.Join(b.s.m.machines(), b.name())
}

func (b *body) disk() string { return filepath.Join(b.s.dir(), "root"+b.label()+".ext4") }

// part is something that a body is made of.
type part struct {
	name string
	make func(context.Context) error
}

func (b *body) parts(from origin) []part {
	parts := []part{
		{"slot", b.takeSlot},
		{"disk", func(ctx context.Context) error { return b.cloneDisk(ctx, from.rootfs) }},
		{"machine", func(ctx context.Context) error { return b.startMachine(ctx, from) }},
		{"ready", b.waitReady},
	}
	if b.s.isStock() {
		parts = append(parts, part{"rest", b.rest})
	}
	return parts
}

// build makes a body, as the sandbox's spare. It becomes the one that the
// sandbox runs in when the journal says so. When build fails what there is of
// it is still the spare: discardSpare.
func (s *Sandbox) build(ctx context.Context, from origin) error {
	if found, err := s.buildFromStock(ctx, from); found || err != nil {
		return err
	}
	s.spare = &body{s: s, note: journal.Instance{Start: s.journal.Starts + 1, Source: from.snapshot, Guest: from.guest}}
	for _, p := range s.spare.parts(from) {
		began := time.Now()
		if err := p.make(ctx); err != nil {
			return fmt.Errorf("sandbox %s: %s: %w", s.id, p.name, err)
		}
		s.crash(p.name + " done")
		s.trace(p.name, began)
	}
	return nil
}

// takeSlot takes a slot and notes it with all else that must be known before
// there is a machine.
func (b *body) takeSlot(ctx context.Context) (err error) {
	for {
		b.slot, err = b.s.m.cfg.Slots.Acquire(ctx, string(b.s.id))
		if wrenn.CodeOf(err) == wrenn.Exhausted && !b.s.isStock() && b.s.m.yieldOne(ctx) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	b.s.crash("slot taken")
	ref := b.slot.Ref()
	b.note.Slot = &ref
	return b.s.commit("slot", func(j *journal.Journal) {
		j.Starts = b.note.Start
		j.Other = new(b.note)
	})
}

func (b *body) cloneDisk(ctx context.Context, rootfs string) error {
	_, err := storage.Clone(ctx, b.disk(), rootfs, 0o600)
	return err
}

func (b *body) startMachine(ctx context.Context, from origin) (err error) {
	if err := os.Mkdir(b.runDir(), 0o711); err != nil {
		return err
	}
	shape := b.s.request.Shape
	spec := vm.Spec{
		ID: b.name(), Dir: b.runDir(), VCPUs: shape.VCPUs, MemoryMiB: shape.MemoryMiB,
		Disks:     []vm.Disk{{Path: b.disk()}},
		Net:       vm.NIC{Namespace: b.slot.Namespace(), TAP: b.slot.TAP(), MAC: b.slot.MAC()},
		Exclusive: from.sole,
	}
	if b.s.m.cfg.FirstUID != 0 {
		spec.UID = b.s.m.cfg.FirstUID + uint32(b.slot.Index())
		spec.GID = spec.UID
	}
	if b.machine, err = from.start(ctx, spec); err != nil {
		return err
	}
	if b.s.body == nil { // else the sandbox runs in another, until it moves in
		b.s.console.Attach(b.machine)
	}
	b.s.crash("machine started")
	ref := b.machine.Ref()
	b.note.Machine = &ref
	return b.s.commit("machine", func(j *journal.Journal) { j.Other = new(b.note) })
}

// waitReady waits for the agent in the guest, then tells it the time and who it
// is and reseeds it: a restored guest is somebody new. Its processes, which
// were frozen before the snapshot, go on after that.
func (b *body) waitReady(ctx context.Context) error {
	ctx, cancel := b.patience(ctx)
	defer cancel()
	b.connect()
	if err := b.guest.WaitReady(ctx, b.machine.Wait); err != nil {
		return err
	}
	err := b.guest.Init(ctx, envdclient.Init{
		Env:      b.s.request.Env,
		Identity: &envdclient.Identity{ID: string(b.s.id), StartCounter: b.note.Start},
	})
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// patience bounds the wait for the guest's agent.
func (b *body) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := b.s.m.cfg.ReadyTimeout
	return context.WithTimeoutCause(ctx, limit, wrenn.Errorf(wrenn.DeadlineExceeded, "the guest's agent did not answer within %s", limit))
}

func (b *body) connect() {
	b.guest = envdclient.New(envdclient.Config{Dial: b.slot.DialContext, Address: network.EnvdAddress})
}

// find takes over what is left of the machine and the slot of a dead agent's
// body; what nobody noted in the slot is ended.
func (b *body) find(ctx context.Context) error {
	// A machine of another driver than today's ends with what else runs in its slot.
	if ref := b.note.Machine; ref != nil && ref.Driver == b.s.m.cfg.Driver.Name() {
		machine, err := b.s.m.cfg.Driver.Adopt(ctx, *ref)
		switch wrenn.CodeOf(err) {
		case "":
			b.machine = machine
			if b == b.s.body {
				b.s.console.Attach(machine)
			}
		case wrenn.NotFound: // it ended meanwhile
		default:
			return err
		}
	}
	if b.note.Slot == nil {
		return nil
	}
	slot, err := b.s.m.cfg.Slots.Adopt(ctx, *b.note.Slot)
	switch wrenn.CodeOf(err) {
	case "":
		b.slot = slot
		return killUnknown(ctx, slot)
	case wrenn.NotFound: // it was released
		return nil
	default:
		return err
	}
}

// discard ends the machine, and then gives back the slot: one whose machine
// may still run must not get to another sandbox. May be repeated.
func (b *body) discard(ctx context.Context, keepDisk bool) error {
	if b.unwatch != nil {
		b.unwatch()
	}
	if b.guest != nil {
		b.guest.Close()
	}
	if b.machine != nil {
		if err := b.machine.Stop(ctx); err != nil {
			return err
		}
		b.s.crash("machine stopped")
	}
	if b.slot != nil {
		if err := b.slot.Release(ctx); err != nil {
			return err
		}
		b.s.crash("slot released")
	}
	if keepDisk {
		return os.RemoveAll(b.runDir())
	}
	return errors.Join(os.RemoveAll(b.runDir()), os.RemoveAll(b.disk()))
}

// discardSpare removes the body that the sandbox does not run in, if there is
// one: it was not finished, or is not needed any more.
func (s *Sandbox) discardSpare(ctx context.Context) error {
	if s.spare == nil {
		return nil
	}
	if err := s.spare.discard(ctx, false); err != nil {
		return err
	}
	s.spare = nil
	return s.giveBack("spare removed", func(j *journal.Journal) { j.Other = nil })
}
