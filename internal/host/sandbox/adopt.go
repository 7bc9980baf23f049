package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"wrenn"
	"wrenn/internal/host/sandbox/journal"
	"wrenn/internal/network"
)

// adopting bounds how many sandboxes are adopted at a time.
const adopting = 16

// adoptAll takes over what an earlier agent left. What cannot be understood is
// reported in the inventory and left alone; one sandbox does not keep the others.
func (m *Manager) adoptAll(ctx context.Context) error {
	all, err := journal.ReadAll(m.sandboxes())
	if err != nil {
		return err
	}
	named := journal.MachineDirs(all) // before anything of it changes
	var work errgroup.Group
	work.SetLimit(adopting)
	for _, left := range all {
		work.Go(func() error {
			m.adopt(ctx, left)
			return nil
		})
	}
	_ = work.Wait() // none fails: what goes wrong is in the inventory
	return m.adoptOrphans(ctx, named)
}

// adopt takes over the sandbox of one directory.
func (m *Manager) adopt(ctx context.Context, left journal.Leftover) {
	name, j, err := left.Name, left.Journal, left.Err
	if err != nil {
		m.quarantine(ctx, name, "its journal cannot be read", err)
		return
	}
	if j.Step == "" && m.lives(name) {
		m.quarantine(ctx, name, "it runs but has no journal", nil)
		return
	}
	s := m.revive(j)
	s.turn <- struct{}{}
	defer s.unlock()
	// A VMM may hang, or be its guest's by now.
	limit := m.cfg.ReadyTimeout
	limited, cancel := context.WithTimeoutCause(ctx, limit, wrenn.Errorf(wrenn.DeadlineExceeded, "its machine did not answer within %s", limit))
	defer cancel()
	switch {
	case j.Step == journal.StepRunning && j.Template != journal.BuildTemplate:
		err = s.takeOver(limited)
	case j.Step == journal.StepPaused:
		err = s.takeOverPaused(limited)
	case j.Step == journal.StepEnded && j.Verdict != nil:
		s.set(Status(j.Verdict.Status), j.Verdict.Reason)
	case j.IsUnwanted() || j.IsEnding(): // half made, or half gone
		if err = s.findBodies(limited); err == nil {
			s.undoOrEnd(ctx)
		}
	default:
		err = wrenn.Errorf(wrenn.FailedPrecondition, "its journal says %.80q, which this version does not know", j.Step)
	}
	if err != nil {
		m.cfg.Log.LogAttrs(ctx, slog.LevelError, "sandbox put in quarantine", slog.String("sandbox", name), slog.Any("err", err))
		s.set(StatusQuarantined, asReason("it could not be taken over", err))
	}
}

// undoOrEnd removes a sandbox that was half made or half gone; what does not
// work is tried again by Run.
func (s *Sandbox) undoOrEnd(ctx context.Context) {
	step := s.journal.Step
	if err := s.finishEnding(ctx); err != nil {
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelError, "leftover sandbox cannot be removed yet", slog.String("sandbox", string(s.id)), slog.Any("err", err))
		return
	}
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "leftover sandbox removed", slog.String("sandbox", string(s.id)), slog.String("step", string(step)))
}

// takeOver makes a sandbox that ran this agent's own. An error means that it
// may run and cannot be worked with.
func (s *Sandbox) takeOver(ctx context.Context) error {
	b, driver := s.body, s.m.cfg.Driver
	switch {
	case b == nil || b.note.Machine == nil || b.note.Slot == nil:
		return wrenn.Errorf(wrenn.FailedPrecondition, "its journal names no machine or no network slot")
	case b.note.Machine.Driver != driver.Name():
		return wrenn.Errorf(wrenn.FailedPrecondition, "its machine is of driver %s, and this agent works with %s", b.note.Machine.Driver, driver.Name())
	}
	machine, err := driver.Adopt(ctx, *b.note.Machine)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return s.bury(ctx, err)
	}
	if err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	slot, err := s.m.cfg.Slots.Adopt(ctx, *b.note.Slot)
	if err != nil {
		return fmt.Errorf("network slot: %w", err)
	}
	b.machine, b.slot = machine, slot
	s.console.Attach(machine)
	b.connect()
	s.setGuest(b)
	if err := s.goOnAdopted(ctx); err != nil {
		return err
	}
	if err := s.takeOverSpare(ctx); err != nil {
		return err
	}
	s.watch(ctx)
	s.set(StatusRunning, "")
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "sandbox adopted", slog.String("sandbox", string(s.id)), slog.String("status", string(StatusRunning)))
	return nil
}

// goOnAdopted lets a machine run whose snapshot a dead agent may have been
// taking. One whose VMM still writes that does so later.
func (s *Sandbox) goOnAdopted(ctx context.Context) error {
	err := s.letRun(ctx)
	switch {
	case err == nil:
		s.thawLate(ctx)
	case s.journal.Frozen:
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "an adopted sandbox does not run yet", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	default:
		return fmt.Errorf("resume: %w", err)
	}
	return nil
}

