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

	"wrenn.dev"
	"wrenn.dev/internal/host/sandbox/instance"
	"wrenn.dev/internal/host/sandbox/journal"
	"wrenn.dev/internal/network"
	"wrenn.dev/internal/telemetry"
)

// maxAdopting bounds how many sandboxes are adopted at a time.
const maxAdopting = 16

// destroyAll destroys every sandbox that an earlier agent left. One that cannot be
// destroyed does not keep the others.
func (h *host) destroyAll(ctx context.Context) error {
	all, err := journal.ReadAll(h.sandboxesDir())
	if err != nil {
		return err
	}
	var errs []error
	for _, left := range all {
		if err := h.destroyLeftover(ctx, left); err != nil {
			errs = append(errs, fmt.Errorf("leftover %s: %w", left.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (h *host) destroyLeftover(ctx context.Context, left journal.Leftover) error {
	if left.Err != nil {
		return left.Err
	}
	s := revive(h, left.Journal)
	if err := (locked{s}).findInstances(ctx); err != nil { // nothing else knows it yet
		return err
	}
	if err := s.Destroy(ctx); err != nil {
		return err
	}
	s.log(ctx, slog.LevelInfo, "leftover sandbox removed")
	return nil
}

// adoptAll takes over what an earlier agent left. What cannot be understood is
// put in quarantine; one sandbox does not keep the others.
func (h *host) adoptAll(ctx context.Context) error {
	all, err := journal.ReadAll(h.sandboxesDir())
	if err != nil {
		return err
	}
	named := journal.MachineDirs(all) // before anything of it changes
	var work errgroup.Group
	work.SetLimit(maxAdopting)
	for _, left := range all {
		work.Go(func() error {
			h.adoptLeftover(ctx, left)
			return nil
		})
	}
	_ = work.Wait() // none fails: what goes wrong is in the inventory
	return h.adoptUnknown(ctx, named)
}

// adoptLeftover takes over the sandbox of one directory.
func (h *host) adoptLeftover(ctx context.Context, left journal.Leftover) {
	if left.Err != nil {
		h.quarantine(ctx, left.Name, "its journal cannot be read", left.Err)
		return
	}
	if left.Journal.Step == "" && h.isAlive(left.Name) {
		h.quarantine(ctx, left.Name, "it runs but has no journal", nil)
		return
	}
	s := revive(h, left.Journal)
	locked, err := s.lock(ctx)
	if err != nil {
		return
	}
	defer locked.unlock()
	if err := (adoption{locked}).adopt(ctx); err != nil {
		s.logError(ctx, slog.LevelError, "sandbox put in quarantine", err)
		s.state.set(StatusQuarantined, userReason("it could not be taken over", err))
	}
}

// adoption takes over one sandbox.
type adoption struct{ locked }

// adopt takes over the sandbox as its journal says. An error means that it may
// run and cannot be worked with.
func (s adoption) adopt(ctx context.Context) error {
	// A VMM may hang, or its guest may control it by now.
	limit := s.host.cfg.ReadyTimeout
	limited, cancel := context.WithTimeoutCause(ctx, limit, wrenn.Errorf(wrenn.DeadlineExceeded, "its machine did not answer within %s", limit))
	defer cancel()
	switch j := s.journal.Journal; {
	case j.Step == journal.StepRunning && j.Template != journal.BuildTemplate:
		return s.adoptRunning(limited)
	case j.Step == journal.StepPaused:
		return s.adoptPaused(limited)
	case j.Step == journal.StepEnded && j.Verdict != nil:
		s.state.conclude(verdictOf(j.Verdict))
		return nil
	case j.IsUnwanted() || j.IsEnding(): // half made, or half removed
		if err := s.findInstances(limited); err != nil {
			return err
		}
		s.finishLeftover(ctx)
		return nil
	default:
		return wrenn.Errorf(wrenn.FailedPrecondition, "its journal says %.80q, which this version does not know", j.Step)
	}
}

// finishLeftover removes a sandbox that was half made or half removed. What
// fails is tried again by Run.
func (s adoption) finishLeftover(ctx context.Context) {
	step := s.journal.Step
	if err := s.finishEnding(ctx); err != nil {
		s.logError(ctx, slog.LevelError, "leftover sandbox cannot be removed yet", err)
		return
	}
	s.log(ctx, slog.LevelInfo, "leftover sandbox removed", slog.String("step", string(step)))
}

// adoptRunning takes over a sandbox that ran.
func (s adoption) adoptRunning(ctx context.Context) error {
	if s.instance == nil {
		return wrenn.Errorf(wrenn.FailedPrecondition, "its journal names no machine or no slot")
	}
	if err := s.instance.Adopt(ctx); errors.Is(err, instance.ErrEnded) {
		return s.endAdopted(ctx, err)
	} else if err != nil {
		return err
	}
	s.console.Attach(s.instance.Machine)
	s.guest.Store(s.instance.Guest)
	if err := s.letAdoptedRun(ctx); err != nil {
		return err
	}
	if err := s.adoptOther(ctx); err != nil {
		return err
	}
	s.watchInstance(ctx)
	s.state.set(StatusRunning, "")
	s.log(ctx, slog.LevelInfo, "sandbox adopted", slog.String("status", string(StatusRunning)))
	return nil
}

// letAdoptedRun lets a machine run that an agent that died may have been
// snapshotting. One whose VMM still writes runs later.
func (s adoption) letAdoptedRun(ctx context.Context) error {
	err := s.letRun(ctx)
	switch {
	case err == nil:
		s.tryThaw(ctx)
	case s.journal.Frozen:
		s.logError(ctx, slog.LevelWarn, "adopted sandbox does not run yet", err)
	default:
		return fmt.Errorf("resume: %w", err)
	}
	return nil
}

// adoptPaused takes over a paused sandbox.
func (s adoption) adoptPaused(ctx context.Context) error {
	if err := s.adoptOther(ctx); err != nil {
		return err
	}
	s.state.set(StatusPaused, "")
	s.log(ctx, slog.LevelInfo, "sandbox adopted", slog.String("status", string(StatusPaused)))
	return nil
}

// adoptOther removes a pending or retired instance. What fails is tried again by
// Run.
func (s adoption) adoptOther(ctx context.Context) error {
	if s.other == nil {
		return nil
	}
	if err := s.other.Find(ctx); err != nil {
		return err
	}
	if err := s.tidy(ctx); err != nil {
		s.logError(ctx, slog.LevelError, "leftover machine cannot be removed yet", err)
	}
	return nil
}

// endAdopted ends a sandbox whose machine has ended.
func (s adoption) endAdopted(ctx context.Context, cause error) error {
	if err := s.findInstances(ctx); err != nil {
		return err
	}
	s.logError(ctx, slog.LevelWarn, "machine ended while no agent ran", cause)
	verdict := Verdict{StatusFailed, "its machine ended while the host's agent was down, as when the host restarts", wrenn.CauseHostRestarted}
	if err := s.end(ctx, verdict); err != nil {
		s.logError(ctx, slog.LevelError, "sandbox that has ended cannot be removed yet", err)
	}
	return nil
}

// adoptUnknown looks for machines that no journal names: by their directories,
// but those in named, then by the slots in which processes live.
func (h *host) adoptUnknown(ctx context.Context, named map[string]bool) error {
	dirs, err := os.ReadDir(h.machinesDir())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range dirs {
		path := filepath.Join(h.machinesDir(), e.Name())
		owner, _, _ := strings.Cut(e.Name(), "-") // what follows tells its instances apart
		if _, err := h.registry.get(wrenn.SandboxID(owner)); err == nil || named[path] {
			continue
		}
		if h.isAlive(e.Name()) {
			h.quarantine(ctx, owner, "it runs but has no journal", nil)
			continue
		}
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(append(errs, h.adoptTenants(ctx))...)
}

// adoptTenants puts slots in quarantine in which processes live that belong to
// none of the sandboxes in quarantine.
func (h *host) adoptTenants(ctx context.Context) error {
	tenants, err := h.cfg.Slots.Tenants()
	if err != nil {
		return fmt.Errorf("look for unknown machines: %w", err)
	}
	known := h.registry.all()
	for _, t := range tenants {
		if slices.ContainsFunc(known, func(s *Sandbox) bool { return s.Info().Status == StatusQuarantined && isNamed(t, string(s.id)) }) {
			continue
		}
		h.quarantine(ctx, t.Slot, fmt.Sprintf("processes %v run in this network slot and belong to no sandbox", t.PIDs), nil)
	}
	return nil
}

// quarantine enters what is not understood. Nothing touches it.
func (h *host) quarantine(ctx context.Context, name, reason string, cause error) {
	id := wrenn.SandboxID(name)
	h.logError(telemetry.WithSandbox(ctx, id), slog.LevelError, "sandbox put in quarantine", cause, slog.String("reason", reason))
	s := revive(h, journal.New(filepath.Join(h.sandboxesDir(), name), id))
	s.state.set(StatusQuarantined, reason)
}

// isAlive reports whether a process of the sandbox lives in a slot that was not
// adopted. If that cannot be told it does.
func (h *host) isAlive(id string) bool {
	tenants, err := h.cfg.Slots.Tenants()
	return err != nil || slices.ContainsFunc(tenants, func(t network.Tenant) bool { return isNamed(t, id) })
}

// isNamed reports whether one of the tenant's processes has the id of a sandbox in
// its command line, as the VMMs of all drivers do.
func isNamed(t network.Tenant, id string) bool {
	return slices.ContainsFunc(t.PIDs, func(pid int) bool {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		return err == nil && bytes.Contains(line, []byte(id))
	})
}

// userReason returns why a sandbox cannot be worked with, for a user.
func userReason(doing string, err error) string {
	if e, ok := errors.AsType[*wrenn.Error](err); ok {
		return doing + ": " + e.PublicMessage()
	}
	return doing + ": see the agent's log"
}
