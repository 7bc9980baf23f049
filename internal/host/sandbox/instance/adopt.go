package instance

import (
	"context"
	"errors"
	"fmt"

	"wrenn.dev"
	"wrenn.dev/internal/netns"
	"wrenn.dev/internal/network"
)

// ErrEnded is the error of Adopt when the machine has ended.
var ErrEnded = errors.New("the machine has ended")

// Adopt takes over the instance of an earlier agent, in which a sandbox runs.
// ErrEnded when the machine does not run any more; another error means that it may
// run and cannot be worked with.
func (i *Instance) Adopt(ctx context.Context) error {
	switch ref := i.Record.Machine; {
	case ref == nil || i.Record.Slot == nil:
		return wrenn.Errorf(wrenn.FailedPrecondition, "its journal names no machine or no slot")
	case ref.Driver != i.host.Driver.Name():
		return wrenn.Errorf(wrenn.FailedPrecondition, "its machine is of driver %s, and this agent works with %s", ref.Driver, i.host.Driver.Name())
	}
	machine, err := i.host.Driver.Adopt(ctx, *i.Record.Machine)
	if wrenn.CodeOf(err) == wrenn.NotFound {
		return fmt.Errorf("%w: %w", ErrEnded, err)
	}
	if err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	slot, err := i.host.Slots.Adopt(ctx, *i.Record.Slot)
	if err != nil {
		return fmt.Errorf("network slot: %w", err)
	}
	i.Machine, i.Slot = machine, slot
	i.observe(ctx)
	// The earlier agent may have died between writing a policy and obeying it, or be an older one.
	if err := i.FollowPolicy(ctx); err != nil {
		return err
	}
	i.connect()
	return i.serveVolumes(ctx)
}

// Find takes over what is left of the instance of an earlier agent, so that
// Discard can remove it. Processes in the slot that are not recorded are ended.
func (i *Instance) Find(ctx context.Context) error {
	// A machine of another driver than today's ends with everything else that runs in its slot.
	if ref := i.Record.Machine; ref != nil && ref.Driver == i.host.Driver.Name() {
		machine, err := i.host.Driver.Adopt(ctx, *ref)
		switch wrenn.CodeOf(err) {
		case "":
			i.Machine = machine
		case wrenn.NotFound: // it has ended
		default:
			return err
		}
	}
	if i.Record.Slot == nil {
		return nil
	}
	slot, err := i.host.Slots.Adopt(ctx, *i.Record.Slot)
	switch wrenn.CodeOf(err) {
	case "":
		i.Slot = slot
		return killUnknown(ctx, slot)
	case wrenn.NotFound: // it was released
		return nil
	default:
		return err
	}
}

// killUnknown ends a VMM whose agent died before it could record that it had
// started it: the slot, which was recorded before, holds nothing else.
func killUnknown(ctx context.Context, slot *network.Slot) error {
	_, err := netns.Kill(ctx, slot.Namespace())
	return err
}