// takeOverPaused makes a paused sandbox this agent's own.
func (s *Sandbox) takeOverPaused(ctx context.Context) error {
	if err := s.takeOverSpare(ctx); err != nil {
		return err
	}
	s.set(StatusPaused, "")
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "sandbox adopted", slog.String("sandbox", string(s.id)), slog.String("status", string(StatusPaused)))
	return nil
}

// takeOverSpare removes what a dead agent did not finish, or did not remove.
// What does not work is tried again by Run.
func (s *Sandbox) takeOverSpare(ctx context.Context) error {
	if s.spare == nil {
		return nil
	}
	if err := s.spare.find(ctx); err != nil {
		return err
	}
	if err := s.tidy(ctx); err != nil {
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelError, "leftover machine cannot be removed yet", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	}
	return nil
}

// bury ends a sandbox whose machine is gone.
func (s *Sandbox) bury(ctx context.Context, cause error) error {
	if err := s.findBodies(ctx); err != nil {
		return err
	}
	s.m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "machine ended while no agent ran", slog.String("sandbox", string(s.id)), slog.Any("err", cause))
	verdict := Verdict{StatusFailed, "its machine ended while the host's agent was down, as when the host restarts"}
	if err := s.end(ctx, verdict); err != nil {
		s.m.cfg.Log.LogAttrs(ctx, slog.LevelError, "dead sandbox cannot be removed yet", slog.String("sandbox", string(s.id)), slog.Any("err", err))
	}
	return nil
}

// adoptOrphans looks for machines that no journal names: by their directories,
// but those in named, then by the slots in which something lives.
func (m *Manager) adoptOrphans(ctx context.Context, named map[string]bool) error {
	dirs, err := os.ReadDir(m.machines())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range dirs {
		owner, _, _ := strings.Cut(e.Name(), "-") // see body.label
		if _, err := m.Get(wrenn.SandboxID(owner)); err == nil || named[filepath.Join(m.machines(), e.Name())] {
			continue
		}
		if m.lives(e.Name()) {
			m.quarantine(ctx, owner, "it runs but has no journal", nil)
			continue
		}
		errs = append(errs, os.RemoveAll(filepath.Join(m.machines(), e.Name())))
	}
	return errors.Join(append(errs, m.adoptTenants(ctx))...)
}

// adoptTenants reports slots in which something lives that is none of the
// sandboxes which are in quarantine already.
func (m *Manager) adoptTenants(ctx context.Context) error {
	tenants, err := m.cfg.Slots.Tenants()
	if err != nil {
		return fmt.Errorf("look for unknown machines: %w", err)
	}
	boxes := m.all()
	for _, t := range tenants {
		if slices.ContainsFunc(boxes, func(s *Sandbox) bool { return s.Info().Status == StatusQuarantined && named(t, string(s.id)) }) {
			continue
		}
		m.quarantine(ctx, t.Slot, fmt.Sprintf("processes %v run in this network slot and belong to no sandbox", t.PIDs), nil)
	}
	return nil
}

// quarantine reports what is not understood. It is left alone.
func (m *Manager) quarantine(ctx context.Context, name, reason string, cause error) {
	m.cfg.Log.LogAttrs(ctx, slog.LevelError, "sandbox put in quarantine",
		slog.String("sandbox", name), slog.String("reason", reason), slog.Any("err", cause))
	s := m.revive(journal.New(filepath.Join(m.sandboxes(), name), wrenn.SandboxID(name)))
	s.set(StatusQuarantined, reason)
}

// Quarantined says how many sandboxes are in quarantine: what they need nobody knows.
func (m *Manager) Quarantined() int {
	n := 0
	for _, s := range m.all() {
		if s.Info().Status == StatusQuarantined {
			n++
		}
	}
	return n
}

// Live says how many sandboxes have a machine that the next agent could adopt.
func (m *Manager) Live() int {
	n := 0
	for _, s := range m.all() {
		switch s.Info().Status {
		case StatusPaused, StatusStopped, StatusFailed, statusRemoved:
		default:
			n++
		}
	}
	return n
}

// lives says whether a process of the sandbox lives in a slot that nobody has
// adopted. Who cannot tell has to say yes.
func (m *Manager) lives(id string) bool {
	tenants, err := m.cfg.Slots.Tenants()
	return err != nil || slices.ContainsFunc(tenants, func(t network.Tenant) bool { return named(t, id) })
}

// named says whether one of the tenant's processes has the id of a sandbox in
// its command line, as the VMMs of all drivers do.
func named(t network.Tenant, id string) bool {
	return slices.ContainsFunc(t.PIDs, func(pid int) bool {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		return err == nil && bytes.Contains(line, []byte(id))
	})
}
